"""Takes fetched messages: hashes them, drops the bytes that are archived, packs the rest.

    add() ... -> hash -> look up known bytes -> parse headers, compress, append to the pack
    commit()  -> give the batch to `services.commit`, which makes it durable and visible while the
                 next one is filled

Owns which bytes are new and what a batch holds; not which pages there are (`services.sync`), nor
how a batch becomes rows.
"""

import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any

from connectors.types import CHUNK_BYTES, Body, Cursor, MessageRef, Missing, RawMessage, SpooledBody
from ingestion import mime
from ingestion.models import Folder, Mailbox
from ingestion.services import capture_sql as sql
from ingestion.services.capture_sql import NewMessage, new_message_ids
from ingestion.services.commit import COMMIT_BYTES, COMMIT_MESSAGES, Batch, Committer
from ingestion.services.options import Options

#: A batch ends after this long at the latest: from a slow server COMMIT_BYTES are hours, and so
#: people see progress, and a crash costs seconds.
COMMIT_SECONDS = 3.0
#: One query finds which of this many bodies are archived already; one call compresses them.
_LOOKUP_BYTES = 2_000_000
_LOOKUP_MESSAGES = 250


class Capture:
    """The capture of one folder's messages under one lease. Not thread-safe.

    Without `parse` the bytes are all that is looked at: no header fields.
    """

    def __init__(
        self,
        committer: Committer,
        *,
        mailbox: Mailbox,
        folder: Folder,
        parse: bool = True,
    ) -> None:
        self._committer, self._parse = committer, parse
        self._mailbox, self._folder = mailbox, folder
        self._options = Options.of(mailbox.source.options)
        self._batch = Batch(folder.pk)
        self._waiting: list[tuple[RawMessage, bytes, int]] = []
        self._waiting_bytes = 0
        self._packed: dict[bytes, uuid.UUID] = {}  # message ids by hash
        self._since = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether it is time to commit."""
        count = len(self._batch.placements) + len(self._waiting) + len(self._batch.missing)
        return (
            count >= COMMIT_MESSAGES
            or self._batch.fetched_bytes >= COMMIT_BYTES
            or time.monotonic() - self._since >= COMMIT_SECONDS
        )

    @property
    def empty(self) -> bool:
        batch = self._batch
        return not (batch.placements or self._waiting or batch.missing or batch.left_out)

    def place(self, known: Sequence[tuple[MessageRef, uuid.UUID]]) -> None:
        """Take references whose bytes are archived under the given message ids."""
        self._batch.placements.extend(known)

    def add(self, answer: RawMessage | Missing) -> None:
        """Take one answer of fetch(). Closes a spooled body, sooner or later.

        Nothing is kept of one that the options leave out, where only the download told.
        """
        if not self._options.wants_message(answer.ref):
            self._batch.left_out.append(answer.ref.remote_id)
            if isinstance(answer, RawMessage):
                _close(answer.body)
            return
        if isinstance(answer, Missing):
            self._batch.missing.append(answer)
            return
        sha256, size = _hashed(answer.body)
        self._waiting.append((answer, sha256, size))
        self._waiting_bytes += size
        self._batch.fetched_bytes += size
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
        """Have all of it made durable, then visible, and the folder's cursor with it where one is
        given: soon, or at `Committer.wait`. Raises what became of batches before; then this one is
        dropped too, and the same messages are fetched again.
        """
        try:
            self._pack_waiting()
        except BaseException:
            self.abandon()
            raise
        batch = self._batch
        batch.cursor, batch.listed = cursor, listed
        batch.removed, batch.relabelled = removed, relabelled
        self._batch = Batch(self._folder.pk)
        self._packed, self._since = {}, time.monotonic()
        self._committer.submit(batch)

    def abandon(self) -> None:
        """Drop what was not committed. What is in the pack stays there and is nobody's."""
        for raw, _, _ in self._waiting:
            _close(raw.body)
        self._batch, self._waiting, self._packed = Batch(self._folder.pk), [], {}

    def _pack_waiting(self) -> None:
        if not self._waiting:
            return
        mine = self._committer.invisible() | self._packed
        hashes = {sha256 for _, sha256, _ in self._waiting} - mine.keys()
        archived = sql.known_hashes(self._mailbox.pk, hashes) | mine
        ids = new_message_ids(len(self._waiting))
        new: dict[bytes, tuple[RawMessage, int]] = {}
        for raw, sha256, size in self._waiting:
            if sha256 not in archived:
                archived[sha256] = self._packed[sha256] = next(ids)
                new[sha256] = (raw, size)
            self._batch.placements.append((raw.ref, archived[sha256]))
        if new:
            self._pack(new)
        for raw, _, _ in self._waiting:
            _close(raw.body)
        self._waiting, self._waiting_bytes = [], 0

    def _pack(self, new: dict[bytes, tuple[RawMessage, int]]) -> None:
        extents = self._committer.pack.append_all(
            [(self._record(sha256, size, raw.ref), raw.body) for sha256, (raw, size) in new.items()]
        )
        for (sha256, (raw, size)), extent in zip(new.items(), extents, strict=True):
            head = mime.head_of(_beginning(raw.body)) if self._parse else None
            pk, received_at = self._packed[sha256], raw.ref.received_at
            self._batch.new.append(NewMessage(pk, sha256, size, extent, received_at, head=head))

    def _record(self, sha256: bytes, size: int, ref: MessageRef) -> dict[str, Any]:
        """Return what the pack says of a message: enough to make the rows again."""
        return {
            "sha256": sha256.hex(),
            "size": size,
            "mailbox": self._mailbox.remote_id,
            "address": self._mailbox.address,
            "folder": self._folder.remote_id,
            "path": self._folder.path,
            "remote_id": ref.remote_id,
            "stable_id": ref.stable_id,
            "received_at": ref.received_at.isoformat() if ref.received_at else None,
            "labels": ref.labels or (),
        }


def _hashed(body: Body) -> tuple[bytes, int]:
    if isinstance(body, bytes):
        return hashlib.sha256(body).digest(), len(body)
    digest, body.size = hashlib.sha256(), 0
    for chunk in body.chunks():
        digest.update(chunk)
        body.size += len(chunk)
    return digest.digest(), body.size


def _beginning(body: Body) -> bytes:
    return body if isinstance(body, bytes) else next(body.chunks(), b"")[:CHUNK_BYTES]


def _close(body: Body) -> None:
    if isinstance(body, SpooledBody):
        body.close()
