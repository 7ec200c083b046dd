"""README's shell lines as a newcomer types them, against the running service."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from django.contrib.auth.models import User

from tests.meta.test_documentation import section
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.stack import ROOT

if TYPE_CHECKING:
    from tests.servers.stack import Service

MAIL = b"Subject: hello\r\nFrom: a@example.com\r\n\r\nthe bytes\r\n"


def script(title: str, service: "Service", **known: str) -> str:
    """Return a section's indented lines for bash: our address, and what stands for "..."."""
    lines = [line[4:] for line in section(title).splitlines() if line.startswith("    ")]
    assert any("curl" in line for line in lines)
    text = "\n".join(lines).replace("http://localhost:8000", service.url)
    text = text.replace(".venv/bin/python manage.py", f"{sys.executable} {ROOT}/manage.py")
    for name, value in known.items():
        assert f"\n{name}=..." in text
        text = text.replace(f"\n{name}=...", f"\n{name}={value}")
    assert "=..." not in text
    strict = 'set -euo pipefail\ncurl() { command curl --fail-with-body "$@"; echo; }\n'
    return strict + text


def run(text: str, service: "Service", directory: Path, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=directory,
        env={**os.environ, **service.env, "no_proxy": "127.0.0.1", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_lines_that_connect_an_account_work_as_written(
    service: "Service", admin_user: User, tmp_path: Path
) -> None:
    said = run(script("Connecting an account", service), service, tmp_path)
    assert '"name":"Alice"' in said
    assert '"status":"pending_auth"' in said
    assert "an app password" not in said


def test_the_api_by_example_works_as_written(
    service: "Service",
    api: httpx.Client,
    dovecot: Dovecot,
    wait_for: Callable[..., Any],
    tmp_path: Path,
) -> None:
    account = dovecot.account(MAIL)
    body = {
        "name": "Mail",
        "provider": "generic_imap",
        "providerConfig": imap_source.config(account),
        "autoImport": True,
    }
    source = api.post("/ingestion", json=body).json()["id"]
    wait_for(lambda: api.get(f"/ingestion/{source}").json()["status"] == "active")
    email = api.get("/emails").json()["results"][0]["id"]
    key = api.headers["Authorization"].removeprefix("Bearer ")
    text = script("The API by example", service, ID=source, EMAIL=email)
    said = run(text, service, tmp_path, KEY=key)
    for part in ("The sync is under way.", '"status":"paused"', "event: end", '"subject":"hello"'):
        assert part in said
    assert (tmp_path / "mail.eml").read_bytes() == MAIL + b"\n"  # what our curl() adds
