"""What the provider has now is what is placed, exactly, and nothing is downloaded twice."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from connectors.errors import CursorExpired
from connectors.types import MessageRef, RawMessage
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Placement
from ingestion.packs.store import store
from ingestion.services.engine import placements
from ingestion.services.engine.capture import Capture
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import (
    assert_exact,
    begun,
    body,
    fill,
    finish,
    start,
    synced,
    work,
)

pytestmark = pytest.mark.django_db(transaction=True)


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


def test_a_message_that_the_reply_misses_is_an_error_and_the_cursor_stays(
    server: Server, source: IngestionSource
) -> None:
    fill(server, 5)
    server.unanswered.add("1:3")
    start(source)
    work()
    assert Mailbox.objects.get().last_error_code == "short_reply"
    assert Folder.objects.get().cursor is None
    assert Message.objects.count() == 4  # what arrived is kept
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


def test_what_a_provider_lists_twice_in_a_fresh_folder_is_placed_and_counted_once(
    source: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch can't be copied as it is, and the group is committed all the same."""
    monkeypatch.setattr(placements, "_WORTH_A_COPY", 0)
    run, mailbox, folder, held = begun(source)
    with (
        held,
        Capture(held, store=store(), run=run, mailbox=mailbox) as capture,
        capture.batch(folder, fresh=True) as one,
    ):
        for uids, labels in (((1, 2), ()), ((2, 3), ("\\Seen",))):
            for uid in uids:
                one.add(RawMessage(MessageRef(f"1:{uid}", labels=labels), b"%d" % uid))
            one.commit()
    run.refresh_from_db()
    assert (run.messages_done, run.messages_new) == (3, 3)
    assert labels_in("INBOX") == {"1:1": [], "1:2": ["\\Seen"], "1:3": ["\\Seen"]}


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
    placements.relabel(Folder.objects.get().pk, [("1:1", labels)])
    assert Placement.objects.get().labels == ["half ?", "whole \U0001f600", "NUL "]


@pytest.mark.parametrize("fresh", [True, False])
def test_what_a_provider_calls_things_may_hold_any_character(
    server: Server, source: IngestionSource, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what ends a column, a row or the data in PostgreSQL's text formats: there are two."""
    monkeypatch.setattr(placements, "_WORTH_A_COPY", 0)
    fill(server, 1)
    start(source)
    finish(source)
    message, mailbox = Message.objects.get(), Mailbox.objects.get()
    folder = Folder.objects.create(mailbox=mailbox, remote_id="Odd", path="Odd")
    odd = ["\\N", "\\.", 'a "b"', "{c}", "d,e", "tab\tline\nreturn\r", "half \ud83d", "NUL \0", "é"]
    refs = [MessageRef(text, None, text, text, labels=(text, "\\Seen")) for text in odd]
    rows = [(ref, message.pk.hex) for ref in refs]
    assert placements.upsert_placements(mailbox.pk, folder.pk, rows, fresh=fresh) == len(odd)
    found = Placement.objects.filter(folder=folder).order_by("pk")
    kept = [text.replace("\ud83d", "?").replace("\0", "") for text in odd]
    assert list(found.values_list("remote_id", "stable_id", "thread_id", "labels")) == [
        (text, text, text, [text, "\\Seen"]) for text in kept
    ]
