"""verify_archive, rebuild_archive_index and reconcile_source, as processes, on damaged archives."""

import datetime as dt
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from ingestion.models import (
    ArchivedDay,
    FailedMessage,
    Folder,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
    Placement,
)
from ingestion.services.archive import housekeeping, reading
from ingestion.services.audit import Actor
from ingestion.services.engine import due_work
from ingestion.services.sources import configuration, deletion, verbs
from ingestion.states import SourceStatus
from tests.servers import imap_source, people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.stack import wait_for

ACTOR = Actor.system("test")


@pytest.fixture
def owner(transactional_db: None) -> User:
    return people.superuser("root")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    """An account with 40 messages in two folders; one message is in both."""
    account = dovecot.account(*(mail(n) for n in range(30)))
    dovecot.append(account.name, "Work/2024", *(mail(n) for n in range(100, 109)), mail(1))
    return account


def mail(number: int) -> bytes:
    return b"Subject: number %d\r\nFrom: a@example.com\r\n\r\nbody %d\r\n" % (number, number)


@pytest.fixture
def source(owner: User, archive_dir: Path, account: Account) -> IngestionSource:
    """The account, imported."""
    return imported(create(owner, "Alice", account))


def create(owner: User, name: str, account: Account) -> IngestionSource:
    return configuration.create(
        owner=owner,
        name=name,
        provider="generic_imap",
        provider_config=imap_source.config(account),
        actor=ACTOR,
    )


def imported(source: IngestionSource) -> IngestionSource:
    verbs.start_sync(source, actor=ACTOR)
    due_work.work_until_done(source, on_progress=lambda _: None)
    source.refresh_from_db()
    return source


def one_pack(archive_dir: Path) -> Path:
    return next(archive_dir.rglob("*.pack"))


def contents() -> dict[tuple[str, str], bytes]:
    """Read back what is placed now: (folder, remote id) -> bytes."""
    found = {}
    for placed in Placement.objects.filter(removed_at=None).select_related(
        "message__pack", "folder"
    ):
        message = placed.message
        body = reading.opened(message)
        assert isinstance(body, bytes)
        found[placed.folder.remote_id, placed.remote_id] = body
    return found


def rows() -> dict[str, Any]:
    """Return what a rebuilt index must have as before; ids and times of rows are new."""
    return {
        "mailboxes": sorted(
            Mailbox.objects.values_list("remote_id", "message_count", "archived_bytes")
        ),
        "folders": sorted(Folder.objects.values_list("remote_id", "path")),
        "packs": sorted(Pack.objects.values_list("pk", "size_bytes", "message_count")),
        "messages": sorted(
            (bytes(sha256), *rest)
            for sha256, *rest in Message.objects.values_list(
                *("sha256", "size_bytes", "pack_id", "pack_offset", "pack_length"),
                *("subject", "sender", "received_at"),
            )
        ),
        "source": list(IngestionSource.objects.values_list("message_count", "archived_bytes")),
    }


def lose_rows(*tables: str) -> None:
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"DELETE FROM ingestion_{table}")


LOST_INDEX = ("failedmessage", "placement", "message", "folder", "pack", "mailbox")


# -- verify_archive ----------------------------------------------------------------------------


def test_a_sound_archive_is_verified(manage: CommandLine, source: IngestionSource) -> None:
    checked = manage("verify_archive")
    assert checked.code == 0, checked.stderr
    assert "39 messages" in checked.stdout
    assert "bit for bit" in checked.stdout
    by_name = manage.here("verify_archive", "Alice", "--json").json()
    assert by_name["ok"] is True
    assert by_name["messages"] == 39
    assert by_name["bytes"] == source.archived_bytes


def test_an_empty_archive_is_sound(manage: CommandLine) -> None:
    assert manage.here("verify_archive", "--json").json()["messages"] == 0


def test_a_missing_pack_is_reported_with_the_number_of_its_messages(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    pack = one_pack(archive_dir)
    count = Message.objects.filter(pack__pk=pack.stem).count()
    pack.unlink()
    checked = manage.here("verify_archive", "--json")
    assert checked.code == 1
    found = checked.json()
    assert found["missingPacks"] == 1
    assert found["problems"][0]["messages"] == count
    assert found["messages"] == 39 - count
    assert "Restore" in manage.here("verify_archive").stdout


def test_one_flipped_bit_is_found_and_the_other_messages_are_still_checked(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    message = Message.objects.order_by("pk").first()
    assert message is not None
    path = next(archive_dir.rglob(f"{message.pack_id}.pack"))
    data = bytearray(path.read_bytes())
    data[message.pack_offset + message.pack_length // 2] ^= 0x10
    path.write_bytes(data)
    checked = manage.here("verify_archive", "--json")
    assert checked.code == 1
    found = checked.json()
    assert (found["corruptMessages"], found["messages"]) == (1, 38)
    assert found["problems"][0]["messageId"] == str(message.pk)
    text = manage.here("verify_archive")
    assert f"corrupt_message: message {message.sha256_hex[:12]}" in text.stdout


def test_a_damaged_record_header_is_found_though_the_message_can_be_read(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    path = one_pack(archive_dir)
    first = Message.objects.filter(pack__pk=path.stem).earliest("pack_offset")
    data = bytearray(path.read_bytes())
    data[first.pack_offset - 1] = ord("#")  # the closing brace of its header
    path.write_bytes(data)
    found = manage.here("verify_archive", "--json").json()
    assert (found["corruptPacks"], found["corruptMessages"]) == (1, 0)
    assert found["messages"] == 39


def test_a_truncated_pack_is_found(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    path = one_pack(archive_dir)
    last = Message.objects.filter(pack__pk=path.stem).latest("pack_offset")
    os.truncate(path, last.pack_offset + 3)
    found = manage.here("verify_archive", "--json").json()
    assert found["corruptMessages"] == 1
    assert found["messages"] == 38


def test_an_orphan_is_reported_with_what_only_it_holds(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    path = one_pack(archive_dir)
    copy = path.parents[1] / f"{uuid.uuid4()}.pack"
    shutil.copy(path, copy)
    found = manage.here("verify_archive", "--json")
    assert found.code == 1
    assert found.json()["orphanPacks"] == 1
    assert found.json()["problems"][0]["messages"] == 0  # all of them are archived elsewhere
    copy.unlink()
    count = Message.objects.filter(pack__pk=path.stem).count()
    Message.objects.filter(pack__pk=path.stem).delete()
    Pack.objects.filter(pk=path.stem).delete()
    alone = manage.here("verify_archive", "--json").json()
    assert alone["problems"][0]["messages"] == count
    assert "that the database does not know. rebuild_archive" in alone["problems"][0]["text"]


def test_of_a_source_that_was_deleted_no_pack_is_reported_as_unknown(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    """A worker was late with it; housekeeping removes it."""
    path = one_pack(archive_dir)
    kept = path.read_bytes()
    verbs.delete(source, actor=Actor.system("test"))
    deletion.delete_source(source.pk)
    path.parent.mkdir(parents=True)
    path.write_bytes(kept)
    assert manage.here("verify_archive").code == 0
    assert housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5)) == 1


def test_a_pack_that_a_busy_worker_is_about_to_commit_is_no_orphan(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    path = one_pack(archive_dir)
    shutil.copyfile(path, path.parents[1] / f"{uuid.uuid4()}.pack")
    Mailbox.objects.update(lease_expires_at=timezone.now() + dt.timedelta(seconds=60))
    assert manage.here("verify_archive").code == 0


# -- orphans and housekeeping ------------------------------------------------------------------


def test_packs_that_hold_the_only_copy_outlive_housekeeping(
    source: IngestionSource, archive_dir: Path
) -> None:
    """A database restored from an old backup, or the wrong one, must not empty the archive."""
    packs = sorted(archive_dir.rglob("*.pack"))
    for path in packs:
        os.utime(path, (0, 0))
    lose_rows(*LOST_INDEX)
    housekeeping.collect_orphans()
    assert sorted(archive_dir.rglob("*.pack")) == packs
    lose_rows("statuschange", "run", "archivedday", "ingestionsource")
    housekeeping.collect_orphans()
    assert sorted(archive_dir.rglob("*.pack")) == packs


# -- rebuild_archive_index ---------------------------------------------------------------------


def test_a_lost_index_is_rebuilt_and_a_second_time_changes_nothing(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    before, bodies = rows(), contents()
    lose_rows(*LOST_INDEX)
    rebuilt = manage("rebuild_archive_index", "--json")
    assert rebuilt.code == 0, rebuilt.stderr
    assert rebuilt.json()["sources"][0]["messagesAdded"] == 39
    assert rows() == before
    again = manage.here("rebuild_archive_index")
    assert again.code == 0
    assert "39 messages" in again.stdout
    assert "0 added" in again.stdout
    assert rows() == before
    assert contents().items() <= bodies.items()
    # The message that is in two folders has its second place back after one sync.
    imported(source)
    assert contents() == bodies
    assert len(bodies) == len(dovecot.contents(account.name)) == 40
    assert rows()["messages"] == before["messages"]


def test_rebuilding_a_sound_index_touches_nothing(
    manage: CommandLine, source: IngestionSource
) -> None:
    Folder.objects.filter(path="Work/2024").update(remote_id="Renamed", path="Renamed")
    cursors = list(Folder.objects.order_by("pk").values_list("remote_id", "cursor"))
    before = rows()
    assert manage.here("rebuild_archive_index", "Alice").code == 0
    assert rows() == before
    assert list(Folder.objects.order_by("pk").values_list("remote_id", "cursor")) == cursors


def test_a_database_older_than_the_archive_gets_what_it_lacks(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    old = set(Pack.objects.values_list("pk", flat=True))
    cursors = dict(Folder.objects.values_list("pk", "cursor"))
    dovecot.append(account.name, "INBOX", mail(200), mail(201))
    imported(source)
    full = contents()
    new = Message.objects.exclude(pack__in=old)
    new.delete()
    Pack.objects.exclude(pk__in=old).delete()
    for pk, cursor in cursors.items():
        Folder.objects.filter(pk=pk).update(cursor=cursor)
    rebuilt = manage.here("rebuild_archive_index", "--json").json()
    assert rebuilt["sources"][0]["messagesAdded"] == 2
    source.refresh_from_db()
    assert source.message_count == Message.objects.count() == 41
    assert contents() == full
    run = imported(source).runs.latest("started_at")
    assert run.messages_new == 0
    assert contents() == full


def test_a_rebuild_killed_half_way_is_finished_by_another(
    manage: CommandLine, owner: User, dovecot: Dovecot, archive_dir: Path
) -> None:
    account = dovecot.account(mail(0))
    for number in range(1, 4000):
        dovecot.deliver(account.name, f"1700000000.M{number}P1.host", mail(number))
    imported(create(owner, "Many", account))
    before = rows()
    lose_rows(*LOST_INDEX)
    process = manage.start("rebuild_archive_index")
    wait_for(lambda: Message.objects.exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    time.sleep(0.1)
    assert manage.here("rebuild_archive_index").code == 0
    assert rows() == before


def test_a_damaged_message_is_left_out_and_told(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    message = Message.objects.filter(subject="number 3").get()
    path = next(archive_dir.rglob(f"{message.pack_id}.pack"))
    data = bytearray(path.read_bytes())
    data[message.pack_offset + message.pack_length - 1] ^= 0xFF
    path.write_bytes(data)
    lose_rows(*LOST_INDEX)
    rebuilt = manage.here("rebuild_archive_index", "--json")
    assert rebuilt.code == 1
    assert rebuilt.json()["sources"][0]["damaged"] == 1
    assert message.sha256_hex[:12] in rebuilt.stderr
    assert Message.objects.count() == 38


def test_a_rebuild_counts_of_each_day_what_is_left_of_it(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    def days() -> list[tuple[dt.date, int, int]]:
        return [*ArchivedDay.objects.values_list("day", "messages", "size_bytes")]

    def told() -> str:
        found = manage.here("doctor", "--json").json()["findings"]
        return str(next(one["state"] for one in found if one["name"] == "days"))

    message = Message.objects.filter(subject="number 3").get()
    path = next(archive_dir.rglob(f"{message.pack_id}.pack"))
    data = bytearray(path.read_bytes())
    data[message.pack_offset + message.pack_length - 1] ^= 0xFF
    path.write_bytes(data)
    yesterday = timezone.now() - dt.timedelta(days=1)
    Message.objects.update(archived_at=yesterday)
    Message.objects.filter(pk=message.pk).delete()
    # As an older version left it, which let today have what was lost.
    size = source.archived_bytes
    ArchivedDay.objects.update(day=yesterday.date(), messages=39, size_bytes=size)
    ArchivedDay.objects.create(source=source, day=timezone.now().date(), messages=-1)
    assert told() == "warning"
    assert manage.here("rebuild_archive_index").code == 1
    assert days() == [(yesterday.date(), 38, size - message.size_bytes)]
    assert told() == "ok"
    source.refresh_from_db()
    assert (source.message_count, source.archived_bytes) == (38, size - message.size_bytes)


def test_a_lost_source_is_recovered_with_its_id_and_goes_on_with_its_credentials(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    bodies, pk = contents(), source.pk
    config = {**source.config, **source.secrets}
    lose_rows(*LOST_INDEX, "statuschange", "run", "archivedday", "ingestionsource")
    told = manage.here("verify_archive")
    assert told.code == 1
    assert f"--recover {pk}" in told.stdout
    incomplete = manage.here("rebuild_archive_index", "--recover", str(pk))
    assert incomplete.code == 2
    unknown = manage.here(
        "rebuild_archive_index", "--recover", str(uuid.uuid4()), "--owner", "root", "--name", "X"
    )
    assert unknown.code == 1
    assert not IngestionSource.objects.exists()
    recovered = manage.here(
        "rebuild_archive_index", "--recover", str(pk), "--owner", "root", "--name", "Alice again"
    )
    assert recovered.code == 0, recovered.stderr
    row = IngestionSource.objects.get(pk=pk)
    assert row.status == SourceStatus.ERROR
    assert row.message_count == 39
    assert "providerConfig" in manage.here("source_status", str(pk)).stdout
    row = configuration.update(row, changes={"providerConfig": config}, actor=ACTOR)
    run = imported(row).runs.latest("started_at")
    assert run.messages_new == 0
    assert contents() == bodies


def test_a_source_that_a_worker_is_busy_with_is_not_rebuilt(
    manage: CommandLine, source: IngestionSource
) -> None:
    Mailbox.objects.update(lease_expires_at=timezone.now() + dt.timedelta(seconds=60))
    refused = manage.here("rebuild_archive_index")
    assert refused.code == 1
    assert "Pause the source" in refused.stderr


# -- reconcile_source --------------------------------------------------------------------------


def test_a_complete_archive_reconciles(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    compared = manage("reconcile_source", "Alice", "--json")
    assert compared.code == 0, compared.stderr
    found = compared.json()
    assert (found["listed"], found["present"], found["missing"]) == (40, 40, 0)
    folders = {f["path"]: f for f in found["folders"] if f["wanted"]}
    assert folders["INBOX"]["present"] == 30
    assert folders["Work/2024"]["present"] == 10
    text = manage.here("reconcile_source", "Alice")
    assert "Nothing is missing." in text.stdout


def test_what_is_missing_or_failed_is_told_by_id(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    lost, failed = Placement.objects.filter(folder__path="INBOX").order_by("pk")[:2]
    FailedMessage.objects.create(
        mailbox=failed.mailbox,
        folder=failed.folder,
        remote_id=failed.remote_id,
        code="message_refused",
        reason="NO",
        not_before=timezone.now(),
    )
    lost.delete()
    failed.delete()
    dovecot.append(account.name, "INBOX", mail(300))
    dovecot.append(account.name, "Fresh", mail(301))
    compared = manage.here("reconcile_source", "Alice", "--json")
    assert compared.code == 1
    inbox, fresh = (
        next(f for f in compared.json()["folders"] if f["path"] == path)
        for path in ("INBOX", "Fresh")
    )
    assert (inbox["listed"], inbox["present"], inbox["missing"], inbox["failed"]) == (31, 28, 2, 1)
    assert lost.remote_id in inbox["missingIds"]
    assert inbox["failedIds"] == [failed.remote_id]
    assert fresh["missing"] == 1
    short = manage.here("reconcile_source", "Alice", "--json", "--max-ids", "1").json()
    assert [len(f["missingIds"]) for f in short["folders"] if f["path"] == "INBOX"] == [1]
    text = manage.here("reconcile_source", "Alice")
    assert f"failed in INBOX: {failed.remote_id}" in text.stdout
    assert "Run sync_source" in text.stdout


def test_what_the_options_leave_out_and_what_is_gone_is_not_missing(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    dovecot.append(account.name, "Junk", mail(400))
    client = dovecot.connect(account.name)
    client.select("INBOX")
    client.store("1:2", "+FLAGS", "\\Deleted")
    client.expunge()
    client.logout()
    found = manage.here("reconcile_source", "Alice", "--json")
    assert found.code == 0
    folders = {f["path"]: f for f in found.json()["folders"]}
    assert folders["Junk"]["wanted"] is False
    assert folders["INBOX"]["noLongerListed"] == 2
    later = dt.date.today() + dt.timedelta(days=2)  # noqa: DTZ011 - any day to come
    configuration.update(source, changes={"options": {"since": later.isoformat()}}, actor=ACTOR)
    assert manage.here("reconcile_source", "Alice", "--json").json()["excluded"] == 38


def test_a_provider_that_refuses_is_said_in_a_sentence(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    dovecot.set_password(account.name, "changed")
    refused = manage.here("reconcile_source", "Alice", "--json")
    assert refused.code == 1
    assert refused.stdout == ""
    assert "check user name and password" in refused.stderr
