"""Takes fetched messages: hashes them, drops the bytes that are archived, has the rest packed.

    with capture.batch(folder) as batch:
        batch.add() ... -> hash -> look up known bytes -> the packing process appends to the pack
        batch.commit()  -> give it to `engine.commit`, which makes it durable and visible while the
                           next one is filled

Owns which bytes are new and what a batch holds; not which pages there are (`engine.sync`), nor
how a batch becomes rows.
"""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from connectors.outages import without_a_byte
from connectors.types import Body, Cursor, MessageRef, Missing, RawMessage
from ingestion.models import Folder, Mailbox, Run
from ingestion.packs.client import PART_BYTES
from ingestion.packs.record import NewMessage
from ingestion.packs.store import PackStore
from ingestion.services.engine.commit import COMMIT_BYTES, COMMIT_MESSAGES, Batch, Committer
from ingestion.services.engine.lease import Lease
from ingestion.services.engine.statements import new_message_ids
from ingestion.services.sources.options import Options

#: A batch ends after this long at the latest: from a slow server COMMIT_BYTES are hours, and so
#: people see progress, and a crash costs seconds.
COMMIT_SECONDS = 3.0
#: One query finds which of so many bodies, or of PART_BYTES, are archived already.
_LOOKUP_MESSAGES = 250


class Capture:
    """The capture of one mailbox's messages under one lease. `with`: ends when all that was
    committed is visible. Not thread-safe."""

    def __init__(self, lease: Lease, *, store: PackStore, run: Run, mailbox: Mailbox) -> None:
        self._committer = Committer(lease, store=store, run=run, mailbox=mailbox)
        self._options = Options.of(mailbox.source.options)
        self._open = False

    @property
    def began_empty(self) -> bool:
        """Whether nothing of the mailbox was archived when this began."""
        return self._committer.began_empty

    @contextlib.contextmanager
    def batch(
        self, folder: Folder, *, parse: bool = True, fresh: bool = False
    ) -> Iterator["OpenBatch"]:
        """Begin a batch of a folder's messages; what is not committed in the end is abandoned.

        One at a time: what it has packed is in the pack of the group that is filled now, which
        must not be handed over before the batch is. Without `parse` the bytes are all that is
        looked at: no header fields. `fresh`: nothing of the folder was known when the worker came
        to it.
        """
        self._require_closed()
        batch = OpenBatch(self._committer, self._options, folder, parse=parse, fresh=fresh)
        self._open = True
        try:
            yield batch
        finally:
            self._open = False
            batch.abandon()

    def wait(self) -> None:
        """Return when all that was committed is visible. Raises LeaseLost, OSError (disk) or
        DatabaseError, once; then nothing since is visible, and the cursors stand before it."""
        self._require_closed()
        self._committer.wait()

    def _require_closed(self) -> None:
        if self._open:
            raise RuntimeError("Another batch of this mailbox is open.")

    def __enter__(self) -> Self:
        self._committer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._committer.__exit__(kind, error, trace)


class OpenBatch:
    """A batch that is filled (`Capture.batch`), and the next one once it is committed."""

    def __init__(
        self, committer: Committer, options: Options, folder: Folder, *, parse: bool, fresh: bool
    ) -> None:
        self._committer, self._options, self._parse = committer, options, parse
        self._folder, self._fresh = folder, fresh
        self._begin()

    def _begin(self) -> None:
        self._batch, self._since = Batch(self._folder, self._fresh), time.monotonic()
        self._begin_lookup()

    def _begin_lookup(self) -> None:
        self._waiting: list[tuple[NewMessage, RawMessage]] = []
        self._waiting_bytes = 0
        self._ids = new_message_ids(_LOOKUP_MESSAGES)

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
    def fetched_bytes(self) -> int:
        """How large the bodies are that came since the last commit."""
        return self._batch.fetched_bytes

    @property
    def empty(self) -> bool:
        batch = self._batch
        return not (batch.placements or self._waiting or batch.missing or batch.left_out)

    def place(self, known: Sequence[tuple[MessageRef, str]]) -> None:
        """Take references whose bytes are archived under the given message ids."""
        self._batch.placements.extend(known)

    def add(self, answer: RawMessage | Missing) -> None:
        """Take one answer of fetch(). Closes a spooled body, sooner or later.

        Nothing is kept of one that the options leave out, where only the download told.
        """
        if not self._options.wants_message(answer.ref):
            self._batch.left_out.append(answer.ref.remote_id)
            if isinstance(answer, RawMessage):
                answer.close()
            return
        if isinstance(answer, Missing):
            self._batch.missing.append(answer)
            return
        sha256, size = hashed(answer.body)
        if not size:
            answer.close()
            self._batch.missing.append(Missing(answer.ref, without_a_byte()))
            return
        self._waiting.append((NewMessage(next(self._ids), sha256, size, answer.ref), answer))
        self._waiting_bytes += size
        self._batch.fetched_bytes += size
        if self._waiting_bytes >= PART_BYTES or len(self._waiting) >= _LOOKUP_MESSAGES:
            self._pack_waiting()

    def settle(self) -> None:
        """Return when all that was added is parsed and in the pack, if not durable. Raises OSError
        (a full disk)."""
        self._pack_waiting()
        for answer in self._batch.answers:
            answer.rows()

    def commit(
        self,
        *,
        cursor: Cursor | None = None,
        removed: Sequence[str] = (),
        relabelled: Sequence[tuple[str, tuple[str, ...]]] = (),
        listed: bool = False,
        retired: bool = False,
    ) -> None:
        """Have all of it made durable, then visible, and the folder's cursor with it where one is
        given: soon, or at `Capture.wait`. `retired`: what is under retired ids is let go of then.
        Raises LeaseLost, OSError (disk) or DatabaseError of batches before; then nothing of this
        one becomes visible either, and the same messages are fetched again.
        """
        self._pack_waiting()
        batch = self._batch
        batch.cursor, batch.listed, batch.retired = cursor, listed, retired
        batch.removed, batch.relabelled = removed, relabelled
        self._begin()
        self._committer.submit(batch)

    def abandon(self) -> None:
        """Drop what is not committed. What of it is in the pack stays there and is nobody's."""
        for _, raw in self._waiting:
            raw.close()
        self._begin()

    def _pack_waiting(self) -> None:
        if not self._waiting:
            return
        batch, new = self._batch, []
        known = self._committer.known(batch, {message.sha256 for message, _ in self._waiting})
        for message, raw in self._waiting:
            if message.sha256 not in known:
                known[message.sha256] = message.id
                new.append((message, raw.body))
        if new:
            self._committer.pack(batch, new, parse=self._parse)
        for message, raw in self._waiting:
            batch.placements.append((message.ref, known[message.sha256]))
            raw.close()
        self._begin_lookup()


def hashed(body: Body) -> tuple[bytes, int]:
    """Return the SHA-256 of a body and how large it is, which a spooled one learns by it."""
    if isinstance(body, bytes):
        return hashlib.sha256(body).digest(), len(body)
    digest, body.size = hashlib.sha256(), 0
    for chunk in body.chunks():
        digest.update(chunk)
        body.size += len(chunk)
    return digest.digest(), body.size
