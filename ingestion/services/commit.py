"""Makes batches durable, then visible, one after the other, in a thread of its own.

    pack durable -> transaction { lease fence, pack, messages, placements, failures, counters,
                                  folder cursor }

While one batch is written, the next is fetched, hashed and compressed: the disk's and the
database's time is hidden. At most one batch is under way, so their order is the order of `submit`.
"""

import concurrent.futures
import contextlib
import dataclasses
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from django.db import connection, transaction

from connectors.errors import ConnectorError, MessageGone
from connectors.types import Cursor, MessageRef, Missing
from ingestion.archive.store import PackWriter
from ingestion.errors import LeaseLost
from ingestion.models import Mailbox, Run
from ingestion.services import backoff
from ingestion.services import capture_sql as sql
from ingestion.services.capture_sql import NewMessage
from ingestion.services.lease import Lease


@dataclasses.dataclass(slots=True)
class Batch:
    """What becomes visible in one transaction. `placements` name messages by id, new and known."""

    folder_id: int
    writer: PackWriter | None = None
    new: list[NewMessage] = dataclasses.field(default_factory=list)
    placements: list[tuple[MessageRef, uuid.UUID]] = dataclasses.field(default_factory=list)
    missing: list[Missing] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)  # remote ids nobody wants
    fetched_bytes: int = 0
    cursor: Cursor | None = None
    listed: bool = False
    removed: Sequence[str] = ()
    relabelled: Sequence[tuple[str, tuple[str, ...]]] = ()

    def drop(self) -> None:
        """Leave no file behind. Idempotent."""
        if self.writer is not None:
            self.writer.__exit__(None, None, None)
            self.writer = None


class Committer:
    """Commits the batches of one mailbox under one lease. `with`: ends when all are settled."""

    def __init__(self, lease: Lease, *, run: Run, mailbox: Mailbox) -> None:
        self._lease, self._run, self._mailbox = lease, run, mailbox
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._under_way: concurrent.futures.Future[None] | None = None
        #: Message ids by hash of the batch under way, which no query may find yet.
        self.ids_under_way: dict[bytes, uuid.UUID] = {}

    def submit(self, batch: Batch) -> None:
        """Begin to commit a batch once the one before is settled.

        Raises LeaseLost, OSError (disk) or DatabaseError of the one before; then neither is
        visible, and the cursor stands before both.
        """
        try:
            self.wait()
        except BaseException:
            batch.drop()
            raise
        self.ids_under_way = {message.sha256: message.id for message in batch.new}
        self._under_way = self._thread.submit(self._commit, batch)

    def wait(self) -> None:
        """Return when all that was submitted is visible. Raises as `submit` does, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        finally:
            self._thread.submit(_close_connection)
            self._thread.shutdown()

    # -- in the thread ---------------------------------------------------------------------------

    def _commit(self, batch: Batch) -> None:
        writer = batch.writer
        with writer or contextlib.nullcontext():
            pack_size = writer.commit() if writer else 0
        try:
            with transaction.atomic():
                self._write(batch, pack_size)
        except LeaseLost:
            if writer is not None:
                writer.remove()
            raise
        # After any other error nobody knows whether the transaction came: housekeeping decides.
        if batch.new:
            sql.recount_source(self._mailbox.source_id)

    def _write(self, batch: Batch, pack_size: int) -> None:
        self._lease.fence()
        mailbox_id, source_id = self._mailbox.pk, self._mailbox.source_id
        if batch.writer is not None:
            pack_id = batch.writer.pack_id
            sql.insert_pack(pack_id, source_id, pack_size, len(batch.new))
            sql.insert_messages(mailbox_id, pack_id, batch.new)
        placed = sql.upsert_placements(mailbox_id, batch.folder_id, batch.placements)
        settled = [ref.remote_id for ref, _ in batch.placements] + batch.left_out
        sql.clear_failures(batch.folder_id, settled)
        failed, gone = self._write_missing(batch)
        if batch.removed:
            sql.mark_removed(batch.folder_id, batch.removed)
        if batch.relabelled:
            sql.relabel(batch.folder_id, batch.relabelled)
        if batch.cursor is not None:
            sql.store_cursor(batch.folder_id, batch.cursor, listed=batch.listed)
        if not (batch.new or placed or failed or gone or batch.cursor is not None):
            return  # no progress: the attempts since there was some are still counted
        sql.count(
            self._run.pk,
            mailbox_id,
            messages=len(batch.new),
            stored_bytes=sum(message.size for message in batch.new),
            placed=placed,
            failed=failed,
            gone=gone,
            fetched_bytes=batch.fetched_bytes,
        )

    def _write_missing(self, batch: Batch) -> tuple[int, int]:
        gone = [m.ref.remote_id for m in batch.missing if isinstance(m.error, MessageGone)]
        failed = [m for m in batch.missing if not isinstance(m.error, MessageGone)]
        sql.clear_failures(batch.folder_id, gone)
        attempts_of = (
            sql.failed(batch.folder_id, [m.ref.remote_id for m in failed]) if failed else {}
        )
        for missing in failed:
            error = missing.error
            code = error.code if isinstance(error, ConnectorError) else "internal_error"
            attempts = attempts_of.get(missing.ref.remote_id, 0) + 1
            sql.upsert_failure(
                self._mailbox.pk,
                batch.folder_id,
                missing.ref,
                code=code,
                reason=str(error)[:2000].replace("\0", ""),
                attempts=attempts,
                wait=backoff.failure_delay(attempts),
            )
        return len(failed) - len(attempts_of), len(gone)


def _close_connection() -> None:
    connection.close()  # looked up here, where it is the thread's own
