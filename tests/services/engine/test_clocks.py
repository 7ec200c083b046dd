"""Clocks that are wrong: only the database's decides what is due, and it may have been wrong too."""

import datetime as dt
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db.models import Model
from django.utils import timezone

from ingestion.models import (
    Alert,
    AlertRule,
    Export,
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
    Run,
    WebhookDelivery,
    WebhookEndpoint,
)
from ingestion.services.engine import clocks, due_work
from tests.e2e.rows import a_folder, a_mailbox, a_source
from tests.servers import imap_source
from tests.servers.command_line import CommandLine
from tests.servers.imap_script import Client, ImapScript
from tests.servers.imap_source import archived, held_by

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        for number in range(40):
            script.inbox.deliver(b"Subject: %d\r\n\r\n" % number)
        yield script


@pytest.fixture
def faketime() -> str:
    """What goes before the other libraries, so that a process sees another time."""
    found = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.fail("This test needs libfaketime: apt-get install faketime", pytrace=False)
    return str(found[0])


@pytest.mark.parametrize("off", ["+1h", "-1h"])
def test_a_worker_whose_clock_is_an_hour_off(
    manage: CommandLine, server: ImapScript, faketime: str, off: str
) -> None:
    """What it has to wait for after a drop is as long as it should be. By its own clock that would
    be nothing, or an hour: longer than a test may take."""
    source = imap_source.create(server)
    dropped_at: list[float] = []
    back_at: list[float] = []

    def drop(client: Client, uid: int) -> None:
        if uid == 20 and not dropped_at:
            dropped_at.append(time.monotonic())
            client.hang_up()

    def note(_client: Client, _tag: bytes, command: bytes) -> bool:
        if dropped_at and command.startswith(b"LOGIN "):
            back_at.append(time.monotonic())
        return False

    server.before_each_mail = drop
    server.hooks.append(note)
    done = manage("import_source", str(source.pk), "--now", LD_PRELOAD=faketime, FAKETIME=off)
    assert done.code == 0, done.stderr
    assert back_at[0] - dropped_at[0] > 1.5
    assert archived(source) == held_by(server)
    assert Message.objects.count() == 40
    source = IngestionSource.objects.get()
    assert source.next_sync_at is not None
    assert source.last_sync_finished_at is not None
    waits = source.next_sync_at - source.last_sync_finished_at
    assert abs(waits.total_seconds() - 300) < 5


def waiting(owner: User, ahead: dt.timedelta) -> None:
    """One of each that waits, for a time that is `ahead`."""
    then = timezone.now() + ahead
    idle = {"next_sync_at": None, "check_not_before": timezone.now()}
    a_source(owner, "scheduled", **(idle | {"next_sync_at": then}))
    a_source(owner, "checked", **(idle | {"status": "pending_auth", "check_not_before": then}))
    listing = a_source(owner, "listing", **(idle | {"status": "importing"}))
    Run.objects.create(source=listing, kind="import", not_before=then)
    source = a_source(owner, "importing", **(idle | {"status": "importing"}))
    run = Run.objects.create(source=source, kind="import", discovered_at=timezone.now())
    mailbox = a_mailbox(source, run=run, not_before=then, last_error_code="rate_limited")
    folder = a_folder(mailbox, not_before=then, failing_since=timezone.now())
    FailedMessage.objects.create(mailbox=mailbox, folder=folder, remote_id="1:1", not_before=then)
    pack = Pack.objects.create(
        id=uuid.uuid4(), source=source, size_bytes=1, message_count=1, index_not_before=then
    )
    message = Message.objects.create(
        mailbox=mailbox, sha256=b"", size_bytes=1, pack=pack, pack_offset=0, pack_length=1
    )
    Placement.objects.create(mailbox=mailbox, folder=folder, message=message, remote_id="1")
    Export.objects.create(owner=owner, format="eml", of_all_mail=False, not_before=then)
    hook = WebhookEndpoint.objects.create(
        owner=owner,
        url="http://127.0.0.1/",
        events=["archive.changed"],
        ring_not_before=then,
        silent_until=then,
    )
    WebhookDelivery.objects.create(endpoint=hook, event="run.finished", data={}, not_before=then)
    AlertRule.objects.create(owner=owner, name="All", way="ping", kinds=[], not_before=then)


def handed_out() -> list[str]:
    return sorted(work.kind for work in due_work.hand_out())


def test_what_waits_for_a_time_that_cannot_be_is_due(owner: User) -> None:
    """The database's clock was a year ahead for a moment, and what happened then was stored."""
    waiting(owner, dt.timedelta(days=365))
    assert handed_out() == []
    assert clocks.bring_back() == 12
    assert handed_out() == sorted(due_work.KINDS.keys() - {"delete"})  # which waits for no time
    assert Folder.objects.get().not_before is None
    assert FailedMessage.objects.get().not_before <= timezone.now()
    assert clocks.bring_back() == 0


def test_what_waits_as_long_as_it_may_goes_on_waiting(owner: User) -> None:
    waiting(owner, dt.timedelta(hours=26))  # what a server may ask for
    IngestionSource.objects.filter(name="scheduled").update(
        options={"syncIntervalSeconds": 7 * 86_400},
        next_sync_at=timezone.now() + dt.timedelta(days=7),
    )
    assert clocks.bring_back() == 0
    assert handed_out() == []


@pytest.mark.parametrize(
    ("model", "column"),
    [
        (IngestionSource, "imported_at"),
        (Run, "started_at"),
        (Run, "finished_at"),
        (Run, "asked_at"),
        (Mailbox, "not_before"),
        (Mailbox, "last_synced_at"),
        (Folder, "followed_at"),
        (Folder, "missing_since"),
        (Alert, "well_since"),
    ],
)
def test_nothing_was_done_in_the_future(owner: User, model: type[Model], column: str) -> None:
    """It would count as fresh, as followed by this sync and the next, or as not over, until that
    time; and a run as one that took until then."""
    now = timezone.now()
    source = a_source(owner, next_sync_at=None, check_not_before=now)
    a_folder(a_mailbox(source, not_before=now))
    Run.objects.create(source=source, kind="import", not_before=now)
    Alert.objects.create(kind="source_attention", source=source)
    rows = model._default_manager
    rows.update(**{column: timezone.now() + dt.timedelta(hours=1)})
    assert clocks.bring_back() == 1
    at = getattr(rows.get(), column)
    assert at is None or at <= timezone.now()
