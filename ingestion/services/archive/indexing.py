"""Makes archived mail findable: reads the messages of a pack in their order, and writes documents.

    pack below INDEX_VERSION -> claimed -> its messages are read from the pack, each by a reader
      -> some at a time, in one transaction: documents, threads, better header fields, index_offset
      -> all of them have a document: index_version

Killed at any instant, it goes on from `index_offset`. A message that can't be read gets a document
with a defect, and the others go on; a pack that can't be read is tried again later. Nothing here
changes the archive.
"""

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import structlog
from django.db import DataError, OperationalError, connection
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from connectors.types import SpooledBody
from ingestion.errors import Corrupt
from ingestion.models import INDEX_VERSION, Document, Message, Pack
from ingestion.packs.store import Extent, PackStore, store
from ingestion.search.words import TOO_LONG_FOR_PHRASES
from ingestion.services.archive import documents, reading, storage
from ingestion.services.archive.documents import Indexed
from ingestion.services.engine import backoff, claims, lease
from ingestion.services.engine import statements as sql
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

#: The kind of this work (`engine.due_work.KINDS`).
KIND = "index"
#: For so long a worker indexes what is due before it asks for its next task.
SLICE_SECONDS = 20.0
#: What one transaction writes at most, in messages and in the characters of their words: it bounds
#: memory, what a kill repeats, and for how long another waits for the same mailbox.
_BATCH_MESSAGES = 200
_BATCH_CHARACTERS = 8_000_000

_POLL_SECONDS = 0.2

_NO_BYTES = "Its bytes can't be read from the archive: only its header fields are searched."
_NOT_TAKEN = "It could not be indexed in whole: only its header fields are searched."

#: Of a pack, as SQL.
DUE = f"""index_version < {INDEX_VERSION} AND index_not_before <= now()
   AND (SELECT s.deleted_at IS NULL FROM ingestion_ingestionsource s WHERE s.id = source_id)"""

#: What was never indexed, of whatever source, then what is read again. Of each, owners in turn, as
#: chance has it; of a source what waits longest. All sources are asked for new mail only where
#: there is some: each pack that is read again would wait for that.
_NEXT = f"""
SELECT next.id FROM (
    SELECT id, version
      FROM ingestion_ingestionsource, (VALUES (0), ({INDEX_VERSION - 1})) AS read (version)
     WHERE deleted_at IS NULL AND (%(sources)s::uuid[] IS NULL OR id = ANY(%(sources)s::uuid[]))
       AND (version > 0 OR EXISTS (
           SELECT 1 FROM ingestion_pack WHERE index_version = 0 AND {DUE} AND {claims.FREE}))
     ORDER BY version, row_number() OVER (PARTITION BY version, owner_id ORDER BY random()),
              random()) AS source
CROSS JOIN LATERAL (
    SELECT id FROM ingestion_pack
     WHERE source_id = source.id AND index_version <= source.version AND index_not_before <= now()
       AND {claims.FREE}
     ORDER BY index_version, index_not_before LIMIT 1) AS next
LIMIT 1"""

#: Of a long text each word is searched: a message that has no other defect is none to look after.
_SEARCHED = [TOO_LONG_FOR_PHRASES]

_DONE = """
UPDATE ingestion_pack SET index_version = %(version)s, index_defects = n.defects, index_attempts = 0
  FROM (SELECT count(*) FILTER (WHERE d.message_id IS NULL) AS missing,
               count(*) FILTER (WHERE NOT d.defects <@ %(searched)s::text[]) AS defects
          FROM ingestion_message m LEFT JOIN ingestion_document d ON d.message_id = m.id
         WHERE m.pack_id = %(pack)s) AS n
 WHERE id = %(pack)s AND n.missing = 0"""


class _Deleted(Exception):
    """The source of the pack is deleted."""


def work(pack_id: uuid.UUID) -> bool:
    """Index a pack that is due, and others then, for a slice of time; tell whether there is more.

    Claims each pack, opens its own transactions.
    """
    until = time.monotonic() + SLICE_SECONDS
    pack: uuid.UUID | None = pack_id
    while pack is not None:
        index_pack(pack, until=until)
        if lease.leaving.is_set():
            return False
        pack = next_due()
        if time.monotonic() >= until:
            break
    return pack is not None


def next_due(sources: Sequence[uuid.UUID] | None = None) -> uuid.UUID | None:
    """Return a pack that is due, of some sources or of all, and that nobody is at."""
    with connection.cursor() as cursor:
        cursor.execute(_NEXT, {"kind": KIND, "sources": None if sources is None else list(sources)})
        row = cursor.fetchone()
    return row[0] if row else None


def index_pack(pack_id: uuid.UUID, *, until: float = math.inf) -> int:
    """Index a pack if it is due and nobody is at it, or as much of it as there is time for until
    then, by the monotonic clock; return how many messages were read."""
    with claims.claimed(KIND, pack_id) as mine:
        pack = _due().filter(pk=pack_id).first() if mine else None
        if pack is None:
            return 0
        with structlog.contextvars.bound_contextvars(source=str(pack.source_id), pack=str(pack_id)):
            return _Indexing(pack, until).run()


def index_now(
    sources: Sequence[uuid.UUID] | None = None, *, on_progress: Callable[[int], None]
) -> None:
    """Index all that is due of some sources, or of all, here and now; wait for what others are at.
    Calls `on_progress` with the number of messages read so far, after each pack."""
    count = 0
    while _due().filter(_of(sources)).exists():
        pack = next_due(sources)
        if pack is None:
            time.sleep(_POLL_SECONDS)
        else:
            count += index_pack(pack)
            on_progress(count)


def _due() -> QuerySet[Pack]:
    """Return what DUE says."""
    return Pack.objects.filter(
        index_version__lt=INDEX_VERSION, index_not_before__lte=Now(), source__deleted_at=None
    )


def _of(sources: Sequence[uuid.UUID] | None) -> Q:
    return Q() if sources is None else Q(source__in=sources)


@in_transaction
def owe(sources: Sequence[uuid.UUID] | None = None, *, everything: bool = False) -> int:
    """Have packs indexed now; return how many are due. Of `everything`, all packs are read again;
    else those that are due anyway, also if they wait because they could not be read, and those that
    have messages whose bytes could not. Opens its own transaction."""
    packs = Pack.objects.filter(_of(sources), source__deleted_at=None)
    if everything:
        # Never 0, which is of new mail: that goes first.
        packs.filter(index_version__gt=0).update(index_version=INDEX_VERSION - 1)
        packs.update(index_offset=0)
    else:
        unread = Document.objects.filter(version=0).values("message__pack")
        packs.filter(pk__in=unread).update(index_version=0)
    due = packs.filter(index_version__lt=INDEX_VERSION)
    return due.update(index_not_before=Now(), handed_out_at=None)


class _Indexing:
    """The indexing of one pack."""

    def __init__(self, pack: Pack, until: float) -> None:
        self._pack, self._until = pack, until
        self._archive: PackStore = store()
        self._batch: list[Indexed] = []
        self._characters = 0
        self._count = 0

    def run(self) -> int:
        with contextlib.suppress(_Deleted):
            try:
                whole = self._read_all()
            except (Corrupt, OSError) as error:
                self._flush()
                self._postpone(error)
            else:
                self._flush()
                if whole:
                    done = {"pack": self._pack.pk, "version": INDEX_VERSION}
                    sql.run(_DONE, {**done, "searched": _SEARCHED})
                    log.info("pack_indexed", messages=self._count)
        return self._count

    def _read_all(self) -> bool:
        """Read what is still to be read; False where the time was over before the end."""
        storage.require()
        for message in self._messages():
            if lease.leaving.is_set() or time.monotonic() >= self._until:
                return False
            self._add(self._read(message))
        return True

    def _messages(self) -> Iterator[Message]:
        """Yield what of the pack is still to be read, in its order."""
        to_be_read = (
            Q(pack_offset__gt=self._pack.index_offset)
            | Q(document__isnull=True)
            | Q(document__version__lt=INDEX_VERSION)
        )
        messages = Message.objects.filter(to_be_read, pack=self._pack)
        return messages.order_by("pack_offset").iterator(_BATCH_MESSAGES)

    def _read(self, message: Message) -> Indexed:
        source_id = self._pack.source_id
        try:
            body = self._archive.open(
                source_id,
                self._pack.pk,
                Extent(message.pack_offset, message.pack_length),
                sha256=bytes(message.sha256),
                size=message.size_bytes,
            )
        except Corrupt as error:
            if isinstance(error.__cause__, FileNotFoundError):  # of all the pack
                raise
            log.warning("message_not_indexed", message=str(message.pk), error=type(error).__name__)
            return documents.made_of_its_row(message, _NO_BYTES, source_id=source_id, version=0)
        try:
            return documents.made(message, reading.digest(body), source_id=source_id)
        except OSError:  # no process or file to be had just now
            raise
        except Exception as error:  # noqa: BLE001 - a bug of ours: no other mail waits for it
            return self._bare(message, error)
        finally:
            if isinstance(body, SpooledBody):
                body.close()

    def _add(self, one: Indexed) -> None:
        self._batch.append(one)
        self._characters += len(one.words.literal)
        if len(self._batch) >= _BATCH_MESSAGES or self._characters >= _BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch, self._characters = self._batch, [], 0
        if not batch:
            return
        try:
            self._write(batch)
        except (DataError, OperationalError) as error:
            if not _is_of_the_data(error):
                raise
            for one in batch:
                self._write_alone(one)
        self._count += len(batch)

    def _write(self, batch: Sequence[Indexed]) -> None:
        if not documents.write(self._pack.pk, self._pack.source_id, batch):
            raise _Deleted

    def _write_alone(self, one: Indexed) -> None:
        """Write a message that another may have kept from being written, or that is the one."""
        try:
            self._write([one])
        except (DataError, OperationalError) as error:
            if not _is_of_the_data(error):
                raise
            self._write([self._bare(one.message, error)])

    def _bare(self, message: Message, error: Exception) -> Indexed:
        """Make do with the row of a message, because of an error that may quote the mail."""
        log.error("message_not_indexed", message=str(message.pk), error=type(error).__name__)
        row = Message.objects.get(pk=message.pk)  # as it was before it was given other fields
        return documents.made_of_its_row(row, _NOT_TAKEN, source_id=self._pack.source_id)

    def _postpone(self, error: Exception) -> None:
        attempts = self._pack.index_attempts + 1
        log.warning("pack_not_indexed", error=type(error).__name__)
        Pack.objects.filter(pk=self._pack.pk).update(
            index_attempts=attempts, index_not_before=Now() + backoff.failure_delay(attempts)
        )


def _is_of_the_data(error: Exception) -> bool:
    """Whether what is written is at fault: a value, or more of it than there is room for (class 54
    of PostgreSQL's error codes)."""
    return isinstance(error, DataError) or getattr(error.__cause__, "sqlstate", "").startswith("54")
