"""Makes batches durable, then visible, in order, in a thread of its own: a group commit.

    pack complete (`packs.client`), then durable
      -> transaction { lease fence, pack, then for each batch: messages, placements, failures,
                       folder cursor; counters }

While groups are written, the next is fetched, hashed and compressed: the disk's and the database's
time is hidden. Where a pack takes long to become durable (an object store), the packs of all groups
under way do so at the same time, and the transactions follow one after the other. A batch that
comes while the thread is idle is a group of its own; those that come meanwhile gather in the next
one, so a thousand small folders cost a few packs and transactions.
"""

import atexit
import collections
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import os
import uuid
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import Self

import structlog
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from connectors.errors import ConnectorError, MessageGone
from connectors.types import Body, Cursor, MessageRef, Missing
from ingestion.errors import ArchiveUnavailable, LeaseLost
from ingestion.models import Folder, Mailbox, Pack, Run
from ingestion.packs import client
from ingestion.packs.client import Answer, PackingProcess
from ingestion.packs.process import Job
from ingestion.packs.record import NewMessage, Origin, RecordHeader
from ingestion.packs.store import PackStore, PackWriter
from ingestion.services.archive import compaction, storage
from ingestion.services.engine import backoff, claims, counters, placements
from ingestion.services.engine import statements as sql
from ingestion.services.engine.lease import Lease
from ingestion.services.engine.seen_hashes import SeenHashes
from ingestion.services.sources.options import Options
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

#: A batch, and a group, ends at the latest after this much: it bounds memory and what a crash
#: repeats, which is up to four groups and a batch.
COMMIT_BYTES = 16_000_000
COMMIT_MESSAGES = 2_000
#: One is being written and the others wait, so that the disk may stall without the download.
_GROUPS_UNDER_WAY = 3


@dataclasses.dataclass(slots=True)
class Batch:
    """What came of a folder's page, or of a part of it. `placements` name messages by id, new and
    known."""

    folder: Folder
    #: Nothing of the folder was known when the worker came to it.
    fresh: bool = False
    #: The messages among them that are new: their ids by hash, and who will tell their rows.
    ids: dict[bytes, str] = dataclasses.field(default_factory=dict)
    answers: list[Answer] = dataclasses.field(default_factory=list)
    new_bytes: int = 0
    placements: list[tuple[MessageRef, str]] = dataclasses.field(default_factory=list)
    missing: list[Missing] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)  # remote ids nobody wants
    fetched_bytes: int = 0
    cursor: Cursor | None = None
    listed: bool = False
    #: Whether placements under retired ids are to be let go of, now that the folder is listed.
    retired: bool = False
    removed: Sequence[str] = ()
    relabelled: Sequence[tuple[str, tuple[str, ...]]] = ()


@dataclasses.dataclass(slots=True)
class _Group:
    """The batches that become visible in one transaction, and the pack that holds their bytes."""

    writer: PackWriter | None = None
    #: All that is appended to it, also of batches that never come.
    answers: list[Answer] = dataclasses.field(default_factory=list)
    batches: list[Batch] = dataclasses.field(default_factory=list)
    ids: dict[bytes, str] = dataclasses.field(default_factory=dict)
    references: int = 0
    fetched_bytes: int = 0
    #: Where its pack is made durable ahead of its turn.
    ahead: concurrent.futures.Future[int] | None = None

    @property
    def full(self) -> bool:
        return self.references >= COMMIT_MESSAGES or self.fetched_bytes >= COMMIT_BYTES

    def add(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.ids.update(batch.ids)
        self.references += len(batch.placements) + len(batch.missing) + len(batch.left_out)
        self.references += len(batch.removed) + len(batch.relabelled)
        self.fetched_bytes += batch.fetched_bytes

    def make_durable(self) -> int:
        """Return the pack's size once all of it is on stable storage. Raises OSError."""
        for answer in self.answers:
            answer.rows()  # also of what no batch wants any more: the pack must be complete
        return self.writer.commit() if self.writer else 0

    def drop(self, source_id: uuid.UUID) -> None:
        """Leave no pack behind, where its transaction never came. One that is complete stays where
        `archive.rebuild` took it in, or may be about to: that takes the mailbox from us, too."""
        if self.ahead is not None:
            concurrent.futures.wait([self.ahead])
        if self.writer is None:
            return
        with contextlib.suppress(ArchiveUnavailable):  # housekeeping will
            if not self.writer.committed:
                self.writer.drop()
                return
            with claims.claimed(compaction.KIND, source_id) as alone:
                if alone and not Pack.objects.filter(pk=self.writer.pack_id).exists():
                    self.writer.drop()


class Committer:
    """Commits the batches of one mailbox under one lease. `with`: ends when all are settled.

    Not thread-safe: its own thread is its own affair.
    """

    def __init__(self, lease: Lease, *, store: PackStore, run: Run, mailbox: Mailbox) -> None:
        self._lease, self._store, self._run, self._mailbox = lease, store, run, mailbox
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._ahead: concurrent.futures.ThreadPoolExecutor | None = None
        self._group = _Group()
        #: With the ids of their messages, the oldest first.
        self._under_way: collections.deque[
            tuple[concurrent.futures.Future[None], dict[bytes, str]]
        ] = collections.deque()
        self._failed = False
        self._process: PackingProcess | None = None  # until a message is new
        self._since = Options.of(mailbox.source.options).wanted.since
        #: Of a mailbox that was empty all is known: what was looked up since, under this lease.
        self.began_empty = not (mailbox.message_count or sql.has_messages(mailbox.pk))
        self._seen = SeenHashes() if self.began_empty else None

    def pack(self, batch: Batch, new: Sequence[tuple[NewMessage, Body]], *, parse: bool) -> None:
        """Have new messages of a batch, which is the next to be submitted, appended to a pack.

        Raises OSError where there can't be a pack; what becomes of the messages, `submit` tells.
        """
        if self._group.writer is None:
            storage.require()
            self._group.writer = self._store.writer(self._mailbox.source_id)
        if self._process is None:
            self._process = client.take()
        writer, messages = self._group.writer, [message for message, _ in new]
        origin = self._origin(batch.folder)
        job = Job(
            self._mailbox.pk.hex,
            writer.pack_id.hex,
            parse,
            ids=[message.id for message in messages],
            records=[RecordHeader.of(message, origin) for message in messages],
        )
        answer = self._process.submit(job, [body for _, body in new], writer.file)
        self._group.answers.append(answer)
        batch.answers.append(answer)
        ids = {message.sha256: message.id for message in messages}
        batch.ids.update(ids)
        batch.new_bytes += sum(message.size for message in messages)

    def _origin(self, folder: Folder) -> Origin:
        return Origin(
            mailbox=self._mailbox.remote_id,
            address=self._mailbox.address,
            folder=folder.remote_id,
            path=folder.path,
            archived_at=timezone.now().isoformat(),
        )

    def known(self, batch: Batch, hashes: AbstractSet[bytes]) -> dict[bytes, str]:
        """Return the message ids of these hashes that are archived, or were packed for this batch
        or one before. The others are to be packed next."""
        if self._seen is not None:
            hashes = self._seen.add(hashes)
        places = [*(ids for _, ids in self._under_way), self._group.ids, batch.ids]
        found = {sha256: ids[sha256] for ids in places for sha256 in hashes if sha256 in ids}
        return found | sql.known_hashes(self._mailbox.pk, hashes - found.keys())

    def submit(self, batch: Batch) -> None:
        """Commit a batch, with the ones after it if need be.

        Raises LeaseLost, OSError (disk) or DatabaseError of those before; then nothing since is
        visible, and the cursors stand before all of it.
        """
        self._group.add(batch)
        if self._group.full or all(future.done() for future, _ in self._under_way):
            self._hand_over()

    def wait(self) -> None:
        """Return when all that was submitted is visible. Raises as `submit` does, once."""
        if self._group.batches:
            self._hand_over()
        self._settle(0)

    def _hand_over(self) -> None:
        group, self._group = self._group, _Group()
        try:
            self._settle(_GROUPS_UNDER_WAY - 1)
        except BaseException:
            group.drop(self._mailbox.source_id)
            raise
        if self._failed:
            group.drop(self._mailbox.source_id)
            self._settle(0)  # tells of it, where that is still to be done
            raise RuntimeError("A group before this one failed, and the caller was told so.")
        if self._thread is None:
            self._thread = concurrent.futures.ThreadPoolExecutor(
                1, thread_name_prefix="commit", initializer=_take_connection
            )
            if self._store.slow:
                self._ahead = concurrent.futures.ThreadPoolExecutor(_GROUPS_UNDER_WAY, "put")
        if self._ahead is not None:
            group.ahead = self._ahead.submit(group.make_durable)
        ours = contextvars.copy_context()  # what is logged names source, mailbox and run
        future = self._thread.submit(ours.run, self._commit_in_turn, group)
        self._under_way.append((future, group.ids))

    def _settle(self, left: int) -> None:
        """Wait until at most so many groups are under way. Raises what became of the others."""
        while self._under_way and (len(self._under_way) > left or self._under_way[0][0].done()):
            future, _ = self._under_way.popleft()
            future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:  # from the last to the first, whatever fails
            stack.callback(self._drop_group)
            stack.callback(self._end_thread)
            stack.callback(self._release_process)
            self.wait()

    def _end_thread(self) -> None:
        """Wait for what is under way, whatever becomes of it: it was told, or is being told."""
        if self._thread is not None:
            self._thread.submit(_keep_connection)
            self._thread.shutdown()
        if self._ahead is not None:
            self._ahead.shutdown()

    def _release_process(self) -> None:
        """Wait for what is on its way to it."""
        process, self._process = self._process, None
        if process is not None:
            process.release()

    def _drop_group(self) -> None:
        """Of a batch that never came."""
        self._group.drop(self._mailbox.source_id)

    # -- in the thread ---------------------------------------------------------------------------

    def _commit_in_turn(self, group: _Group) -> None:
        """Commit a group, unless one before it failed: its cursors stand behind that one's."""
        if self._failed:
            group.drop(self._mailbox.source_id)
            return
        try:
            self._commit(group)
        except BaseException:
            self._failed = True
            raise

    def _commit(self, group: _Group) -> None:
        writer = group.writer
        with writer or contextlib.nullcontext():
            pack_size = group.ahead.result() if group.ahead else group.make_durable()
            rows = [answer.rows() for batch in group.batches for answer in batch.answers]
            connection.close_if_unusable_or_obsolete()  # it may be long since it was used
        try:
            self._write(group, pack_size, rows)
        except LeaseLost:
            group.drop(self._mailbox.source_id)
            raise
        # After any other error nobody knows whether the transaction came: housekeeping decides.
        if group.ids:
            counters.recount_source(self._mailbox.source_id)
        if writer is not None:
            pack = str(writer.pack_id)
            log.info("pack_archived", pack=pack, messages=len(group.ids), bytes=pack_size)

    @in_transaction
    def _write(self, group: _Group, pack_size: int, rows: list[bytes]) -> None:
        self._lease.fence()
        if group.writer is not None:
            pack_id = group.writer.pack_id
            sql.insert_pack(pack_id, self._mailbox.source_id, pack_size, len(group.ids))
            sql.insert_messages(rows)
        progress = counters.Progress()
        for batch in group.batches:
            progress += self._write_batch(batch)
        if progress:
            counters.count(self._run.pk, self._mailbox.pk, progress)
        # Without any, the attempts since there was some are still counted.

    def _write_batch(self, batch: Batch) -> counters.Progress:
        placed = placements.upsert_placements(
            self._mailbox.pk, batch.folder.pk, batch.placements, fresh=batch.fresh
        )
        settled = [ref.remote_id for ref, _ in batch.placements] + batch.left_out
        sql.clear_failures(batch.folder.pk, settled)
        failed, gone = self._write_missing(batch)
        if batch.removed:
            placements.mark_removed(batch.folder.pk, batch.removed)
        if batch.relabelled:
            placements.relabel(batch.folder.pk, batch.relabelled)
        if batch.retired:
            placements.let_go_of_retired(batch.folder.pk)
        if batch.cursor is not None:
            sql.store_cursor(batch.folder.pk, batch.cursor, listed=batch.listed, since=self._since)
        return counters.Progress(
            messages=len(batch.ids),
            stored_bytes=batch.new_bytes,
            placed=placed,
            failed=failed,
            gone=gone,
            fetched_bytes=batch.fetched_bytes,
        )

    def _write_missing(self, batch: Batch) -> tuple[int, int]:
        gone = [m.ref.remote_id for m in batch.missing if isinstance(m.error, MessageGone)]
        failed = [m for m in batch.missing if not isinstance(m.error, MessageGone)]
        sql.clear_failures(batch.folder.pk, gone)
        attempts_of = (
            sql.failed(batch.folder.pk, [m.ref.remote_id for m in failed]) if failed else {}
        )
        for missing in failed:
            error = missing.error
            code = error.code if isinstance(error, ConnectorError) else "internal_error"
            attempts = attempts_of.get(missing.ref.remote_id, 0) + 1
            sql.upsert_failure(
                self._mailbox.pk,
                batch.folder.pk,
                missing.ref,
                code=code,
                reason=str(error)[:2000].replace("\0", ""),
                attempts=attempts,
                wait=backoff.failure_delay(attempts),
            )
        return len(failed) - len(attempts_of), len(gone)


#: Connections of threads that have ended: most syncs commit little, and to connect costs more.
_idle: list[BaseDatabaseWrapper] = []


def _take_connection() -> None:
    with contextlib.suppress(IndexError):
        connections[DEFAULT_DB_ALIAS] = _idle.pop()


def _keep_connection() -> None:
    kept = connections[DEFAULT_DB_ALIAS]
    if not kept.allow_thread_sharing:
        kept.inc_thread_sharing()
    _idle.append(kept)


def close_idle() -> None:
    """Close the connections that are kept for the next mailboxes."""
    while _idle:
        _idle.pop().close()


os.register_at_fork(after_in_child=_idle.clear)
atexit.register(close_idle)
