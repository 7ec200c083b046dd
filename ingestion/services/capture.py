"""Makes fetched messages durable: bytes into a pack, the pack onto disk, then ONE transaction.

    add() ... -> look up known bytes -> append to the pack
    commit()  -> pack durable -> transaction { lease fence, pack, messages, placements, failures,
                                               counters, folder cursor }

Owns what is written for a page, not which pages there are (`services.sync`). Plain SQL over arrays:
ORM objects would cost more than hashing and compressing together.
"""

import dataclasses
import datetime as dt
import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from connectors.errors import ConnectorError, MessageGone
from connectors.types import Cursor, MessageRef, Missing, RawMessage, SpooledBody
from ingestion import mime
from ingestion.archive.store import Extent, PackStore, PackWriter
from ingestion.models import Folder, Mailbox, Run
from ingestion.services import backoff
from ingestion.services import capture_sql as sql
from ingestion.services.lease import Lease

#: A commit happens at the latest after this much: it bounds memory and what a crash repeats.
COMMIT_BYTES = 16_000_000
COMMIT_MESSAGES = 2_000
#: One query finds which of this many bodies are archived already.
_LOOKUP_BYTES = 2_000_000
_LOOKUP_MESSAGES = 250


@dataclasses.dataclass(slots=True)
class _New:
    """Bytes that are in the pack and get a message row."""

    id: uuid.UUID
    sha256: bytes
    size: int
    extent: Extent
    received_at: dt.datetime | None
    headers: mime.Headers


@dataclasses.dataclass(slots=True)
class _Waiting:
    raw: RawMessage
    sha256: bytes
    size: int


class Capture:
    """The capture of one folder's messages under one lease. Not thread-safe."""

    def __init__(
        self,
        lease: Lease,
        *,
        store: PackStore,
        run: Run,
        mailbox: Mailbox,
        folder: Folder,
    ) -> None:
        self._lease, self._store = lease, store
        self._run, self._mailbox, self._folder = run, mailbox, folder
        self._writer: PackWriter | None = None
        self._reset()

    def _reset(self) -> None:
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._new: dict[bytes, _New] = {}
        self._placements: list[tuple[MessageRef, bytes]] = []
        self._known: list[tuple[MessageRef, uuid.UUID]] = []
        self._missing: list[Missing] = []
        self._bytes_fetched = 0

    @property
    def full(self) -> bool:
        """Whether it is time to commit."""
        count = len(self._placements) + len(self._waiting) + len(self._missing)
        return count >= COMMIT_MESSAGES or self._bytes_fetched >= COMMIT_BYTES

    @property
    def empty(self) -> bool:
        return not (self._placements or self._waiting or self._missing or self._known)

    def place(self, known: Sequence[tuple[MessageRef, uuid.UUID]]) -> None:
        """Take references whose bytes are archived under the given message ids."""
        self._known.extend(known)

    def add(self, answer: RawMessage | Missing) -> None:
        """Take one answer of fetch(). Closes a spooled body."""
        if isinstance(answer, Missing):
            self._missing.append(answer)
            return
        body = answer.body
        digest = hashlib.sha256()
        if isinstance(body, bytes):
            digest.update(body)
            size = len(body)
        else:
            size = 0
            for chunk in body.chunks():
                digest.update(chunk)
                size += len(chunk)
            body.size = size
        self._waiting.append(_Waiting(answer, digest.digest(), size))
        self._waiting_bytes += size
        self._bytes_fetched += size
        if self._waiting_bytes >= _LOOKUP_BYTES or len(self._waiting) >= _LOOKUP_MESSAGES:
            self._pack_waiting()

    def commit(
        self,
        *,
        cursor: Cursor | None = None,
        removed: Sequence[str] = (),
        relabelled: Sequence[tuple[str, tuple[str, ...]]] = (),
        listed: bool = False,
    ) -> None:
        """Make all of it durable, then visible, and the folder's cursor with it where one is given.

        Raises LeaseLost, OSError (disk) or DatabaseError; then nothing of it is visible, and the
        same messages are fetched again.
        """
        self._pack_waiting()
        pack_size = self._writer.commit() if self._writer else 0
        try:
            with transaction.atomic():
                self._write(pack_size, cursor, removed, relabelled, listed)
        except Exception:
            self._discard_pack()
            raise
        self._writer = None
        self._reset()

    def abandon(self) -> None:
        """Drop what was not committed; leaves no file behind. Idempotent."""
        for waiting in self._waiting:
            _close(waiting.raw)
        if self._writer is not None:
            self._writer.__exit__(None, None, None)
            self._writer = None
        self._reset()

    # -- the pack --------------------------------------------------------------------------------

    def _pack_waiting(self) -> None:
        if not self._waiting:
            return
        hashes = {w.sha256 for w in self._waiting} - self._new.keys()
        archived = sql.known_hashes(self._mailbox.pk, hashes)
        for waiting in self._waiting:
            if waiting.sha256 in archived:
                self._known.append((waiting.raw.ref, archived[waiting.sha256]))
            else:
                if waiting.sha256 not in self._new:
                    self._new[waiting.sha256] = self._append(waiting)
                self._placements.append((waiting.raw.ref, waiting.sha256))
            _close(waiting.raw)
        self._waiting = []
        self._waiting_bytes = 0

    def _append(self, waiting: _Waiting) -> _New:
        raw = waiting.raw
        received = raw.ref.received_at
        if self._writer is None:
            self._writer = self._store.writer(self._mailbox.source_id)
        extent = self._writer.append(
            {
                "sha256": waiting.sha256.hex(),
                "size": waiting.size,
                "mailbox": self._mailbox.remote_id,
                "address": self._mailbox.address,
                "folder": self._folder.remote_id,
                "path": self._folder.path,
                "remote_id": raw.ref.remote_id,
                "stable_id": raw.ref.stable_id,
                "received_at": received.isoformat() if received else None,
                "labels": raw.ref.labels,
            },
            raw.body,
        )
        head = raw.body if isinstance(raw.body, bytes) else next(raw.body.chunks(), b"")
        return _New(
            uuid.uuid4(),
            waiting.sha256,
            waiting.size,
            extent,
            received,
            mime.parse_headers(mime.head_of(head)),
        )

    def _discard_pack(self) -> None:
        """The transaction did not come: if it truly did not, the pack is an orphan.

        After a lost connection nobody knows, so the pack stays for housekeeping to decide.
        """
        if self._writer is not None and self._lease.lost:
            self._store.delete(self._mailbox.source_id, self._writer.pack_id)
        self._writer = None
        self._reset()

    # -- the transaction -------------------------------------------------------------------------

    def _write(
        self,
        pack_size: int,
        cursor: Cursor | None,
        removed: Sequence[str],
        relabelled: Sequence[tuple[str, tuple[str, ...]]],
        listed: bool,
    ) -> None:
        self._lease.fence()
        ids: dict[bytes, uuid.UUID] = {}
        if self._writer is not None:
            sql.insert_pack(
                self._writer.pack_id, self._mailbox.source_id, pack_size, len(self._new)
            )
            ids = self._insert_messages(self._writer.pack_id)
        stored = sum(n.size for n in self._new.values() if ids[n.sha256] == n.id)
        count = sum(1 for n in self._new.values() if ids[n.sha256] == n.id)
        rows = [(ref, ids[sha256]) for ref, sha256 in self._placements] + self._known
        placed = sql.upsert_placements(self._mailbox.pk, self._folder.pk, rows)
        sql.clear_failures(self._folder.pk, [ref.remote_id for ref, _ in rows])
        failed, gone = self._write_missing()
        if removed:
            sql.mark_removed(self._folder.pk, removed)
        if relabelled:
            sql.relabel(self._folder.pk, relabelled)
        if cursor is not None:
            sql.store_cursor(self._folder.pk, cursor, listed=listed)
        sql.count(
            self._run.pk,
            self._mailbox.pk,
            self._mailbox.source_id,
            messages=count,
            stored_bytes=stored,
            placed=placed,
            failed=failed,
            gone=gone,
            fetched_bytes=self._bytes_fetched,
        )

    def _insert_messages(self, pack_id: uuid.UUID) -> dict[bytes, uuid.UUID]:
        news = list(self._new.values())
        columns: dict[str, list[Any]] = {
            "id": [n.id for n in news],
            "sha256": [n.sha256 for n in news],
            "size_bytes": [n.size for n in news],
            "pack_offset": [n.extent.offset for n in news],
            "pack_length": [n.extent.length for n in news],
            "received_at": [n.received_at for n in news],
            "subject": [n.headers.subject for n in news],
            "sender": [n.headers.sender for n in news],
            "recipients": [n.headers.recipients for n in news],
            "sent_at": [n.headers.sent_at for n in news],
            "message_id": [n.headers.message_id for n in news],
            "defects": [sql.array_literal(n.headers.defects) for n in news],
        }
        inserted = sql.insert_messages(self._mailbox.pk, pack_id, columns)
        ids = {n.sha256: n.id for n in news}
        if inserted < len(news):  # somebody else archived the same bytes: theirs count
            ids.update(sql.known_hashes(self._mailbox.pk, set(ids)))
        return ids

    def _write_missing(self) -> tuple[int, int]:
        gone = [m.ref.remote_id for m in self._missing if isinstance(m.error, MessageGone)]
        failed = [m for m in self._missing if not isinstance(m.error, MessageGone)]
        sql.clear_failures(self._folder.pk, gone)
        new_failures = 0
        for missing in failed:
            error = missing.error
            code = error.code if isinstance(error, ConnectorError) else "internal_error"
            attempts = sql.failure_attempts(self._folder.pk, missing.ref.remote_id) + 1
            new_failures += attempts == 1
            sql.upsert_failure(
                self._mailbox.pk,
                self._folder.pk,
                missing.ref,
                code=code,
                reason=str(error)[:2000].replace("\0", ""),
                attempts=attempts,
                not_before=timezone.now() + backoff.failure_delay(attempts),
            )
        return new_failures, len(gone)


def _close(raw: RawMessage) -> None:
    if isinstance(raw.body, SpooledBody):
        raw.body.close()
