"""A mail server that is gone for a while: every place says so, and every place takes it back."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.db.models import F
from django.test import Client

from ingestion.models import Mailbox
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot

pytestmark = pytest.mark.long(seconds=15)


@pytest.fixture
def server() -> Iterator[Dovecot]:
    """A Dovecot of the test's own, which it may stop."""
    with Dovecot() as dovecot:
        yield dovecot


@pytest.fixture
def manage(settings: Any) -> CommandLine:
    return CommandLine(settings.ARCHIVE_DIR)


def first_page(admin_user: User) -> str:
    client = Client()
    client.force_login(admin_user)
    return client.get("/admin/").content.decode()


def test_a_server_that_is_gone_is_told_everywhere_until_it_is_back(
    api: httpx.Client,
    server: Dovecot,
    admin_user: User,
    manage: CommandLine,
    wait_for: Callable[..., Any],
) -> None:
    name, password = server.user()
    server.append(name, "INBOX", b"Subject: first\r\n\r\nbody\r\n")
    config = {
        "host": server.host, "port": server.port, "secure": False, "username": name,
        "password": password,
    }  # fmt: skip
    made = api.post(
        "/ingestion",
        json={
            "name": "Alice", "provider": "generic_imap", "providerConfig": config,
            "options": {"syncIntervalSeconds": 30}, "autoImport": True,
        },
    ).json()  # fmt: skip
    place = f"/ingestion/{made['id']}"

    def source() -> dict[str, Any]:
        shown: dict[str, Any] = api.get(place).json()
        return shown

    wait_for(lambda: source()["archivedUpTo"])
    wait_for(lambda: source()["attention"] == [])
    assert "The source is archived up to" in first_page(admin_user)
    assert manage.here("source_status").code == 0

    server.stop()
    before = source()["archivedUpTo"]
    assert api.post(f"{place}/sync").status_code == 202
    wait_for(lambda: source()["incomplete"])
    (told,) = source()["incomplete"]
    assert (told["mailbox"], told["folder"], told["code"]) == (name, None, "unavailable")
    assert told["since"] == before == source()["archivedUpTo"]
    # Twenty minutes pass.
    span = dt.timedelta(minutes=20)
    Mailbox.objects.update(last_synced_at=F("last_synced_at") - span)
    (reason,) = source()["attention"]
    assert reason["code"] == "late"
    assert "Connection refused" in reason["message"]
    page = first_page(admin_user)
    assert "Alice has not been reached since" in page
    assert "Active, late" in page
    status = manage.here("source_status", "Alice")
    assert status.code == 1
    assert "Connection refused" in status.stdout
    found = {f["name"]: f for f in manage.here("doctor", "--json").json()["findings"]}
    assert found["sources"]["state"] == "problem"
    assert "Alice has not been reached since" in found["sources"]["message"]

    server.start()
    server.append(name, "INBOX", b"Subject: second\r\n\r\nbody\r\n")
    assert api.post(f"{place}/sync").status_code == 202
    wait_for(lambda: source()["attention"] == [])
    wait_for(lambda: source()["messageCount"] == 2)
    wait_for(lambda: source()["incomplete"] == [])
    assert "The source is archived up to" in first_page(admin_user)
    assert manage.here("source_status", "Alice").code == 0
    found = {f["name"]: f for f in manage.here("doctor", "--json").json()["findings"]}
    assert found["sources"]["state"] == "ok"
