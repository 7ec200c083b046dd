"""Exports of a real archive: what they take, whose mail, damage, kills at any instant, and the end."""

import datetime as dt
import errno
import hashlib
import io
import os
import random
import signal
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.utils import timezone

from ingestion.errors import InvalidInput, NotAllowedNow
from ingestion.models import (
    INDEX_VERSION,
    AuditEvent,
    Export,
    IngestionSource,
    Mailbox,
    Message,
    Pack,
)
from ingestion.services.archive.exports import formats, jobs, selection, stream
from ingestion.services.engine import due_work, lease
from tests.documents import indexed
from tests.servers.scripted_provider import Server
from tests.servers.scripted_source import ACTOR, body, fill, finish, start, synced
from tests.services.exports.test_formats import bytes_of, manifest, unpacked
from tests.services.test_deadlocks import crossing

pytestmark = pytest.mark.django_db(transaction=True)


def export_of(source: IngestionSource, query: str = "", kind: str = "eml") -> Export:
    return jobs.start(source.owner, query=query, format=kind, actor=ACTOR)


def done(export: Export) -> Export:
    assert due_work.do_now(due_work.Work("export", export.pk))
    export.refresh_from_db()
    return export


def names(directory: Path) -> set[str]:
    """What lies there beside the mark."""
    return {path.name for path in directory.iterdir() if not path.name.startswith(".installation")}


def file_of(export: Export) -> bytes:
    opened = jobs.opened(export, how="test", actor=ACTOR)
    try:
        return b"".join(opened.chunks())
    finally:
        opened.close()


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_every_message_is_in_it_with_the_bytes_that_were_archived(
    archived: IngestionSource, kind: str, tmp_path: Path
) -> None:
    export = done(export_of(archived, kind=kind))

    assert (export.state, export.message) == ("done", "30 messages.")
    root = unpacked(kind, file_of(export), tmp_path / "out")
    found = {entry["id"]: bytes_of(root, entry) for entry in manifest(root)}
    wanted = {str(m.pk): m.sha256_hex for m in Message.objects.all()}
    assert {pk: hashlib.sha256(data).hexdigest() for pk, data in found.items()} == wanted
    assert set(found.values()) == {body(n) for n in range(30)}
    actions = list(AuditEvent.objects.filter(action__startswith="export.").order_by("id"))
    assert [a.action for a in actions] == ["export.start", "export.done", "export.download"]
    assert actions[1].changes["messages"] == 30


@pytest.mark.parametrize("query", ["", "subject:3"])
def test_what_was_archived_while_the_clock_was_ahead_is_in_it(
    archived: IngestionSource, query: str
) -> None:
    three = Message.objects.filter(subject="3")
    indexed(three.get())
    three.update(archived_at=timezone.now() + dt.timedelta(days=365))

    assert done(export_of(archived, query)).messages_done == (1 if query else 30)


def test_what_comes_while_it_is_made_is_not_in_it(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would never end, of an archive into which more comes than is exported. It is broken
    off after its first batch, and goes on."""
    monkeypatch.setattr(selection, "BATCH", 7)
    monkeypatch.setattr(jobs, "_SLICE_SECONDS", 0)
    export = export_of(archived)
    jobs.work(export.pk)
    last = Message.objects.order_by("archived_at", "pk").last()
    assert last is not None
    Message.objects.filter(pk=last.pk).update(archived_at=Now())
    while export.state != "done":
        done(export)

    assert export.messages_done == 29


def test_a_query_takes_what_search_finds_and_a_folder_all_that_lies_there(
    archived: IngestionSource,
) -> None:
    two = Message.objects.filter(subject__in=["3", "4"])
    for message in two:
        indexed(message, text="invoice")
    [mailbox] = Mailbox.objects.all()
    old = mailbox.folders.get(path="Old")

    def taken(query: str) -> int:
        return done(export_of(archived, query)).messages_done

    assert taken("invoice") == 2
    assert Export.objects.latest("created_at").message == (
        "2 messages. 30 messages were not indexed yet when this began: a search may have missed"
        " them. Export again once they are indexed."
    )
    assert taken(f"folder:{old.pk}") == 12
    old.placements.filter(message__subject="3").update(removed_at=timezone.now())
    assert taken(f"folder:{old.pk}") == 11
    assert taken(f"source:{archived.pk}") == taken("source:scripted") == 30
    assert taken(f"mailbox:{mailbox.address}") == 30
    assert taken("source:other") == 0
    with pytest.raises(InvalidInput, match="operator"):
        export_of(archived, "nonsense:x")


def test_what_is_indexed_behind_a_search_that_goes_on_is_told_of(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selection, "BATCH", 1)
    monkeypatch.setattr(jobs, "_SLICE_SECONDS", 0)
    early, late = Message.objects.filter(subject__in=["3", "4"])
    indexed(late, text="invoice", date=dt.datetime(2019, 1, 1, tzinfo=dt.UTC))
    export = export_of(archived, "invoice", kind="maildir")
    jobs.work(export.pk)
    indexed(early, text="invoice", date=dt.datetime(2015, 1, 1, tzinfo=dt.UTC))
    Pack.objects.update(index_version=INDEX_VERSION)
    while export.state != "done":
        done(export)

    note = "30 messages were not indexed yet when this began"
    assert (export.messages_done, note in export.message) == (1, True)
    root = unpacked("maildir", file_of(export), tmp_path / "out")
    assert note in (root / "README.txt").read_text()
    monkeypatch.setattr(jobs, "_SLICE_SECONDS", 300)
    assert done(export_of(archived, "invoice", kind="maildir")).message == "2 messages."


def test_nobody_takes_out_what_they_may_not_see(archived: IngestionSource) -> None:
    other = User.objects.create_user("other")
    staff = User.objects.create_user("boss", is_staff=True, is_superuser=True)

    none = done(jobs.start(other, query="", format="eml", actor=ACTOR))
    everything = done(jobs.start(staff, query=f"source:{archived.pk}", format="eml", actor=ACTOR))

    assert (none.messages_done, everything.messages_done) == (0, 30)
    User.objects.filter(pk=staff.pk).update(is_superuser=False)
    with pytest.raises(NotAllowedNow, match="may not see"):
        file_of(Export.objects.get(pk=everything.pk))


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_a_damaged_message_is_named_and_the_others_are_there(
    server: Server, source: IngestionSource, kind: str, tmp_path: Path
) -> None:
    fill(server, 5)
    start(source)
    finish(source)
    damaged = Message.objects.get(subject="2")
    path = next(django_settings.ARCHIVE_DIR.rglob(f"{damaged.pack_id}.pack"))
    data = bytearray(path.read_bytes())
    data[damaged.pack_offset + damaged.pack_length - 3] ^= 0xFF
    path.write_bytes(data)

    export = done(export_of(source, kind=kind))

    assert export.message == "4 of 5 messages; 1 could not be read."
    root = unpacked(kind, file_of(export), tmp_path / "out")
    [named] = [entry for entry in manifest(root) if "error" in entry]
    assert named["id"] == str(damaged.pk)
    assert "Restore" in named["error"]
    assert "1 could not be read" in (root / "README.txt").read_text()


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_killed_at_any_instant_it_makes_the_same_file(
    archived: IngestionSource, kind: str, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(selection, "BATCH", 7)
    at = timezone.now()
    whole = export_of(archived, kind=kind)
    killed = export_of(archived, kind=kind)
    Export.objects.update(created_at=at)
    done(whole)

    chance, kills = random.Random(kind), 0
    while _work_and_die_at(killed.pk, chance.randrange(30)):
        kills += 1
        Export.objects.update(attempts=0)
    killed.refresh_from_db()

    assert kills >= 2
    assert killed.message == whole.message
    extension = formats.FORMATS[kind].extension
    assert names(settings.EXPORT_DIR) == {f"{whole.pk}.{extension}", f"{killed.pk}.{extension}"}
    assert file_of(killed) == file_of(whole)


def _work_and_die_at(pk: Any, instant: int) -> bool:
    """Work in a process that is killed at its so-manieth call of what changes files or rows."""
    from django.db import connection

    connection.close()
    child = os.fork()
    if child == 0:
        left = instant
        real_fsync, real_rename = os.fsync, Path.rename
        real_update, real_added = jobs._update, stream.added

        def before(real: Any) -> Any:
            def called(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return called

        os.fsync, jobs._update = before(real_fsync), before(real_update)
        Path.rename = before(real_rename)  # type: ignore[method-assign] # the process ends with it
        vars(jobs)["added"] = before(real_added)
        try:
            jobs.work(pk)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_full_disk_is_said_in_words_and_leaves_nothing(
    archived: IngestionSource, export_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    export = done(export_of(archived))

    assert export.state == "failed"
    assert "is full" in export.message
    assert names(export_dir) == set()


def test_a_temporary_directory_without_room_costs_no_export_its_end(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of ten million messages are 2 GB: they lie with all else of it."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert done(export_of(archived)).message == "30 messages."


def test_killed_before_its_row_says_that_it_is_done_it_takes_nothing_that_came_since(
    server: Server, archived: IngestionSource, export_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = export_of(archived)
    finish_of = jobs._finish

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_finish", killed)
    with pytest.raises(KeyboardInterrupt):
        jobs.work(export.pk)
    monkeypatch.setattr(jobs, "_finish", finish_of)
    server.deliver("INBOX", body(99))
    synced(archived)

    assert done(export).messages_done == 30
    assert names(export_dir) == {f"{export.pk}.eml.zip"}


def test_what_a_finished_export_was_made_of_is_nobodys(
    archived: IngestionSource, export_dir: Path
) -> None:
    """It was killed behind its row, and before it took them away."""
    finished, waiting = done(export_of(archived)), export_of(archived)
    for export in (finished, waiting):
        (export_dir / f"{export.pk}.manifest").touch()

    jobs.expire()

    assert names(export_dir) == {f"{finished.pk}.eml.zip", f"{waiting.pk}.manifest"}


@pytest.mark.parametrize("kind", formats.FORMATS)
def test_a_worker_that_is_told_to_end_leaves_the_rest_to_the_next(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(selection, "BATCH", 7)
    whole, export = export_of(archived, kind=kind), export_of(archived, kind=kind)
    Export.objects.update(created_at=timezone.now())
    done(whole)
    real, left = stream.added, 12

    def tell(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            lease.leaving.set()
        return real(*args)

    monkeypatch.setattr(jobs, "added", tell)
    try:
        done(export)
        assert (export.state, export.messages_done, export.attempts) == ("running", 7, 0)
    finally:
        lease.leaving.clear()
    assert file_of(done(export)) == file_of(whole)


def test_a_worker_that_is_told_to_end_reads_no_manifest_of_millions_for_its_sums(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be killed within, and an attempt be lost by each deploy."""
    export, real, read = export_of(archived), formats._entries, 0

    def tell(*args: Any) -> Any:
        nonlocal read
        for entry in real(*args):
            lease.leaving.set()
            read += 1
            yield entry

    try:
        with monkeypatch.context() as told:
            told.setattr(formats, "_entries", tell)
            assert done(export).state == "running"
    finally:
        lease.leaving.clear()
    assert read == 1
    assert done(export).message == "30 messages."


def test_one_that_never_gets_further_fails_and_an_emptied_directory_begins_anew(
    archived: IngestionSource, export_dir: Path
) -> None:
    stuck = export_of(archived)
    Export.objects.update(attempts=5)
    assert "got no further" in done(stuck).message

    emptied = export_of(archived)
    lengths = {"lengths": [10**6, 10**6, 10**6], "after": "", "writer": {}}
    Export.objects.filter(pk=emptied.pk).update(checkpoint=lengths)
    assert done(emptied).message == "30 messages."
    with zipfile.ZipFile(io.BytesIO(file_of(emptied))) as archive:
        assert len(archive.namelist()) == 33


def test_a_deleted_or_expired_export_leaves_no_file(
    archived: IngestionSource, export_dir: Path
) -> None:
    deleted, expired, kept = (done(export_of(archived)) for _ in range(3))
    jobs.delete(deleted, actor=ACTOR)
    assert names(export_dir) == {f"{expired.pk}.eml.zip", f"{kept.pk}.eml.zip"}, "at once"
    Export.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - dt.timedelta(1))
    (export_dir / f"{expired.owner_id:032}.part").touch()  # nobody's
    expired.refresh_from_db()
    with pytest.raises(NotAllowedNow, match="no longer there"):
        file_of(expired)

    jobs.expire()

    assert names(export_dir) == {f"{kept.pk}.eml.zip"}
    expired.refresh_from_db()
    with pytest.raises(NotAllowedNow, match="expired"):
        file_of(expired)
    assert not due_work.do_now(due_work.Work("export", expired.pk))


def test_deleted_while_it_is_made_it_leaves_no_file(
    archived: IngestionSource, export_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = export_of(archived)
    real = stream.added

    def deleting(*args: Any) -> Any:
        Export.objects.filter(pk=export.pk).delete()
        return real(*args)

    monkeypatch.setattr(jobs, "added", deleting)
    jobs.work(export.pk)

    assert names(export_dir) == set()


def test_at_once_it_is_the_same_file(archived: IngestionSource) -> None:
    export = done(export_of(archived))
    chosen = selection.Selection(archived.owner, "")

    assert b"".join(stream.streamed(chosen, "eml", at=export.created_at)) == file_of(export)
    assert chosen.first(10)[0] == 10


def test_a_link_is_for_one_export_and_for_an_hour(
    archived: IngestionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = done(export_of(archived)), done(export_of(archived))
    token = jobs.link_token(one)

    assert jobs.by_token(one.pk, token) == one
    for pk, wrong in ((other.pk, token), (one.pk, token[:-1] + "?"), (one.pk, "")):
        with pytest.raises(NotAllowedNow, match="expired"):
            jobs.by_token(pk, wrong)
    monkeypatch.setattr(jobs, "LINK", dt.timedelta(seconds=-1))
    with pytest.raises(NotAllowedNow, match="expired"):
        jobs.by_token(one.pk, token)


def test_an_export_that_is_deleted_while_its_file_expires_stops_no_housekeeping(
    owner: User,
) -> None:
    long_ago = timezone.now() - dt.timedelta(days=2)
    for _ in range(2):
        Export.objects.create(
            owner=owner, query="", format="eml", state="done", expires_at=long_ago
        )
    first = Export.objects.order_by("pk").first()
    assert first is not None
    with crossing(f"DELETE FROM ingestion_export WHERE id = '{first.pk}'", "SELECT 1"):
        jobs.expire()
    assert Export.objects.get().state == "expired"
