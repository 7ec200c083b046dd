"""The sync engine on a real PostgreSQL and a real archive, against a provider with faults."""

import concurrent.futures
import datetime as dt
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from connectors.errors import (
    CursorExpired,
    Fatal,
    MailboxUnavailable,
    MessageRefused,
    NeedsReauth,
    Unavailable,
)
from connectors.types import Body, MessageRef, RawMessage, SpooledBody
from ingestion.errors import LeaseLost, NotAllowedNow
from ingestion.models import (
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
    Run,
    StatusChange,
)
from ingestion.packs import format as pack_format
from ingestion.packs.store import Extent, store
from ingestion.services.archive import housekeeping
from ingestion.services.audit import Actor
from ingestion.services.engine import (
    capture,
    commit,
    due_work,
    failures,
    lease,
    outcomes,
    statements,
    sync,
)
from ingestion.services.engine.capture import Capture
from ingestion.services.engine.commit import Batch, Committer
from ingestion.services.sources import deletion, discovery, sources
from tests.servers import scripted_provider
from tests.servers.scripted_provider import Server
from tests.servers.stack import wait_for

pytestmark = pytest.mark.django_db(transaction=True)
ACTOR = Actor.system("test")


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_provider.installed() as installed:
        yield installed


@pytest.fixture(autouse=True)
def archive(settings: pytest.FixtureRequest, tmp_path: Path) -> None:
    settings.ARCHIVE_DIR = tmp_path / "archive"  # type: ignore[attr-defined] # pytest-django's


@pytest.fixture
def source(server: Server) -> IngestionSource:
    return sources.create(
        owner=User.objects.create_user("engine"),
        name="Scripted",
        provider=scripted_provider.SLUG,
        provider_config={"password": "secret"},
        actor=ACTOR,
    )


def body(number: int) -> bytes:
    return b"Subject: %d\r\nMessage-ID: <same@example.com>\r\n\r\nBody %d\r\n" % (number, number)


def start(source: IngestionSource) -> Run:
    """Start an import and do its check and listing, so that the mailbox is due."""
    run = sources.start_import(source, actor=ACTOR)
    sources.verify(source, actor=ACTOR)
    discovery.discover(run.pk)
    return run


def due_now() -> Mailbox:
    """Return the mailbox, with its wait over."""
    Mailbox.objects.update(not_before=timezone.now() - dt.timedelta(seconds=1))
    return Mailbox.objects.get()


def work() -> None:
    """Give the mailbox one slice of work, as a worker does."""
    sync.sync_mailbox(due_now().pk)


def begun(source: IngestionSource) -> tuple[Run, Mailbox, Folder, lease.Lease]:
    """Return what a worker has in hand when it comes to an empty folder."""
    run = start(source)
    mailbox = due_now()
    folder = Folder.objects.create(mailbox=mailbox, remote_id="INBOX", path="INBOX")
    held = lease.acquire(mailbox.pk)
    assert held is not None
    return run, mailbox, folder, held


def finish(source: IngestionSource) -> Run:
    for _ in range(60):
        work()
        run = Run.objects.filter(source=source).latest("started_at")
        if run.finished_at:
            return run
    raise AssertionError("the run does not finish")


def synced(source: IngestionSource) -> Run:
    run = sources.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    return finish(source)


def archived(source: IngestionSource) -> dict[tuple[str, str], Body]:
    """Read back, through the verified path, what is placed now: (folder, remote id) -> bytes."""
    found: dict[tuple[str, str], Body] = {}
    for placement in Placement.objects.filter(removed_at=None).select_related("message", "folder"):
        message = placement.message
        found[(placement.folder.remote_id, placement.remote_id)] = store().open(
            source.pk,
            message.pack_id,
            Extent(message.pack_offset, message.pack_length),
            sha256=bytes(message.sha256),
            size=message.size_bytes,
        )
    return found


def held_by(server: Server) -> dict[tuple[str, str], Body]:
    return {
        (name, f"{server.validity[name]}:{uid}"): mail.body
        for name, mails in server.folders.items()
        for uid, mail in mails.items()
    }


def assert_exact(server: Server, source: IngestionSource) -> None:
    assert archived(source) == held_by(server)
    source.refresh_from_db()
    assert source.message_count == Message.objects.count()
    assert source.archived_bytes == sum(Message.objects.values_list("size_bytes", flat=True))


def fill(server: Server, count: int = 40, folder: str = "INBOX") -> None:
    for number in range(count):
        server.deliver(folder, body(number))


def test_an_import_is_exact_and_a_second_sync_downloads_nothing(
    server: Server, source: IngestionSource
) -> None:
    fill(server)
    fill(server, 25, "Sent")
    server.deliver("Smallest", b"\n")
    start(source)
    run = finish(source)
    assert run.message == "41 archived, 25 recognised."  # Sent has the bytes of INBOX
    assert (run.messages_total, run.messages_done, run.mailboxes_done) == (66, 66, 1)
    assert_exact(server, source)
    assert source.status == "active"
    server.fetched.clear()
    assert synced(source).message == "0 archived."
    assert server.fetched == []


def test_a_failure_is_forgotten_when_its_message_is_gone(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    fill(server, 5, "Old")
    fill(server, 5, "Renumbered")
    for name in ("1:2", "1:3"):
        server.refused[name] = MessageRefused("The server said NO to this message.")
    start(source)
    finish(source)
    assert FailedMessage.objects.count() == 6
    del server.folders["INBOX"][2]
    del server.folders["Old"]
    server.refused.clear()
    server.renumber("Renumbered")
    synced(source)
    assert FailedMessage.objects.values_list("folder__path", "remote_id").get() == ("INBOX", "1:3")


def test_a_message_that_failed_is_placed_with_the_labels_of_today(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    server.refused["1:2"] = MessageRefused("The server said NO to this message.")
    start(source)
    finish(source)
    server.folders["INBOX"][2].labels = ("\\Seen",)
    synced(source)
    server.refused.clear()
    failures.retry(source, actor=ACTOR)
    synced(source)
    assert Placement.objects.get(remote_id="1:2").labels == ["\\Seen"]


def test_a_message_that_failed_and_came_in_the_same_run_is_no_failure_of_it(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 20)
    server.refused["1:2"] = MessageRefused("The server said NO to this message.")
    server.refused["1:3"] = MessageRefused("The server said NO to this message.")
    start(source)
    assert sync.sync_mailbox(due_now().pk, slice_seconds=0)  # a page
    assert Run.objects.get().messages_failed == 2
    del server.refused["1:2"]
    FailedMessage.objects.update(not_before=timezone.now())
    run = finish(source)
    assert run.message == "19 archived, 1 failed."
    assert (run.messages_done, run.messages_failed, run.messages_total) == (19, 1, 20)


def test_a_failures_size_that_is_found_out_later_is_kept(source: IngestionSource) -> None:
    """One that is too large is downloaded once to find out, not each time."""
    start(source)
    mailbox = due_now()
    folder = Folder.objects.create(mailbox=mailbox, remote_id="INBOX", path="INBOX")
    for size_bytes in (None, 5, None):
        ref = MessageRef("1:1", size_bytes, labels=None)
        statements.upsert_failure(
            mailbox.pk, folder.pk, ref, code="x", reason="", attempts=1, wait=dt.timedelta()
        )
    assert FailedMessage.objects.get().size_bytes == 5


def test_any_number_of_failures_is_tried_again_in_batches(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "_RETRY_ROWS", 2)
    fill(server, 5)
    fill(server, 4, "Other")
    for uid in range(1, 6):
        server.refused[f"1:{uid}"] = MessageRefused("The server said NO to this message.")
    start(source)
    finish(source)
    assert FailedMessage.objects.count() == 9
    del server.refused["1:2"], server.refused["1:5"]
    FailedMessage.objects.update(not_before=timezone.now())
    assert synced(source).message == "2 archived, 1 recognised."
    assert set(FailedMessage.objects.values_list("attempts", flat=True)) == {2}
    server.refused.clear()
    failures.retry(source, actor=ACTOR)
    assert synced(source).message == "3 archived, 3 recognised."
    assert_exact(server, source)


def test_a_message_that_the_reply_misses_is_an_error_and_the_cursor_stays(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    server.unanswered.add("1:3")
    start(source)
    work()
    assert Mailbox.objects.get().last_error_code == "short_reply"
    assert Folder.objects.get().cursor is None
    server.unanswered.clear()
    finish(source)
    assert_exact(server, source)


def test_a_message_deleted_before_download_is_counted_and_not_failed(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)

    def expunge(handed_out: int) -> None:
        if handed_out == 2:
            server.folders["INBOX"].pop(4, None)

    server.before_message = expunge
    start(source)
    assert finish(source).message == "4 archived, 1 deleted at the provider meanwhile."
    assert_exact(server, source)


def test_an_expired_cursor_relists_and_doubles_nothing(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 25)
    start(source)
    finish(source)
    del server.folders["INBOX"][3]
    server.renumber("INBOX")
    server.deliver("INBOX", body(99))
    synced(source)
    assert Message.objects.count() == 26  # the removed one stays archived
    assert_exact(server, source)


def test_a_first_listing_that_expires_leaves_no_placement_of_before(
    server: Server, source: IngestionSource
) -> None:
    server.page_size = 5
    fill(server, 15)

    def renumber(handed_out: int) -> None:
        if handed_out == 7 and server.validity["INBOX"] == 1:
            server.renumber("INBOX")
            raise CursorExpired("The folder was renumbered.")

    server.before_message = renumber
    start(source)
    finish(source)
    assert_exact(server, source)


def labels_in(folder: str) -> dict[str, list[str]]:
    return dict(Placement.objects.filter(folder__path=folder).values_list("remote_id", "labels"))


def test_a_listing_without_labels_that_begins_again_tells_those_of_today(
    server: Server, source: IngestionSource
) -> None:
    """What is archived is described, and downloaded no second time; the rest comes with its own."""
    server.lists_bare = True
    fill(server, 5)
    server.folders["INBOX"][2].labels = ("\\Seen",)
    start(source)
    finish(source)
    assert server.described == []
    assert labels_in("INBOX")["1:2"] == ["\\Seen"]
    Folder.objects.update(cursor=None)  # as by an older release, or a listing that ended early
    server.folders["INBOX"][2].labels = ()
    server.folders["INBOX"][4].labels = ("\\Flagged",)
    fill(server, 1)
    server.fetched.clear()
    synced(source)
    assert server.fetched == ["INBOX/1:6"]
    assert server.described == [f"1:{uid}" for uid in range(1, 6)]
    told = {"1:1": [], "1:2": [], "1:3": [], "1:4": ["\\Flagged"], "1:5": [], "1:6": []}
    assert labels_in("INBOX") == told


def test_what_can_not_be_described_keeps_its_labels(
    server: Server, source: IngestionSource
) -> None:
    server.lists_bare = True
    fill(server, 2)
    server.folders["INBOX"][1].labels = ("\\Seen",)
    start(source)
    finish(source)
    Folder.objects.update(cursor=None)
    server.undescribed = True
    assert synced(source).message == "0 archived."
    assert labels_in("INBOX") == {"1:1": ["\\Seen"], "1:2": []}


def test_a_stable_id_saves_the_second_download(server: Server, source: IngestionSource) -> None:
    server.deliver("INBOX", body(1), stable_id="E1")
    start(source)
    finish(source)
    server.deliver("Archive", body(1), stable_id="E1")
    server.fetched.clear()
    synced(source)
    assert server.fetched == []
    assert_exact(server, source)


def test_removals_labels_and_vanished_folders_are_followed(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    fill(server, 3, "Old")
    start(source)
    finish(source)
    del server.folders["INBOX"][2]
    server.folders["INBOX"][1].labels = ("\\Seen",)
    del server.folders["Old"]
    synced(source)
    assert_exact(server, source)
    assert Message.objects.count() == 5
    gone = Placement.objects.get(remote_id="1:2", folder__path="INBOX")
    assert gone.removed_at is not None
    assert Placement.objects.get(remote_id="1:1", folder__path="INBOX").labels == ["\\Seen"]
    assert Folder.objects.get(path="Old").removed_at is not None
    fill(server, 3, "Old")
    synced(source)
    assert_exact(server, source)


def test_a_sweep_reads_no_other_folders_rows(server: Server, source: IngestionSource) -> None:
    for folder in ("INBOX", "Other"):
        fill(server, 1, folder)
    start(source)
    finish(source)
    for path, count in (("Other", 100_000), ("INBOX", 10_000)):  # the table's last are INBOX's
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")  # the references are right
            cursor.execute(
                """INSERT INTO ingestion_placement
                     (mailbox_id, folder_id, message_id, remote_id, stable_id, thread_id, labels)
                   SELECT p.mailbox_id, folder_id, message_id, '0:' || n, '', '', '{}'
                     FROM ingestion_placement p JOIN ingestion_folder f ON f.id = p.folder_id,
                          generate_series(1, %s) AS n WHERE path = %s""",
                (count, path),
            )
            cursor.execute("SET session_replication_role = origin")
            cursor.execute("ANALYZE ingestion_placement")
    server.deliver("INBOX", body(9))
    with CaptureQueriesContext(connection) as queries:
        synced(source)
    assert Placement.objects.filter(folder__path="INBOX", removed_at=None).count() == 2
    swept = [q["sql"] for q in queries if "removed_at" in q["sql"] and " LIMIT 5000" in q["sql"]]
    assert len(swept) == 4  # two full, one of the rest, one that finds no more
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + swept[0].replace("%", "%%"), [])
        assert "placement_identity" in str(cursor.fetchall())


def test_a_label_may_hold_half_a_character(server: Server, source: IngestionSource) -> None:
    """As JSON can name it; no database takes it, and the mailbox must not stop at it."""
    fill(server, 1)
    start(source)
    finish(source)
    labels = ("half \ud83d", "whole \U0001f600", "NUL \0")
    statements.relabel(Folder.objects.get().pk, [("1:1", labels)])
    assert Placement.objects.get().labels == ["half ?", "whole \U0001f600", "NUL "]


@pytest.mark.parametrize("fresh", [True, False])
def test_what_a_provider_calls_things_may_hold_any_character(
    server: Server, source: IngestionSource, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what ends a column, a row or the data in PostgreSQL's text formats: there are two."""
    monkeypatch.setattr(statements, "_WORTH_A_COPY", 0)
    fill(server, 1)
    start(source)
    finish(source)
    message, mailbox = Message.objects.get(), Mailbox.objects.get()
    folder = Folder.objects.create(mailbox=mailbox, remote_id="Odd", path="Odd")
    odd = ["\\N", "\\.", 'a "b"', "{c}", "d,e", "tab\tline\nreturn\r", "half \ud83d", "NUL \0", "é"]
    refs = [MessageRef(text, None, text, text, labels=(text, "\\Seen")) for text in odd]
    rows = [(ref, message.pk.hex) for ref in refs]
    assert statements.upsert_placements(mailbox.pk, folder.pk, rows, fresh=fresh) == len(odd)
    found = Placement.objects.filter(folder=folder).order_by("pk")
    kept = [text.replace("\ud83d", "?").replace("\0", "") for text in odd]
    assert list(found.values_list("remote_id", "stable_id", "thread_id", "labels")) == [
        (text, text, text, [text, "\\Seen"]) for text in kept
    ]


def hold_the_row(mailbox: Mailbox, locked: threading.Event, release: threading.Event) -> None:
    """Keep everybody from committing for the mailbox, in a thread, until `release` is set."""
    with transaction.atomic():
        Mailbox.objects.select_for_update().get(pk=mailbox.pk)
        locked.set()
        release.wait(20)
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
            locked.wait(20)
        elif handed_out == 590:  # by now it has looked for the first copies among what is archived
            release.set()

    server.before_message = hold_back
    finish(source)
    holder.join()
    assert Message.objects.count() == 300
    assert Placement.objects.count() == 600
    assert_exact(server, source)
    assert len(list(store().packs())) == 1


def test_a_sync_asked_for_when_a_run_has_nothing_left_to_do_is_a_new_one(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    settled = sources.start_sync(source, actor=ACTOR)
    Run.objects.filter(pk=settled.pk).update(discovered_at=timezone.now())  # and not yet finished
    asked = sources.start_sync(source, actor=ACTOR)
    assert asked.pk != settled.pk
    settled.refresh_from_db()
    assert settled.status == "completed"


def test_a_worker_of_a_run_that_ended_settles_nothing_of_the_next_one(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    held = lease.acquire(due_now().pk)
    assert held is not None
    mailbox, first = Mailbox.objects.get(), Run.objects.get()
    source.refresh_from_db()
    with transaction.atomic():
        sources.fail(source, "The password was changed.", actor="test")
    second = sources.start_import(source, actor=ACTOR)
    sources.verify(source, actor=ACTOR)
    discovery.discover(second.pk)
    assert second.pk != first.pk
    outcomes.settle(held, mailbox, first)
    outcomes.act_on(Unavailable("Busy."), held, mailbox, first)
    assert Mailbox.objects.get().run_id == second.pk
    second.refresh_from_db()
    assert (second.mailboxes_done, second.warning) == (0, "")


def test_a_pack_is_complete_before_it_is_committed(source: IngestionSource) -> None:
    """Also of messages of a batch that was dropped while they were on their way into it."""
    large = tempfile.TemporaryFile()  # noqa: SIM115 - the engine closes it
    large.write(b"".join(b"%d, " % number for number in range(15_000_000)))
    run, mailbox, folder, held = begun(source)
    locked, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold_the_row, args=(mailbox, locked, release))
    with held, Committer(held, store=store(), run=run, mailbox=mailbox) as committer:
        holder.start()
        locked.wait(20)
        committer.submit(Batch(folder))  # its thread waits for the row: what follows is one group
        kept = Capture(committer, mailbox=mailbox, folder=folder)
        kept.add(RawMessage(MessageRef("1:1"), b"first"))
        kept.commit()
        dropped = Capture(committer, mailbox=mailbox, folder=folder)
        dropped.add(RawMessage(MessageRef("1:2"), SpooledBody(large, large.tell())))
        dropped.abandon()
        release.set()
    holder.join()
    pack = Pack.objects.get()
    path = Path(store().root) / str(source.pk) / f"{pack.pk}.pack"
    assert path.stat().st_size == pack.size_bytes
    assert pack.message_count == Message.objects.count() == 1
    assert len(list(store().scan(source.pk, pack.pk))) > 1


def test_nothing_is_committed_after_a_group_that_failed(source: IngestionSource) -> None:
    """Groups wait in line, and their cursors stand behind the failed one's messages."""
    run, mailbox, folder, held = begun(source)
    locked, release = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold_the_row, args=(mailbox, locked, release))
    committer = Committer(held, store=store(), run=run, mailbox=mailbox)
    with held, pytest.raises(FileNotFoundError), committer:
        holder.start()
        locked.wait(20)
        committer.submit(Batch(folder))  # its thread waits for the row, and what follows for it
        for number in (1, 2):
            one = Capture(committer, mailbox=mailbox, folder=folder)
            one.add(RawMessage(MessageRef(f"1:{number}"), b"%d" % number))
            one.commit(cursor={"reached": number})
            if number == 1:
                committer._hand_over()
                [partial] = Path(store().root).glob("*/.*.partial")
                partial.unlink()
        release.set()
    holder.join()
    folder.refresh_from_db()
    assert folder.cursor is None
    assert not Message.objects.exists()
    assert list(store().packs()) == []


def test_a_committer_that_told_of_a_failure_takes_nothing_more(source: IngestionSource) -> None:
    """Whoever goes on all the same must not believe that it is archived."""
    run, mailbox, folder, held = begun(source)
    with held, Committer(held, store=store(), run=run, mailbox=mailbox) as committer:
        Mailbox.objects.update(lease_token=held.token + 1)
        one = Capture(committer, mailbox=mailbox, folder=folder)
        one.add(RawMessage(MessageRef("1:1"), b"1"))
        one.commit()
        with pytest.raises(LeaseLost):
            committer.wait()
        one.add(RawMessage(MessageRef("1:2"), b"2"))
        with pytest.raises(RuntimeError):
            one.commit(cursor={"reached": 2})
    assert not Message.objects.exists()
    assert list(Path(store().root).glob("*/.*.partial")) == []


def test_what_a_provider_lists_twice_in_a_fresh_folder_is_placed_and_counted_once(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch can't be copied as it is, and the group is committed all the same."""
    monkeypatch.setattr(statements, "_WORTH_A_COPY", 0)
    run, mailbox, folder, held = begun(source)
    with held, Committer(held, store=store(), run=run, mailbox=mailbox) as committer:
        one = Capture(committer, mailbox=mailbox, folder=folder, fresh=True)
        for uids, labels in (((1, 2), ()), ((2, 3), ("\\Seen",))):
            for uid in uids:
                one.add(RawMessage(MessageRef(f"1:{uid}", labels=labels), b"%d" % uid))
            one.commit()
    run.refresh_from_db()
    assert (run.messages_done, run.messages_new) == (3, 3)
    assert labels_in("INBOX") == {"1:1": [], "1:2": ["\\Seen"], "1:3": ["\\Seen"]}


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


def test_a_lease_is_exclusive_expires_and_survives_a_clock_set_back(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    mailbox = due_now()
    first = lease.acquire(mailbox.pk)
    assert first is not None
    assert lease.acquire(mailbox.pk) is None
    for expires in (dt.timedelta(seconds=-1), dt.timedelta(hours=1)):
        Mailbox.objects.update(lease_expires_at=timezone.now() + expires)
        other = lease.acquire(mailbox.pk)
        assert other is not None
    with pytest.raises(LeaseLost), transaction.atomic():
        first.fence()


def test_the_lease_of_a_worker_that_died_is_free_at_once(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    mailbox = due_now()

    def die() -> None:
        lease.acquire(mailbox.pk)
        connection.close()  # as the end of a process does

    worker = threading.Thread(target=die)
    worker.start()
    worker.join()
    row = Mailbox.objects.get()
    assert row.lease_expires_at is not None
    assert row.lease_expires_at > timezone.now()
    wait_for(lambda: due_work.Doorbell("mailbox", mailbox.pk) in due_work.due())
    assert lease.acquire(mailbox.pk) is not None
    assert list(due_work.due()) == []


def die_at_work() -> None:
    """Leave the mailbox's lease behind, as a worker that was killed does."""
    pk = due_now().pk

    def die() -> None:
        wait_for(lambda: lease.acquire(pk))  # PostgreSQL may not have missed the last one yet
        connection.close()

    dead = threading.Thread(target=die)
    dead.start()
    dead.join()


def work_as_soon_as_it_is_free() -> None:
    """PostgreSQL may not have missed the last worker yet."""
    before = Mailbox.objects.get().lease_token

    def began() -> bool:
        work()
        return Mailbox.objects.get().lease_token > before

    wait_for(began)


def test_care_leaves_no_trace_where_nobody_dies(server: Server, source: IngestionSource) -> None:
    """A message alone that is refused is a failure like any; one that breaks off is none."""
    fill(server, 8)
    server.refused["1:3"] = MessageRefused("The server said NO to this message.")

    def drop(handed_out: int) -> None:
        if handed_out == 5:
            server.before_message = lambda _: None
            raise Unavailable("The connection was dropped.")

    server.before_message = drop
    start(source)
    die_at_work()
    work_as_soon_as_it_is_free()
    assert Message.objects.count() == 5  # each was committed alone
    for run in (Run.objects.get(), finish(source)):
        failure = FailedMessage.objects.get()
        assert (failure.remote_id, failure.code) == ("1:3", "message_refused")
        assert (failure.attempts, run.messages_failed) == (1, 1)
    assert Run.objects.get().message == "7 archived, 1 failed."
    assert len(server.fetched) == len(set(server.fetched)) == 7
    assert Mailbox.objects.get().worker_deaths == 0


def test_care_ends_after_the_bytes_of_a_batch_whatever_the_listing_tells(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "COMMIT_BYTES", 150)
    server.lists_bare = True
    fill(server, 6)
    start(source)
    Mailbox.objects.update(worker_deaths=1)
    deaths: list[int] = []
    server.before_message = lambda _: deaths.append(Mailbox.objects.get().worker_deaths)
    work()
    assert (deaths[0], deaths[-1]) == (1, 0)


def test_a_mailbox_over_which_workers_keep_dying_waits_before_the_next(
    server: Server, source: IngestionSource
) -> None:
    """Whatever it is that kills them: the wait is written down before the work, as nobody may be
    left to do it afterwards."""
    fill(server, 5)
    start(source)
    for _ in range(4):
        die_at_work()
    seen: list[tuple[Mailbox, Run]] = []
    server.before_message = lambda _: seen.append((Mailbox.objects.get(), Run.objects.get()))
    before = timezone.now()
    work_as_soon_as_it_is_free()
    mailbox, run = seen[0]
    assert (mailbox.worker_deaths, mailbox.last_error_code) == (4, "worker_died")
    assert mailbox.not_before > before + dt.timedelta(seconds=0.5)
    assert run.warning.startswith("4 workers in a row died")
    mailbox = Mailbox.objects.get()
    assert (mailbox.worker_deaths, mailbox.attempts, mailbox.last_error) == (0, 0, "")
    assert_exact(server, source)


def test_a_pack_without_its_transaction_is_collected_and_the_import_completes(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    with store().writer(source.pk) as writer:
        orphan = ('{"sha256":""}', b"bytes of a worker that died here")
        pack_format.append(writer.file, writer.pack_id.hex, [orphan], pack_format.compressor())
        writer.commit()
    start(source)
    finish(source)
    assert housekeeping.collect_orphans() == 0  # too young: its transaction may be under way
    assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 1
    assert_exact(server, source)


def test_pause_stops_within_a_page_and_keeps_all_it_has(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    fill(server, 40)

    def pause(handed_out: int) -> None:
        if handed_out == 15:
            sources.pause(source, actor=ACTOR)
        if handed_out >= 15:
            time.sleep(0.05)  # a slow server: the lease's thread looks at the row meanwhile

    server.before_message = pause
    start(source)
    work()
    source.refresh_from_db()
    assert source.status == "paused"
    kept = Message.objects.count()
    assert 10 <= kept < 40
    with pytest.raises(NotAllowedNow):
        sources.start_sync(source, actor=ACTOR)
    work()
    assert Message.objects.count() == kept
    server.before_message = lambda _: None
    sources.resume(source, actor=ACTOR)
    finish(source)
    assert_exact(server, source)
    assert len(server.fetched) == 40


def test_a_page_that_takes_too_long_goes_on_in_the_next_slice(
    server: Server, source: IngestionSource
) -> None:
    """A worker that stayed with it would be killed by Celery's time limit, in the end."""
    server.page_size = 1_000
    fill(server, 5)
    start(source)
    for expected in (1, 2, 3, 4):
        assert sync.sync_mailbox(due_now().pk, slice_seconds=0, page_seconds=0)
        assert Message.objects.count() == expected
        assert Folder.objects.get().cursor is None
    finish(source)
    assert_exact(server, source)
    assert len(server.fetched) == 5


def test_repeated_authentication_failures_stop_the_source(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    server.open_error = NeedsReauth("The password was refused. Give the source a new one.")
    for _ in range(3):
        source.refresh_from_db()
        assert source.status == "importing"
        work()
    source.refresh_from_db()
    assert (source.status, source.status_message) == (
        "error",
        "The password was refused. Give the source a new one.",
    )
    server.open_error = None
    assert sources.resume(source, actor=ACTOR).status == "pending_auth"
    start(source)
    finish(source)
    assert_exact(server, source)


@pytest.mark.parametrize(
    ("error", "status"),
    [(MailboxUnavailable("No licence."), "active"), (Fatal("Not an IMAP server."), "error")],
)
def test_only_a_fault_of_the_whole_source_makes_it_an_error(
    server: Server, source: IngestionSource, error: Exception, status: str
) -> None:
    start(source)
    server.open_error = error
    work()
    source.refresh_from_db()
    assert source.status == status


def test_an_import_that_gave_a_mailbox_up_says_so_and_the_next_sync_completes_it(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    start(source)
    server.open_error = Unavailable("The server is under maintenance.")
    run = finish(source)
    assert run.status == "incomplete"
    assert run.message.startswith(
        "0 archived; 1 mailbox was not copied to the end: me@example.com (unavailable)."
        " The next sync goes on there."
    )
    assert run.message.endswith("under maintenance.")
    server.open_error = None
    source.refresh_from_db()
    assert synced(source).message == "3 archived."
    assert_exact(server, source)


def test_a_bug_is_shown_as_one_and_the_mailbox_goes_on_later(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)
    server.open_error = ZeroDivisionError("secret-in-an-exception")
    start(source)
    work()
    mailbox = Mailbox.objects.get()
    assert mailbox.last_error_code == "internal_error"
    assert "secret" not in mailbox.last_error
    server.open_error = None
    finish(source)
    assert_exact(server, source)


def test_old_credentials_that_are_refused_do_not_stop_a_source_with_new_ones(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 3)

    def replace_the_password(_: int) -> None:
        server.before_message = lambda _: None
        sources.update(source, changes={"providerConfig": {"password": "new"}}, actor=ACTOR)
        assert sources.verify(source, actor=ACTOR).ok
        raise Fatal("The old password is of no use any more.")

    server.before_message = replace_the_password
    start(source)
    work()
    source.refresh_from_db()
    assert source.status == "importing"
    assert finish(source).status == "completed"
    assert_exact(server, source)


def test_a_listing_gives_no_work_to_a_run_that_was_ended_meanwhile(
    server: Server, source: IngestionSource
) -> None:
    def fail() -> None:
        with transaction.atomic():
            source.refresh_from_db()
            sources.fail(source, "The password was refused.", actor="test")

    server.before_mailbox = fail
    start(source)
    assert not Mailbox.objects.filter(run__isnull=False).exists()
    source.refresh_from_db()
    assert (source.status, source.status_message) == ("error", "The password was refused.")


def test_the_bell_does_not_ring_again_while_mailboxes_are_listed(
    server: Server, source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_BATCH", 1)
    run = sources.start_import(source, actor=ACTOR)
    sources.verify(source, actor=ACTOR)
    assert "discover" in [bell.kind for bell in due_work.due()]
    long_ago = timezone.now() - dt.timedelta(seconds=due_work.RING_AGAIN_SECONDS + 1)
    Run.objects.update(rung_at=long_ago)
    heard: list[list[str]] = []

    def listen() -> None:
        if Mailbox.objects.exists():  # the first is stored
            heard.append([bell.kind for bell in due_work.due()])

    server.accounts, server.before_mailbox = ("a", "b"), listen
    discovery.discover(run.pk)
    assert heard == [["mailbox"]]


def test_many_triggers_at_once_start_one_run(server: Server, source: IngestionSource) -> None:
    fill(server, 3)
    sources.verify(source, actor=ACTOR)

    def trigger(number: int) -> str:
        verb = sources.start_import if number % 2 else sources.start_sync
        try:
            return str(verb(source, actor=ACTOR).pk)
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        runs = set(pool.map(trigger, range(16)))
    assert len(runs) == 1
    assert Run.objects.count() == 1


def test_a_doorbell_rings_once_and_again_when_nobody_came(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    assert [bell.kind for bell in due_work.due()] == ["mailbox"]
    assert list(due_work.due()) == []
    later = dt.timedelta(seconds=due_work.RING_AGAIN_SECONDS + 1)
    Mailbox.objects.update(rung_at=timezone.now() - later)
    assert [bell.kind for bell in due_work.due()] == ["mailbox"]


def test_a_schedule_starts_the_next_sync(server: Server, source: IngestionSource) -> None:
    fill(server, 3)
    start(source)
    finish(source)
    assert list(due_work.due()) == []
    IngestionSource.objects.update(next_sync_at=timezone.now() - dt.timedelta(seconds=1))
    assert [bell.kind for bell in due_work.due()] == ["discover"]
    assert Run.objects.get(finished_at=None).kind == "sync"


def test_deletion_leaves_nothing_and_stops_a_running_worker(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 40)

    def delete(handed_out: int) -> None:
        if handed_out == 15:
            sources.delete(source, actor=ACTOR)

    server.before_message = delete
    start(source)
    work()
    assert Message.objects.count() in (0, 10)  # the first page was being committed meanwhile
    assert [bell.kind for bell in due_work.due()] == ["delete"]
    deletion.delete_source(source.pk)
    for model in (IngestionSource, Mailbox, Folder, Message, Placement, Pack, Run, StatusChange):
        assert not model.objects.exists(), model
    assert list(store().packs()) == []


def test_credentials_are_checked_in_the_background_and_failures_say_why(
    server: Server, source: IngestionSource
) -> None:
    server.check_error = Unavailable("The server does not answer.")
    sources.verify(source, actor=ACTOR)
    source.refresh_from_db()
    assert source.status == "pending_auth"
    assert "does not answer" in source.status_message
    assert source.check_not_before > timezone.now()
    server.check_error = NeedsReauth("The password was refused.")
    assert not sources.verify(source, actor=ACTOR).ok
    source.refresh_from_db()
    assert (source.status, source.status_message) == ("error", "The password was refused.")


def test_new_credentials_are_checked_and_the_source_returns_to_where_it_was(
    server: Server, source: IngestionSource
) -> None:
    start(source)
    finish(source)
    sources.pause(source, actor=ACTOR)
    source = sources.update(source, changes={"providerConfig": {"password": "new"}}, actor=ACTOR)
    assert source.status == "pending_auth"
    sources.verify(source, actor=ACTOR)
    source.refresh_from_db()
    assert source.status == "paused"
    assert sources.resume(source, actor=ACTOR).status == "active"
    same = sources.update(source, changes={"providerConfig": {"password": ""}}, actor=ACTOR)
    assert (same.status, same.secrets) == ("active", {"password": "new"})
