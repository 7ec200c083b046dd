"""What is committed is whole: pack before rows, one message for the same bytes, nothing after a group
that failed."""

import datetime as dt
import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from connectors.types import MessageRef, RawMessage, SpooledBody
from ingestion.errors import LeaseLost
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs.store import store
from ingestion.services.archive import housekeeping, reading, rebuild
from ingestion.services.engine import capture
from ingestion.services.engine.capture import Capture
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import (
    ACTOR,
    assert_exact,
    begun,
    due_now,
    fill,
    finish,
    start,
    work,
)
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


def hold_the_row(mailbox: Mailbox, locked: threading.Event, release: threading.Event) -> None:
    """Keep everybody from committing for the mailbox, in a thread, until `release` is set."""
    with transaction.atomic():
        Mailbox.objects.select_for_update().get(pk=mailbox.pk)
        locked.set()
        release.wait(50)  # less than a lock is waited for
    connection.close()


def test_the_same_bytes_are_one_message_also_while_the_first_is_being_committed(
    server: Server, source: IngestionSource
) -> None:
    server.page_size = 300
    for folder in ("INBOX", "Copies"):
        for number in range(300):
            server.deliver(folder, b"Subject: %d\r\n\r\nThe same.\r\n" % number)
    start(source)
    row = due_now()
    locked, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold_the_row, args=(row, locked, release))

    def hold_back(handed_out: int) -> None:
        if handed_out == 290:
            holder.start()
            assert locked.wait(120)
        elif handed_out == 590:  # by now it has looked for the first copies among what is archived
            release.set()

    server.before_message = hold_back
    finish(source)
    holder.join()
    assert Message.objects.count() == 300
    assert Placement.objects.count() == 600
    assert_exact(server, source)
    assert len(list(store().packs())) == 1


def commit_nothing(capture: Capture, folder: Folder) -> None:
    with capture.batch(folder) as batch:
        batch.commit()


def test_nothing_is_committed_beside_an_open_batch(source: IngestionSource) -> None:
    """What it has packed would be in another pack than its rows say."""
    run, mailbox, folder, held = begun(source)
    with held, Capture(held, store=store(), run=run, mailbox=mailbox) as capture:
        with capture.batch(folder) as one:
            one.add(RawMessage(MessageRef("1:1"), b"1"))
            with pytest.raises(RuntimeError, match="open"), capture.batch(folder) as other:
                other.commit()
            with pytest.raises(RuntimeError, match="open"):
                capture.wait()
            one.commit()
        capture.wait()
        assert Message.objects.get().pack_id == Pack.objects.get().pk


def test_what_is_left_uncommitted_is_dropped(source: IngestionSource) -> None:
    run, mailbox, folder, held = begun(source)
    spooled = tempfile.TemporaryFile()  # noqa: SIM115 - the engine closes it
    spooled.write(b"large")
    with held, Capture(held, store=store(), run=run, mailbox=mailbox) as capture:
        with pytest.raises(ZeroDivisionError), capture.batch(folder) as dropped:
            dropped.add(RawMessage(MessageRef("1:1"), SpooledBody(spooled, 5)))
            raise ZeroDivisionError
        assert spooled.closed
    assert not Message.objects.exists()
    assert list(store().packs()) == []


def test_a_pack_is_complete_before_it_is_committed(source: IngestionSource) -> None:
    """Also of messages of a batch that was dropped while they were on their way into it."""
    large = tempfile.TemporaryFile()  # noqa: SIM115 - the engine closes it
    large.write(10 * b"".join(b"%d, " % number for number in range(1_500_000)))
    run, mailbox, folder, held = begun(source)
    locked, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold_the_row, args=(mailbox, locked, release))
    with held, Capture(held, store=store(), run=run, mailbox=mailbox) as capture:
        holder.start()
        assert locked.wait(120)
        commit_nothing(capture, folder)  # its thread waits for the row: what follows is one group
        with capture.batch(folder) as kept:
            kept.add(RawMessage(MessageRef("1:1"), b"first"))
            kept.commit()
        with capture.batch(folder) as dropped:
            dropped.add(RawMessage(MessageRef("1:2"), SpooledBody(large, large.tell())))
        release.set()
    holder.join()
    pack = Pack.objects.get()
    path = next(Path(settings.ARCHIVE_DIR).rglob(f"{pack.pk}.pack"))
    assert path.stat().st_size == pack.size_bytes
    assert pack.message_count == Message.objects.count() == 1
    assert len(list(store().scan(source.pk, pack.pk))) > 1


def test_nothing_is_committed_after_a_group_that_failed(source: IngestionSource) -> None:
    """Groups wait in line, and their cursors stand behind the failed one's messages."""
    run, mailbox, folder, held = begun(source)
    locked, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold_the_row, args=(mailbox, locked, release))
    capture = Capture(held, store=store(), run=run, mailbox=mailbox)
    with held, pytest.raises(FileNotFoundError), capture:
        holder.start()
        assert locked.wait(120)
        commit_nothing(capture, folder)  # its thread waits for the row, and what follows for it
        for number in (1, 2):
            with capture.batch(folder) as one:
                one.add(RawMessage(MessageRef(f"1:{number}"), b"%d" % number))
                one.commit(cursor={"reached": number})
            if number == 1:
                capture._committer._hand_over()
                [partial] = Path(settings.ARCHIVE_DIR).rglob(".*.partial")
                partial.unlink()
        release.set()
    holder.join()
    folder.refresh_from_db()
    assert folder.cursor is None
    assert not Message.objects.exists()
    assert list(store().packs()) == []


def test_after_a_failure_that_was_told_nothing_more_is_taken(source: IngestionSource) -> None:
    """Whoever goes on all the same must not believe that it is archived."""
    run, mailbox, folder, held = begun(source)
    with held, Capture(held, store=store(), run=run, mailbox=mailbox) as capture:
        Mailbox.objects.update(lease_token=held.token + 1)
        with capture.batch(folder) as one:
            one.add(RawMessage(MessageRef("1:1"), b"1"))
            one.commit()
        with pytest.raises(LeaseLost):
            capture.wait()
        with capture.batch(folder) as two:
            two.add(RawMessage(MessageRef("1:2"), b"2"))
            with pytest.raises(RuntimeError, match="failed"):
                two.commit(cursor={"reached": 2})
    assert not Message.objects.exists()
    assert list(Path(settings.ARCHIVE_DIR).rglob(".*.partial")) == []


def test_large_answers_and_jobs_never_wait_for_each_other(
    server: Server, source: IngestionSource
) -> None:
    """More of both than a socket holds, while nobody reads the answers."""
    people = ", ".join(f"person.{number}@lists.example" for number in range(300))
    for number in range(1_500):
        server.deliver("INBOX", f"To: {people}\r\nSubject: {number}\r\n\r\n".encode())
    start(source)
    finish(source)
    assert Message.objects.count() == 1_500


def test_a_body_that_has_no_room_beside_the_others_is_exact(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a connector holds in memory: a part of the shared memory ends where the next does."""
    monkeypatch.setattr(capture, "PART_BYTES", 7_000_000)
    chance = random.Random(2)
    for _ in range(6):
        server.deliver("INBOX", chance.randbytes(3_900_000))
    start(source)
    work()
    assert Message.objects.count() == 6, "not at the first attempt"
    assert_exact(server, source)


def test_a_worker_that_lost_its_lease_can_not_commit(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)

    def steal(handed_out: int) -> None:
        if handed_out == 4:
            Mailbox.objects.update(lease_token=Mailbox.objects.get().lease_token + 1)

    server.before_message = steal
    start(source)
    work()
    assert not Message.objects.exists()
    assert not Pack.objects.exists()
    assert list(store().packs()) == []
    server.before_message = lambda _: None
    Mailbox.objects.update(lease_expires_at=None)
    finish(source)
    assert_exact(server, source)


def test_a_pack_without_its_transaction_is_collected_and_the_import_completes(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    with store().writer(source.pk) as writer:
        orphan = ('{"sha256":""}', b"bytes of a worker that died here")
        writer.append([orphan])
        writer.commit()
    start(source)
    finish(source)
    assert housekeeping.collect_orphans() == 0  # too young: its transaction may be under way
    assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 1
    assert_exact(server, source)


def test_a_pack_that_was_taken_in_while_its_worker_slept_stays(source: IngestionSource) -> None:
    """It slept for longer than its lease, between the pack and the pack's rows; and somebody made
    the rows of all packs again meanwhile."""
    run, mailbox, folder, held = begun(source)
    locked = threading.Event()

    def take_in() -> None:
        try:
            with transaction.atomic():
                Mailbox.objects.select_for_update().get(pk=mailbox.pk)
                locked.set()
                wait_for(lambda: any(not pack.partial for pack in store().packs()))
                Mailbox.objects.update(lease_expires_at=timezone.now())
                rebuild.rebuild(source, actor=ACTOR, on_damage=lambda it: pytest.fail(it.text))
        finally:
            connection.close()

    with (
        held,
        Capture(held, store=store(), run=run, mailbox=mailbox) as capture,
        ThreadPoolExecutor(1) as other,
    ):
        rebuilding = other.submit(take_in)
        assert locked.wait(120)
        with capture.batch(folder) as batch:
            batch.add(RawMessage(MessageRef("1:1"), b"1"))
            batch.commit()
        with pytest.raises(LeaseLost):
            capture.wait()
        rebuilding.result()
    assert reading.opened(Message.objects.get()) == b"1"
