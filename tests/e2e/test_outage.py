"""A mail server that is gone for a while, a password that was changed there, a full disk, a database
that is gone, a worker that died: every place says so, and every place takes it back.
"""

import base64
import dataclasses
import datetime as dt
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone

from ingestion import tasks
from ingestion.models import Alert, AlertKind, AlertRule, IngestionSource, Mailbox, Run
from ingestion.services.operations import workers
from ingestion.services.operations.alerting import outage, watch
from tests.e2e.rows import LATER, a_mailbox, a_source
from tests.servers import receiver, stack
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
        state, message = self.doctor()
        assert (state, "Alice" in message) == ("problem", True)
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
    monkeypatch: pytest.MonkeyPatch,
) -> Places:
    # For so long doctor waits for all answers; these come from this machine.
    monkeypatch.setattr(workers, "PING_SECONDS", 0.3)
    settings.METRICS_TOKEN = "token"
    page = Client()
    page.force_login(admin_user)
    return Places(api, page, manage, wait_for)


@pytest.fixture
def disk(settings: Any) -> Iterator[Callable[[str], None]]:
    """The service's archive on a disk of its own; `disk("1g")` is how large that is from now on."""
    root = settings.ARCHIVE_DIR
    root.mkdir(exist_ok=True)

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(root)], check=True)

    mark = root / ".installation"  # of the archive, where a test before had one
    kept = mark.read_bytes() if mark.exists() else None
    mount("-t", "tmpfs", "-o", "size=8g", "none")
    if kept is not None:
        mark.write_bytes(kept)
    yield lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", "--lazy", str(root)], check=True)


@dataclasses.dataclass
class Account:
    """Alice's at the mail server, and the source that archives it."""

    server: Dovecot
    name: str
    config: dict[str, Any]
    places: Places

    def append(self, body: bytes) -> None:
        self.server.append(self.name, "INBOX", b"Subject: mail\r\n\r\n" + body)

    def sync(self) -> None:
        assert self.places.api.post(f"/ingestion/{self.places.pk}/sync").status_code == 202

    def has(self, messages: int) -> bool:
        source = self.places.source()
        return (source["messageCount"], source["incomplete"]) == (messages, [])


@pytest.fixture
def alice(places: Places, server: Dovecot, wait_for: Callable[..., Any]) -> Account:
    """The source Alice, with one message archived."""
    name, password = server.user()
    config = {
        "host": server.host, "port": server.port, "secure": False, "username": name,
        "password": password,
    }  # fmt: skip
    alice = Account(server, name, config, places)
    alice.append(b"first\r\n")
    given = {
        "name": "Alice", "provider": "generic_imap", "providerConfig": config, "autoImport": True,
        "options": {"syncIntervalSeconds": 30},
    }  # fmt: skip
    places.pk = places.api.post("/ingestion", json=given).json()["id"]
    wait_for(lambda: places.source()["archivedUpTo"])
    return alice


def half_a_minute_passes() -> None:
    times = ("failing_since", "last_synced_at", "last_mail_at")
    Mailbox.objects.update(**{name: F(name) - dt.timedelta(seconds=30) for name in times})


def test_a_server_that_is_gone_and_a_changed_password_are_told_everywhere_until_all_is_well(
    places: Places, alice: Account, wait_for: Callable[..., Any]
) -> None:
    def fails_with(code: str, words: str) -> None:
        before = places.source()["archivedUpTo"]  # or later: a look may be under way
        alice.sync()
        wait_for(lambda: places.source()["incomplete"])
        source = places.source()
        (told,) = source["incomplete"]
        assert (told["mailbox"], told["folder"], told["code"]) == (alice.name, None, code)
        assert before <= told["since"] == source["archivedUpTo"]
        half_a_minute_passes()
        places.say("failing", words, "Active, failing")
        assert "Alice has been failing since" in places.first_page()

    alice.server.stop()
    fails_with("unavailable", "Connection refused")
    alice.server.start()
    alice.append(b"second\r\n")
    alice.sync()
    wait_for(lambda: alice.has(2))
    places.take_it_back()

    alice.server.set_password(alice.name, "another")
    fails_with("needs_reauth", "check user name and password")
    changed = {"providerConfig": alice.config | {"password": "another"}}
    assert places.api.put(f"/ingestion/{places.pk}", json=changed).status_code == 200
    wait_for(lambda: alice.has(2))
    places.take_it_back()


def test_mailboxes_that_can_not_be_listed_are_told_everywhere_until_they_can(
    places: Places, owner: User
) -> None:
    """In a first import, and though one that came before the trouble was copied since."""
    source, now = a_source(owner, "Alice", status="importing"), timezone.now()
    places.pk, words = str(source.pk), "The directory does not answer."
    a_mailbox(source, last_synced_at=now)
    run = Run.objects.create(
        source=source, kind="import", warning=words, not_before=now + LATER,
        failing_since=now - dt.timedelta(minutes=1),
    )  # fmt: skip
    places.say("failing", words, "Importing, failing")
    Run.objects.filter(pk=run.pk).update(discovered_at=now, finished_at=now, status="completed")
    IngestionSource.objects.filter(pk=source.pk).update(status="active")
    places.take_it_back()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_a_full_disk_is_told_everywhere_until_there_is_room(
    disk: Callable[[str], None], places: Places, alice: Account, settings: Any,
    wait_for: Callable[..., Any],
) -> None:  # fmt: skip
    measured = 'ingestion_alerts{kind="archive.storage"} 1.0'

    def is_told() -> str:
        watch.look_at_service()  # which beat has done every 30 s
        told = Alert.objects.filter(kind="archive.storage", well_since=None, ended_at=None)
        return "".join(told.values_list("message", flat=True))

    assert is_told() == ""
    now = os.statvfs(settings.ARCHIVE_DIR)
    disk(str((now.f_blocks - now.f_bfree) * now.f_frsize))
    alice.append(base64.encodebytes(random.Random(1).randbytes(100_000)))
    alice.sync()
    wait_for(lambda: places.source()["incomplete"])
    half_a_minute_passes()
    places.say("failing", "No space left on device", "Active, failing")
    assert "The archive's disk is full" in is_told()
    assert "disk is full" in places.first_page()
    assert "disk is full" in places.manage.here("source_status").stdout
    state, message = places.doctor("storage")
    assert (state, "No space left on device" in message) == ("problem", True)
    assert measured in places.metrics()

    disk("8g")
    wait_for(lambda: alice.has(2))  # by itself
    places.take_it_back()
    assert is_told() == ""
    Alert.objects.update(well_since=F("well_since") - dt.timedelta(hours=1))
    assert is_told() == ""
    assert places.doctor("storage")[0] == "ok"
    assert measured not in places.metrics()


def test_a_database_that_is_gone_is_told_everywhere_until_it_is_back(
    places: Places, alice: Account, service: Service, admin_user: User,
    wait_for: Callable[..., Any],
) -> None:  # fmt: skip
    web = stack.client(
        service.url,
        cookies={"sessionid": places.page.cookies["sessionid"].value},
        headers={"Authorization": f"Bearer {service.env['METRICS_TOKEN']}"},
    )

    def asked(path: str) -> tuple[int, str]:
        answer = web.get(path)
        return answer.status_code, answer.text

    with receiver.running() as check, web:
        ping = {"way": "ping", "url": check.url, "kinds": AlertKind.values}
        AlertRule.objects.create(owner=admin_user, name="Ping", **ping)
        wait_for(lambda: [came.path for came in check.came] == ["/hook"])
        control_looks(gone_seconds=0)
        wait_for(lambda: cache.get(outage._GONE_SINCE_KEY) is None)
        with stack.database_gone():
            alice.append(b"second\r\n")
            code, page = asked("/admin/")
            assert (code, "database can&#x27;t be reached" in page) == (503, True)
            refused = places.api.get("/ingestion")
            assert (refused.status_code, refused.json()["errors"][0]["code"]) == (
                *(503, "service_unavailable"),
            )
            status = places.manage.here("source_status")
            assert (status.code, status.stdout) == (1, "")
            assert status.stderr.startswith("The database does not answer: ")
            state, words = places.doctor("database")
            assert (state, "PostgreSQL does not answer" in words) == ("problem", True)
            code, measured = asked("/metrics")
            assert (code, "ingestion_database_up 0.0" in measured) == (200, True)
            assert asked("/readyz") == (503, "database\n")
            control_looks(gone_seconds=30)
            wait_for(lambda: check.came[-1].path == "/hook/fail")
            assert b"The database has not answered since" in check.came[-1].body

        wait_for(lambda: asked("/readyz") == (200, "ok\n"))
        AlertRule.objects.update(not_before=Now())  # a minute passes
        wait_for(lambda: check.came[-1].path == "/hook")
        assert asked("/admin/")[0] == 200
        assert "ingestion_database_up 1.0" in asked("/metrics")[1]
    assert places.doctor("database")[0] == "ok"
    alice.sync()
    wait_for(lambda: alice.has(2))  # nothing was lost
    places.take_it_back()


def control_looks(*, gone_seconds: int) -> None:
    """Have `control` look at the database, as beat does every ten seconds: it has been gone so long
    already."""
    cache.set(outage._GONE_SINCE_KEY, time.time() - gone_seconds, timeout=None)
    tasks.look_at_database.apply_async()


def test_a_worker_that_starts_slowly_is_awaited_everywhere(
    places: Places, service: Service, wait_for: Callable[..., Any]
) -> None:
    supervised = service.supervised
    with supervised.standing_still("beat"), supervised.standing_still("worker"):
        service.kill("control")
        long_ago = time.time() - 3_600  # after a night in which all were stopped
        cache.set(workers._ANSWERED_KEY, {"sync": long_ago, "index": long_ago}, timeout=None)
        wait_for(lambda: places.doctor("queue control")[0] == "ok")
        watch.look_at_workers()  # which control does
        assert not Alert.objects.exists()
        state, message = places.doctor("queue sync")
        assert (state, "may be starting" in message) == ("warning", True)


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
        long_ago = time.time() - workers.SILENT_SECONDS
        cache.set(workers._ANSWERED_KEY, {"sync": long_ago}, timeout=None)  # so long it is so
        tasks.look_at_workers.apply_async()  # as beat does every ten seconds
        (told,) = wait_for(alerts)
        assert told.startswith(words)
        assert words in places.first_page()
        status = places.manage.here("source_status")
        assert (status.code, words in status.stdout) == (1, True)
        assert places.doctor("queue sync")[0] == "problem"
        assert measured in places.metrics()
    tasks.look_at_workers.apply_async()
    wait_for(lambda: Alert.objects.exclude(well_since=None).exists())
    # It is over once that has been so for a minute.
    Alert.objects.update(well_since=F("well_since") - dt.timedelta(minutes=1))
    tasks.look_at_workers.apply_async()
    wait_for(lambda: alerts() == [])
    assert words not in places.first_page()
    assert places.manage.here("source_status").code == 0
    assert wait_for(lambda: places.doctor("queue sync")[0]) == "ok"
    assert measured not in places.metrics()
