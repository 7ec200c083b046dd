"""Damaged packs and lost rows: what verification says of them, and what a rebuild gives back."""

import contextlib
import datetime as dt
import os
import resource
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from connectors.types import SPOOL_BYTES
from ingestion.errors import ArchiveUnavailable
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.services.archive import housekeeping, rebuild, refetch, verify
from ingestion.services.engine import placements
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, assert_exact, body, fill, finish, start, synced

pytestmark = pytest.mark.django_db(transaction=True)

OLD_PACK = Path(__file__).parents[2] / "data" / "pack_v1.pack"
OLD_PACK_ID = uuid.UUID("45c48cce-2e2d-4fbd-aa1a-fc51c7c6ad26")


def imported(server: Server, source: IngestionSource, count: int = 9) -> Path:
    """Import so many messages into one pack; return it."""
    server.page_size = 1000
    fill(server, count)
    start(source)
    finish(source)
    [path] = (settings.ARCHIVE_DIR / str(source.pk)).rglob("*.pack")
    return path


def an_old_pack(source: IngestionSource) -> Path:
    """Let the source have a pack of the first format, with its rows."""
    path = settings.ARCHIVE_DIR / str(source.pk) / f"{OLD_PACK_ID}.pack"
    path.parent.mkdir(parents=True)
    shutil.copy(OLD_PACK, path)
    os.utime(path, (0, 0))
    rebuilt(source)
    return path


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))


def verified(source: IngestionSource) -> dict[str, int]:
    """Return the kinds of problems, with the number of messages that each concerns."""
    problems: list[verify.Problem] = []
    verify.verify_archive([source], on_problem=problems.append)
    return {problem.kind: problem.messages for problem in problems}


def rebuilt(source: IngestionSource) -> tuple[rebuild.Rebuilt, list[str]]:
    damage: list[rebuild.Damage] = []
    result = rebuild.rebuild(source, actor=ACTOR, on_damage=damage.append)
    return result, [one.text for one in damage]


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Have the kernel refuse this process more: files to open, or bytes in a file."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def lose_rows() -> None:
    """As after a lost database: the source is known again, no row of its mail."""
    with connection.cursor() as cursor:
        for table in ("failedmessage", "placement", "message", "folder", "mailbox", "pack", "run"):
            cursor.execute(f"DELETE FROM ingestion_{table}")
    IngestionSource.objects.update(imported_at=timezone.now())


def test_a_temporary_directory_without_room_says_nothing_of_large_messages(
    server: Server, source: IngestionSource
) -> None:
    server.deliver("INBOX", body(1) + bytes(2 * SPOOL_BYTES))
    pack = uuid.UUID(imported(server, source, 0).stem)
    looks: list[Callable[[], object]] = [
        lambda: verified(source),
        lambda: refetch.refetch(source, [pack], actor=ACTOR, on_left=print),
        lambda: rebuilt(source),
    ]
    for look in looks:
        if look is looks[-1]:
            lose_rows()
        with (
            limited(resource.RLIMIT_FSIZE, SPOOL_BYTES),
            pytest.raises(ArchiveUnavailable, match=r"TMPDIR .* Make room"),
        ):
            look()
    assert rebuilt(source)[0].messages_added == 1
    assert verified(source) == {}


def test_a_machine_without_files_to_open_says_nothing_of_a_pack(
    server: Server, source: IngestionSource
) -> None:
    imported(server, source)
    server.deliver("Work", body(50))
    synced(source)
    problems: list[verify.Problem] = []
    with contextlib.ExitStack() as behind_the_first:

        def begin(_: verify.Verification) -> None:
            behind_the_first.enter_context(limited(resource.RLIMIT_NOFILE, 3))

        with pytest.raises(OSError, match="Too many open files"):
            verify.verify_archive([source], on_problem=problems.append, on_progress=begin)
    assert problems == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"remote_id":"1:5"', b'"remote_id":"1:7"'),
        (b'"stable_id":"E5"', b'"stable_id":"E4"'),
        (b'"size":5', b'"size":7'),
    ],
)
def test_one_changed_bit_in_what_a_record_says_is_found(
    server: Server, source: IngestionSource, old: bytes, new: bytes
) -> None:
    server.page_size = 1000
    for number in range(1, 10):
        server.deliver("INBOX", body(number), stable_id=f"E{number}")
    path = imported(server, source, 0)
    data = path.read_bytes()
    path.write_bytes(data.replace(old, new, 1))
    assert path.read_bytes() != data
    assert verified(source) == {"corrupt_pack": 1}


def test_a_record_that_names_another_id_hides_no_mail_that_comes_after_a_rebuild(
    server: Server, source: IngestionSource
) -> None:
    """ "1:1" and "1:9" differ in one bit. Message 9 came when the database was about to be lost."""
    path = imported(server, source, 8)
    change(path, b'"remote_id":"1:1"', b'"remote_id":"1:9"')
    server.deliver("INBOX", body(99))
    lose_rows()
    result, damage = rebuilt(source)
    assert (result.messages_added, len(damage)) == (7, 1)
    synced(source)
    assert_exact(server, source)


def test_one_damaged_frame_costs_one_message_of_a_rebuild(
    server: Server, source: IngestionSource
) -> None:
    path = imported(server, source, 100)
    offset = Message.objects.order_by("pack_offset").values_list("pack_offset", flat=True)[10]
    data = bytearray(path.read_bytes())
    data[offset] ^= 1  # the magic number of the eleventh body
    path.write_bytes(data)
    assert verified(source) == {"corrupt_message": 1}
    lose_rows()
    result, damage = rebuilt(source)
    assert (result.messages_added, len(damage)) == (99, 1)
    synced(source)
    assert_exact(server, source)


def test_rows_that_are_lost_are_found_and_a_rebuild_gives_them_back(
    server: Server, source: IngestionSource
) -> None:
    imported(server, source)
    lost = Message.objects.earliest("pack_offset")
    lost.delete()
    assert verified(source) == {"missing_rows": 1}
    assert rebuilt(source)[0].messages_added == 1
    assert Pack.objects.get().message_count == 9
    assert verified(source) == {}
    assert_exact(server, source)


def test_rows_that_came_back_with_another_pack_are_not_missed_any_more(
    server: Server, source: IngestionSource
) -> None:
    imported(server, source)
    Message.objects.earliest("pack_offset").delete()
    Folder.objects.update(cursor=None)
    synced(source)
    assert verified(source) == {"missing_rows": 1}
    rebuilt(source)
    assert verified(source) == {}
    assert_exact(server, source)


def test_what_the_database_says_of_a_message_is_compared_with_its_record(
    server: Server, source: IngestionSource
) -> None:
    path = imported(server, source)
    one, two = Message.objects.order_by("pack_offset")[:2]
    # Two good records at the places of each other: each is what was written, and not where.
    data = path.read_bytes()
    header = data.index(b'{"v":2', 10) - 8
    records = data[header : one.pack_offset + one.pack_length]
    other = data[header + len(records) : two.pack_offset + two.pack_length]
    path.write_bytes(data[:header] + other + records + data[header + len(records + other) :])
    assert verified(source)["corrupt_message"] == 1


def test_a_rebuild_gives_back_threads_and_times(server: Server, source: IngestionSource) -> None:
    for number in range(5):
        server.deliver("INBOX", body(number), stable_id=f"E{number}", thread_id=f"T{number % 2}")
    imported(server, source, 0)
    threads = set(Placement.objects.values_list("remote_id", "thread_id"))
    assert {thread for _, thread in threads} == {"T0", "T1"}
    then = set(Message.objects.values_list("sha256", "archived_at"))
    before = timezone.now()
    lose_rows()
    rebuilt(source)
    assert set(Placement.objects.values_list("remote_id", "thread_id")) == threads
    was = {bytes(sha256): time for sha256, time in then}
    for message in Message.objects.all():
        assert abs(message.archived_at - was[bytes(message.sha256)]) < dt.timedelta(seconds=30)
        assert message.archived_at < before
    assert all(seen < before for seen in Placement.objects.values_list("first_seen_at", flat=True))


def test_a_rebuild_gives_drafts_no_stable_id(server: Server, source: IngestionSource) -> None:
    for number, labels in enumerate([("\\Draft", "\\Seen"), ("\\Seen",)], 1):
        server.deliver("INBOX", body(number), stable_id=f"E{number}")
        server.folders["INBOX"][number].labels = labels
    imported(server, source, 0)
    lose_rows()
    rebuilt(source)
    assert set(Placement.objects.values_list("stable_id", flat=True)) == {"", "E2"}


def test_a_pack_that_was_written_while_the_clock_was_ahead_is_told_and_rebuilt(
    server: Server, source: IngestionSource
) -> None:
    path = imported(server, source)
    ahead = time.time() + 365 * 86_400
    os.utime(path, (ahead, ahead))
    count = Message.objects.count()
    lose_rows()
    busy = Mailbox.objects.create(
        source=source,
        remote_id="busy",
        address="busy@example.com",
        lease_expires_at=timezone.now() + dt.timedelta(seconds=60),
    )
    assert verified(source) == {"orphan_pack": count}
    busy.delete()
    assert rebuilt(source)[0].messages_added == count


def test_a_pack_that_a_busy_worker_is_about_to_commit_is_no_orphan(
    server: Server, source: IngestionSource
) -> None:
    """Before it others may have to be written, to a store that does not answer at once."""
    path = imported(server, source)
    count = Message.objects.count()
    minutes_ago = time.time() - 300
    os.utime(path, (minutes_ago, minutes_ago))
    lose_rows()
    busy = Mailbox.objects.create(
        source=source,
        remote_id="busy",
        address="busy@example.com",
        lease_expires_at=timezone.now() + dt.timedelta(seconds=60),
    )
    assert verified(source) == {}
    busy.delete()
    assert verified(source) == {"orphan_pack": count}


def test_a_pack_of_the_first_format_is_verified_and_rebuilt(source: IngestionSource) -> None:
    an_old_pack(source)
    assert Message.objects.count() == Placement.objects.count() == 8
    assert Mailbox.objects.get().remote_id == "me"
    assert verified(source) == {}
    lose_rows()
    assert rebuilt(source)[0].messages_added == 8
    assert verified(source) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"remote_id":"1:5"', b'"remote_id":"1:7"'), (b'"sha256":"0380', b'"sha256":"0381')],
)
def test_what_a_record_of_the_first_format_says_is_compared_with_the_rows(
    source: IngestionSource, old: bytes, new: bytes
) -> None:
    path = an_old_pack(source)
    change(path, old, new)
    assert verified(source) == {"corrupt_pack": 1}


def test_ids_that_were_given_up_since_are_no_problem(source: IngestionSource) -> None:
    an_old_pack(source)
    placements.retire_ids(Folder.objects.get().pk)
    assert verified(source) == {}


def test_what_hangs_on_a_damaged_message_of_the_first_format_is_told(
    source: IngestionSource,
) -> None:
    path = an_old_pack(source)
    offset = Message.objects.order_by("pack_offset").values_list("pack_offset", flat=True)[3]
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    assert verified(source) == {"corrupt_message": 1, "corrupt_pack": 4}


def test_a_damaged_orphan_is_kept_and_what_can_be_read_of_it_is_told(
    server: Server, source: IngestionSource
) -> None:
    path = imported(server, source)
    change(path, b'"remote_id":"1:5"', b'"remote_id":"1:7"')
    os.utime(path, (0, 0))
    lose_rows()
    problems: list[verify.Problem] = []
    verify.verify_archive([source], on_problem=problems.append)
    [problem] = problems
    assert (problem.kind, problem.messages) == ("orphan_pack", 8)
    assert "damaged" in problem.text
    assert "rebuild_archive_index" in problem.text
    housekeeping.collect_orphans()
    assert path.exists()
