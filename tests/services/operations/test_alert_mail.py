"""How the service's own mail gets to a mail server: TLS, logins, EMAIL_URL, and what is said."""

import gc
import os
import subprocess
import sys
from typing import Any

import pytest

from ingestion.services.operations.alerting import mail
from ingestion.services.operations.alerting.mail import Mail
from tests.servers import smtp
from tests.servers.graph import http
from tests.servers.stack import ROOT

TEST = Mail("A test", "alerts", {"rule": "All", "sections": [], "is_test": True}, key="one")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see its end
def test_it_logs_in_over_tls_and_believes_the_installations_authority(settings: Any) -> None:
    options = {
        "tls_context": http._server_context(),
        "require_starttls": True,
        "auth_required": True,
        "authenticator": smtp.authenticator("ops", "s3cret"),
    }
    with smtp.running(**options) as inbox:
        smtp.use(settings, inbox)
        settings.EMAIL_USE_TLS = True
        settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD = "ops", "s3cret"
        refused = mail.send(TEST, ["a@example.com"])
        assert not refused.ok
        assert "can't be verified" in refused.text
        assert "EXTRA_CA_FILE" in refused.text
        settings.EXTRA_CA_FILE = "/nowhere.pem"
        assert "EXTRA_CA_FILE /nowhere.pem can't be used" in mail.send(TEST, ["a@b.com"]).text
        settings.EXTRA_CA_FILE = http.ca_file()
        assert mail.send(TEST, ["a@example.com"]) == mail.Sent(ok=True, text="Sent to 1 address.")
        settings.EMAIL_HOST_PASSWORD = "wr0ng"
        refused = mail.send(TEST, ["a@example.com"])
        assert refused.text == (
            f"127.0.0.1:{inbox.port} refused the user name or password of EMAIL_URL (535)."
        )
        assert len(inbox.came) == 1
    gc.collect()  # aiosmtpd leaves the sockets of handshakes that failed to this


def started(email_url: str) -> subprocess.CompletedProcess[str]:
    """Read the settings in a process of their own, and say what they made of it."""
    shown = (
        "from django.conf import settings as s; print(s.EMAIL_HOST, s.EMAIL_PORT, s.EMAIL_USE_TLS,"
        " s.EMAIL_USE_SSL, s.EMAIL_HOST_USER, s.EMAIL_HOST_PASSWORD)"
    )
    return subprocess.run(
        [sys.executable, "-c", shown],
        cwd=ROOT,
        env={**os.environ, "EMAIL_URL": email_url},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("url", "made"),
    [
        ("smtp+tls://ops:s%2Fcret@mail.example.com", "mail.example.com 587 True False ops s/cret"),
        ("smtp+ssl://mail.example.com", "mail.example.com 465 False True None None"),
        ("smtp://mail.example.com:2525", "mail.example.com 2525 False False None None"),
    ],
)
def test_the_url_of_a_mail_server_is_understood(url: str, made: str) -> None:
    assert started(url).stdout.strip() == made


@pytest.mark.parametrize("url", ["smtp+tls://ops:top/s3cret@mail.example.com", "ops@s3cret"])
def test_a_url_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    refused = started(url)
    assert refused.returncode == 1
    assert "EMAIL_URL must look like smtp+tls://user:password@host:587" in refused.stderr
    assert "s3cret" not in refused.stderr
    assert "'top'" not in refused.stderr
