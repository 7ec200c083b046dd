"""A mail server that is gone for a while, a password that was changed there, a worker that died:
every place says so, and every place takes it back.
"""

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db.models import F, QuerySet
from django.test import Client

from ingestion.models import Alert, Mailbox
from ingestion.services.operations.alerting import watch
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot
from tests.servers.stack import Service

pytestmark = pytest.mark.long(seconds=30)


@pytest.fixture
def server() -> Iterator[Dovecot]:
    """A Dovecot of the test's own, which it may stop."""
    with Dovecot() as dovecot:
        yield dovecot


@pytest.fixture
def manage(settings: Any) -> CommandLine:
    return CommandLine(settings.ARCHIVE_DIR)


@dataclasses.dataclass
class Places:
    """All that tells how the source "Alice" is: its pages, the API, two commands, `/metrics` and
    alerts."""

    api: httpx.Client
    page: Client
    manage: CommandLine
    wait_for: Callable[..., Any]
    pk: str = ""

    def source(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.api.get(f"/ingestion/{self.pk}").json()
        return shown

    def first_page(self) -> str:
        return self.page.get("/admin/").content.decode()

    def doctor(self, name: str = "sources") -> tuple[str, str]:
        found = self.manage.here("doctor", "--json").json()["findings"]
        finding = next(one for one in found if one["name"] == name)
        return finding["state"], finding["message"]

    def metrics(self) -> list[str]:
        text = self.page.get("/metrics", headers={"Authorization": "Bearer token"})
        return text.content.decode().splitlines()

    def _measured(self) -> list[str]:
        return [s for s in self.metrics() if self.pk in s and "needs_attention{" in s]

    def _alerts(self) -> QuerySet[Alert]:
        watch.look_at_sources()  # which beat has done every 10 s
        return Alert.objects.filter(source__pk=self.pk, kind="source.attention")

    def say(self, code: str, words: str, badge: str) -> None:
        """Expect that each place says so: `words` are the server's own."""
        (told,) = self.wait_for(lambda: self.source()["attention"])
        assert (told["code"], words in told["message"]) == (code, True), told
        page = self.first_page()
        assert words in page
        assert badge in page
        status = self.manage.here("source_status", "Alice")
        assert (status.code, words in status.stdout) == (1, True)
        assert self.doctor()[0] == "problem"
        assert "Alice" in self.doctor()[1]
        (sample,) = self._measured()
        assert f'code="{code}"' in sample
        assert words in self._alerts().get(ended_at=None).message

    def take_it_back(self) -> None:
        """Expect that no place says so any more."""
        self.wait_for(lambda: self.source()["attention"] == [])
        assert "The source is archived up to" in self.first_page()
        assert self.manage.here("source_status", "Alice").code == 0
        assert self.doctor()[0] == "ok"
        assert self._measured() == []
        # An alert is over once that has been so for a while.
        self._alerts().update(well_since=F("well_since") - dt.timedelta(hours=1))
        assert not self._alerts().filter(ended_at=None).exists()


@pytest.fixture
def places(
    api: httpx.Client,
    admin_user: User,
    manage: CommandLine,
    wait_for: Callable[..., Any],
    settings: Any,
) -> Places:
    settings.METRICS_TOKEN = "token"
    page = Client()
    page.force_login(admin_user)
    return Places(api, page, manage, wait_for)


def half_a_minute_passes() -> None:
    times = ("failing_since", "last_synced_at", "last_mail_at")
    Mailbox.objects.update(**{name: F(name) - dt.timedelta(seconds=30) for name in times})


def test_a_server_that_is_gone_and_a_changed_password_are_told_everywhere_until_all_is_well(
    places: Places, api: httpx.Client, server: Dovecot, wait_for: Callable[..., Any]
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
    places.pk = made["id"]
    sync, source = f"/ingestion/{places.pk}/sync", places.source
    wait_for(lambda: source()["archivedUpTo"])
    places.take_it_back()

    def fails_with(code: str, words: str) -> None:
        before = source()["archivedUpTo"]
        assert api.post(sync).status_code == 202
        wait_for(lambda: source()["incomplete"])
        (told,) = source()["incomplete"]
        assert (told["mailbox"], told["folder"], told["code"]) == (name, None, code)
        assert told["since"] == before == source()["archivedUpTo"]
        half_a_minute_passes()
        places.say("failing", words, "Active, failing")
        assert "Alice fails since" in places.first_page()

    server.stop()
    fails_with("unavailable", "Connection refused")
    server.start()
    server.append(name, "INBOX", b"Subject: second\r\n\r\nbody\r\n")
    assert api.post(sync).status_code == 202
    wait_for(lambda: source()["messageCount"] == 2)
    wait_for(lambda: source()["incomplete"] == [])
    places.take_it_back()

    server.set_password(name, "another")
    fails_with("needs_reauth", "check user name and password")
    changed = {"providerConfig": config | {"password": "another"}}
    assert api.put(f"/ingestion/{places.pk}", json=changed).status_code == 200
    wait_for(lambda: source()["incomplete"] == [])
    places.take_it_back()


def test_a_worker_that_is_gone_is_told_everywhere_until_it_is_back(
    places: Places,
    service: Service,
    admin_user: User,
    make_key: Callable[..., str],
    wait_for: Callable[..., Any],
) -> None:
    words, measured = (
        "No worker serves the queue sync",
        'ingestion_alerts{kind="workers.silent"} 1.0',
    )

    key = {"Authorization": f"Bearer {make_key(admin_user)}"}

    def alerts() -> list[str]:
        found = places.api.get("/alerts?open=true", headers=key).json()
        return [alert["message"] for alert in found]

    assert alerts() == []
    with service.supervised.standing_still("worker"):
        long_ago = time.time() - watch._SILENT_SECONDS
        cache.set(watch._SERVED_KEY, {"sync": long_ago}, timeout=None)  # so long it is so
        (told,) = wait_for(alerts)
        assert told.startswith(words)
        assert words in places.first_page()
        status = places.manage.here("source_status")
        assert (status.code, words in status.stdout) == (1, True)
        assert places.doctor("queue sync")[0] == "problem"
        assert measured in places.metrics()
    wait_for(lambda: Alert.objects.exclude(well_since=None).exists())
    # It is over once that has been so for a minute.
    Alert.objects.update(well_since=F("well_since") - dt.timedelta(minutes=1))
    wait_for(lambda: alerts() == [])
    assert words not in places.first_page()
    assert places.manage.here("source_status").code == 0
    assert wait_for(lambda: places.doctor("queue sync")[0]) == "ok"
    assert measured not in places.metrics()
