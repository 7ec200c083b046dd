"""Exports in the background: asked for, made by due work a slice at a time, kept for some days.

    waiting --work--> running --> done --EXPIRES--> expired
                         +------> failed

Killed at any instant, it goes on from the last checkpoint: what was written after it is cut off,
and the file is the one that would have been made without.
"""

import contextlib
import datetime as dt
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.core import signing
from django.db import connection, transaction
from django.utils import timezone

from connectors.types import SpooledBody
from ingestion import queries
from ingestion.errors import ArchiveUnavailable, InvalidInput, NotAllowedNow, WrongArchive
from ingestion.models import Export
from ingestion.services.archive import storage
from ingestion.services.archive.exports.formats import FORMATS
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.archive.exports.stream import added, outcome
from ingestion.services.audit import SYSTEM, Actor, audit
from ingestion.services.engine import lease
from ingestion.states import ExportState

log = structlog.get_logger(__name__)

EXPIRES = dt.timedelta(days=3)
#: A link is for somebody who clicks it now, or hands it to a download manager.
LINK = dt.timedelta(hours=1)
#: The row tells for some time more what was taken out; the audit does for ever.
_ROW_KEPT = dt.timedelta(days=30)
MAX_UNFINISHED = 10
#: Then others have their turn.
_SLICE_SECONDS = 300.0
_MAX_ATTEMPTS = 5
_WAIT = dt.timedelta(minutes=1)
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: As SQL, of due work.
DUE = "state IN ('waiting', 'running') AND not_before <= now()"
UNFINISHED = (ExportState.WAITING, ExportState.RUNNING)


class _Gone(Exception):
    """Its owner deleted it meanwhile."""


class _Leaving(Exception):
    """This worker is told to end: the next one goes on."""


# -- what people do with it ------------------------------------------------------------------------


def start(user: User, *, query: str, format: str, actor: Actor) -> Export:  # noqa: A002 - its name
    """Ask for an export of what a query finds. Raises InvalidInput. Opens its own transaction."""
    if format not in FORMATS:
        raise InvalidInput({"format": [f"Must be one of: {', '.join(FORMATS)}."]})
    Selection(user, query)
    if Export.objects.filter(owner=user, state__in=UNFINISHED).count() >= MAX_UNFINISHED:
        raise NotAllowedNow(
            f"{MAX_UNFINISHED} of your exports are not finished yet. Wait for one, or delete one."
        )
    everybodys = queries.sees_all_mail(user)
    with transaction.atomic():
        export = Export.objects.create(
            owner=user, query=query.strip(), format=format, of_all_mail=everybodys
        )
        audit(actor, "export.start", None, _about(export))
    export.refresh_from_db()
    return export


def delete(export: Export, *, actor: Actor) -> None:
    """Cancel it, or delete its file. Opens its own transaction."""
    files = _Files(export)  # before the row goes, and with it the id
    with transaction.atomic():
        audit(actor, "export.delete", None, _about(export))
        export.delete()
    files.delete()


def opened(export: Export, *, how: str, actor: Actor) -> SpooledBody:
    """Return the file, to be closed; that it is taken out is recorded. Raises NotAllowedNow."""
    owner = export.owner
    if export.state != ExportState.DONE or export.expires_at is None:
        raise NotAllowedNow(f"This export is {export.get_state_display().lower()}.")
    if export.expires_at < timezone.now():
        raise NotAllowedNow("The file is no longer there. Make the export again.")
    may_read = queries.sees_all_mail if export.of_all_mail else queries.reads_mail
    if not owner.is_active or not may_read(owner):
        raise NotAllowedNow("Its owner may not see this mail any more.")
    try:
        file = _Files(export).final.open("rb")
    except FileNotFoundError:
        raise NotAllowedNow("The file is no longer there. Make the export again.") from None
    audit(actor, "export.download", None, {**_about(export), "how": how})
    return SpooledBody(file, export.size_bytes)


def taken_by(actor: Actor, *, query: str, how: str) -> None:
    """Record an export that is made at once (`how`: its format, or where it goes)."""
    audit(actor, "export.stream", None, {"query": query, "how": how})


def file_name(export: Export) -> str:
    return f"mail-{export.created_at:%Y-%m-%d-%H%M}.{FORMATS[export.format].extension}"


def link_token(export: Export) -> str:
    """Return what opens the file without signing in, for as long as LINK."""
    return _signer().sign(export.pk.hex)


def _signer() -> signing.TimestampSigner:
    return signing.TimestampSigner(salt="ingestion.export")


def by_token(pk: uuid.UUID, token: str) -> Export:
    """Return the finished export that a link is for. Raises NotAllowedNow."""
    try:
        named = _signer().unsign(token, max_age=LINK)
    except signing.BadSignature:
        named = ""
    export = Export.objects.filter(pk=pk).select_related("owner").first()
    if export is None or named != export.pk.hex:
        raise NotAllowedNow("This link has expired. Ask for another.")
    return export


def _about(export: Export) -> dict[str, Any]:
    known = {"export": str(export.pk), "query": export.query, "format": export.format}
    return known | {"messages": export.messages_done}


# -- the work --------------------------------------------------------------------------------------


def work(pk: uuid.UUID) -> None:
    """Do a slice of it; it stays due until it is finished."""
    export = Export.objects.filter(pk=pk, state__in=UNFINISHED).select_related("owner").first()
    if export is None:
        return
    try:
        _work(export)
    except _Gone:
        _Files(export).delete()


def _work(export: Export) -> None:
    if export.attempts >= _MAX_ATTEMPTS:
        _fail(export, f"It was begun {export.attempts} times and got no further. See the log.")
        return
    _update(export, attempts=export.attempts + 1, state=ExportState.RUNNING)
    try:
        storage.require()
        storage.claim(settings.EXPORT_DIR, "EXPORT_DIR")
        if not _Files(export).whole:  # somebody emptied the directory
            _update(export, checkpoint=None)
        with _Files(export).opened() as files:
            _slice(export, files)
    except _Leaving:
        _update(export, attempts=0)
    except ArchiveUnavailable as error:
        _update(export, message=str(error), not_before=timezone.now() + _WAIT, attempts=0)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = settings.EXPORT_DIR
        _fail(export, f"The disk of {where} is full. Make room there, or export less at a time.")


def _slice(export: Export, files: "_Opened") -> None:
    checkpoint = export.checkpoint or {}
    begun = checkpoint.get("until")
    until = dt.datetime.fromisoformat(begun) if begun else None
    unindexed = checkpoint.get("unindexed")
    selection = Selection(export.owner, export.query, until=until, unindexed=unindexed)
    writer = FORMATS[export.format](files.manifest, files.directory, files.sums, export.created_at)
    if checkpoint:
        writer.go_on(checkpoint["writer"], files.part)
        files.part.seek(0, os.SEEK_END)
    else:
        _update(export, messages_total=selection.count())
        files.write(writer.begin())
    ends = time.monotonic() + _SLICE_SECONDS
    for messages, after in selection.batches(checkpoint.get("after", "")):
        for message in messages:
            files.write(added(writer, message))
        files.write(writer.pause())
        checkpoint = {
            "until": selection.until.isoformat(),
            "unindexed": selection.unindexed,
            "after": after,
            "lengths": files.synced(),
            "writer": writer.state(),
        }
        _update(
            export,
            checkpoint=checkpoint,
            attempts=0,
            message="",
            messages_done=writer.done,
            messages_unreadable=writer.unreadable,
            size_bytes=checkpoint["lengths"][0],
        )
        if time.monotonic() > ends:
            return
    files.write(writer.end(selection.left_out()))
    size = files.synced()[0]
    _Files(export).finish()
    now = timezone.now()
    connection.close()  # it may have idled for long, and been ended
    _finish(
        export,
        state=ExportState.DONE,
        message=f"{outcome(writer.done, writer.unreadable)}.{selection.left_out()}",
        messages_done=writer.done,
        messages_unreadable=writer.unreadable,
        messages_total=writer.done + writer.unreadable,
        size_bytes=size,
        expires_at=now + EXPIRES,
    )
    _Files(export).delete(finished=False)


def _fail(export: Export, message: str) -> None:
    _Files(export).delete()
    _finish(export, state=ExportState.FAILED, message=message)


def _finish(export: Export, **fields: Any) -> None:
    with transaction.atomic():
        _update(export, checkpoint=None, finished_at=timezone.now(), **fields)
        about = {**_about(export), "unreadable": export.messages_unreadable}
        audit(SYSTEM, f"export.{export.state}", None, about)
    log.info("export_finished", export=str(export.pk), state=export.state)


def _update(export: Export, **fields: Any) -> None:
    """Raises _Gone where the row is."""
    if not Export.objects.filter(pk=export.pk).update(**fields):
        raise _Gone
    for name, value in fields.items():
        setattr(export, name, value)


# -- its files -------------------------------------------------------------------------------------


class _Files:
    """The finished file of an export, and those that it is made in."""

    def __init__(self, export: Export) -> None:
        root: Path = settings.EXPORT_DIR
        self._lengths = export.checkpoint["lengths"] if export.checkpoint else [0, 0, 0]
        self.final = root / f"{export.pk}.{FORMATS[export.format].extension}"
        self._parts = [root / f"{export.pk}.{kind}" for kind in ("part", "manifest", "directory")]
        #: Is made at the end alone, in one go.
        self._sums = root / f"{export.pk}.sums"
        done = export.state == ExportState.DONE
        self.needed = [self.final] if done else [self.final, *self._parts, self._sums]

    @property
    def whole(self) -> bool:
        """Whether all is there that the checkpoint says."""
        return all(
            (path.stat().st_size if path.exists() else 0) >= length
            for path, length in zip(self._found(), self._lengths, strict=True)
        )

    def _found(self) -> list[Path]:
        """Return the parts: killed before its row said that it is done, one has its last name."""
        if self.final.exists():
            self.final.rename(self._parts[0])
        return self._parts

    @contextlib.contextmanager
    def opened(self) -> Iterator["_Opened"]:
        """Open the parts, cut to the last checkpoint."""
        with contextlib.ExitStack() as stack:
            files: list[IO[bytes]] = []
            for path, length in zip(self._found(), self._lengths, strict=True):
                path.touch()
                files.append(stack.enter_context(path.open("r+b")))
                files[-1].truncate(length)
            files.append(stack.enter_context(self._sums.open("w+b")))
            yield _Opened(*files)

    def finish(self) -> None:
        """Give the file its name. What it was made of stays until its row says that it is done:
        killed before, it goes on from there."""
        self._parts[0].rename(self.final)
        directory = os.open(settings.EXPORT_DIR, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def delete(self, *, finished: bool = True) -> None:
        for path in [*self._parts, self._sums, *([self.final] if finished else [])]:
            path.unlink(missing_ok=True)


class _Opened:
    def __init__(
        self, part: IO[bytes], manifest: IO[bytes], directory: IO[bytes], sums: IO[bytes]
    ) -> None:
        self.part, self.manifest, self.directory, self.sums = part, manifest, directory, sums

    def write(self, chunks: Iterator[bytes]) -> None:
        """Write to the export itself. Raises _Leaving, anywhere: what is behind the last checkpoint
        is cut off."""
        for chunk in chunks:
            if lease.leaving.is_set():
                raise _Leaving
            self.part.write(chunk)

    def synced(self) -> list[int]:
        """Have all on stable storage; return the lengths."""
        lengths = []
        for file in (self.part, self.manifest, self.directory):
            file.flush()
            os.fsync(file.fileno())
            lengths.append(file.seek(0, os.SEEK_END))
        return lengths


# -- housekeeping ----------------------------------------------------------------------------------


def expire() -> None:
    """Delete the files whose time is over, rows long after, and files that no row knows."""
    now = timezone.now()
    for export in Export.objects.filter(state=ExportState.DONE, expires_at__lt=now):
        _Files(export).delete()
        with contextlib.suppress(_Gone):
            _update(export, state=ExportState.EXPIRED)
    Export.objects.filter(finished_at__lt=now - _ROW_KEPT).delete()
    root: Path = settings.EXPORT_DIR
    if not root.is_dir():
        return
    try:
        storage.claim(root, "EXPORT_DIR")
    except WrongArchive as error:
        log.warning("exports_not_cleaned", error=str(error))
        return
    there = list(root.iterdir())  # before it is asked whose they are: one may begin meanwhile
    with_file = Export.objects.filter(state__in=[*UNFINISHED, ExportState.DONE])
    needed = {path for export in with_file for path in _Files(export).needed}
    for path in there:
        stem = path.name.partition(".")[0]
        with contextlib.suppress(ValueError):
            uuid.UUID(stem)
            if path not in needed:
                path.unlink(missing_ok=True)
