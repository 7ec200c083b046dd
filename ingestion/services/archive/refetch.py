"""Fetches again what the archive has lost of a pack, where the provider still has it.

    find what can't be read -> fetch it -> the same bytes, by SHA-256? -> a new pack, durable
      -> what can be read of the old pack goes along -> one transaction: the rows name the new pack

No row changes before its bytes are safe elsewhere, and none goes: what the provider does not have
any more stays, and `archive.verify` goes on telling of it. Only ever asked for by a person.
"""

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from django.db import connection, transaction
from django.db.models import F

from connectors import errors
from connectors.base import Connector, MailboxSession
from connectors.types import Body, MessageRef, RawMessage, RemoteFolder, RemoteMailbox, SpooledBody
from ingestion.errors import Corrupt, NotAllowedNow
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs.record import Origin, RecordHeader
from ingestion.packs.store import Extent, PackStore, PackWriter, store
from ingestion.services.archive import compaction, storage
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import placements
from ingestion.services.engine import statements as sql
from ingestion.services.engine.capture import hashed
from ingestion.services.sources import credentials
from ingestion.services.transactions import in_transaction

_GONE = "it is no longer where it was at the provider."
_OTHER_BYTES = "the provider hands out other bytes for it now."


@dataclasses.dataclass(slots=True)
class Refetched:
    """How many lost messages are archived again, and how many are not. `refused`: why the provider
    was asked for nothing more; of `packs_not_asked_for` nobody knows what could be had."""

    fetched: int = 0
    left: int = 0
    refused: errors.ConnectorError | None = None
    packs_not_asked_for: int = 0


def refetch(
    source: IngestionSource,
    packs: Iterable[uuid.UUID],
    *,
    actor: Actor,
    on_left: Callable[[str], None],
) -> Refetched:
    """Fetch again what can't be read of these packs. May run beside working workers.

    Calls `on_left` with a sentence for each message that could not be had. Opens its own
    transactions, one for each pack: call it outside of any. Raises ArchiveUnavailable and OSError
    (disk): what was fetched until then is archived.
    """
    storage.require()
    result = Refetched()
    waiting = list(Pack.objects.filter(source=source, pk__in=list(packs)))
    try:
        with (
            compaction.held_off(source.pk),
            credentials.connect(source) as connector,
            _Provider(connector) as provider,
        ):
            while waiting and not provider.refused:
                _mend(waiting.pop(0), provider, result, on_left)
            result.refused = provider.refused
    except errors.ConnectorError as error:  # before it could be asked for any
        result.refused = error
    finally:
        with transaction.atomic():
            done = {"fetched": result.fetched, "left": result.left}
            audit(actor, "archive.refetch", source, done)
    result.packs_not_asked_for = len(waiting)
    return result


def _mend(
    pack: Pack, provider: "_Provider", result: Refetched, on_left: Callable[[str], None]
) -> None:
    archive = store().fresh()
    places = _places(pack)
    good, lost = _sorted_out(archive, pack)
    with archive.writer(pack.source_id) as writer:
        moved: dict[uuid.UUID, Extent] = {}
        why = dict.fromkeys((row.pk for row in lost), _GONE)
        connection.close()  # else it may idle for hours, and be ended before it is used again:
        for row, answer in provider.fetch([(row, places.get(row.pk)) for row in lost]):
            connection.close()  # also by who renews a token
            if not isinstance(answer, RawMessage):
                why[row.pk] = str(answer)
            elif hashed(answer.body) != (bytes(row.sha256), row.size_bytes):
                why[row.pk] = _OTHER_BYTES
            else:
                moved[row.pk] = _append(writer, row, places[row.pk], answer.body)
        result.fetched += len(moved)
        for row in lost:
            if row.pk not in moved:
                result.left += 1
                on_left(f"message {row.sha256_hex[:12]} of pack {pack.pk}: {why[row.pk]}")
        if not moved:
            return
        for row in good:
            if row.pk in places:
                # Where it can't be read twice it stays, and the next verification tells of it.
                with contextlib.suppress(Corrupt), _opened(archive, row) as body:
                    moved[row.pk] = _append(writer, row, places[row.pk], body)
        size_bytes = writer.commit()
    # Behind the pack: while the archive is not moved, it is moved with it (`operations.moving`).
    storage.require()
    _commit(pack, writer.pack_id, size_bytes, moved)


def _places(pack: Pack) -> dict[uuid.UUID, Placement]:
    """Return where each message of the pack is, or was; where it still is, if that is anywhere."""
    placed = Placement.objects.filter(message__pack=pack).select_related("folder")
    latest_last = placed.order_by(F("removed_at").asc(nulls_last=True), "pk")
    return {place.message_id: place for place in latest_last}


def _sorted_out(archive: PackStore, pack: Pack) -> tuple[list[Message], list[Message]]:
    """Return the messages that can be read, and those that can't."""
    good, lost = [], []
    for row in Message.objects.filter(pack=pack).select_related("mailbox", "pack"):
        try:
            with _opened(archive, row):
                good.append(row)
        except Corrupt:  # nothing else says that it is lost
            lost.append(row)
    return good, lost


@contextlib.contextmanager
def _opened(archive: PackStore, row: Message) -> Iterator[Body]:
    extent = Extent(row.pack_offset, row.pack_length)
    body = archive.open(
        row.pack.source_id, row.pack_id, extent, sha256=bytes(row.sha256), size=row.size_bytes
    )
    try:
        yield body
    finally:
        if isinstance(body, SpooledBody):
            body.close()


def _append(writer: PackWriter, row: Message, place: Placement, body: Body) -> Extent:
    mailbox, folder = row.mailbox, place.folder
    origin = Origin(
        mailbox=mailbox.remote_id,
        address=mailbox.address,
        folder=folder.remote_id,
        path=folder.path,
        archived_at=row.archived_at.isoformat(),
    )
    header = RecordHeader(
        sha256=bytes(row.sha256),
        size=row.size_bytes,
        origin=origin,
        remote_id=placements.before_retirement(place.remote_id),
        stable_id=place.stable_id,
        thread_id=place.thread_id,
        received_at=row.received_at.isoformat() if row.received_at else None,
        labels=tuple(place.labels),
    )
    [extent] = writer.append([(header.dumps(), body)])
    return extent


@in_transaction
def _commit(pack: Pack, new_id: uuid.UUID, size_bytes: int, moved: dict[uuid.UUID, Extent]) -> None:
    """Let the rows name the new pack. The old one's row goes with the last message in it; its file,
    where there is one, is an orphan then."""
    alive = IngestionSource.objects.select_for_update(no_key=True).filter(deleted_at=None)
    if not alive.filter(pk=pack.source_id).exists():
        raise NotAllowedNow("The source was deleted meanwhile.")
    sql.insert_pack(new_id, pack.source_id, size_bytes, len(moved))
    sql.move_messages(new_id, moved)
    Pack.objects.filter(pk=pack.pk).update(index_version=0)  # whose defects are counted anew
    if not Message.objects.filter(pack=pack).exists():
        Pack.objects.filter(pk=pack.pk, message_count__lte=0).delete()


class _Provider:
    """The provider, asked for single messages: one session at a time, kept for the next pack.

    `refused`: why it is asked for nothing any more. Whoever knocks again for each folder of a
    thousand packs is locked out.
    """

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._mailbox: uuid.UUID | None = None
        self._sessions = contextlib.ExitStack()
        self._closed: dict[uuid.UUID, errors.ConnectorError] = {}
        self._let_in = False
        self.refused: errors.ConnectorError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sessions.close()

    def fetch(
        self, wanted: Sequence[tuple[Message, Placement | None]]
    ) -> Iterator[tuple[Message, RawMessage | Exception]]:
        """Yield what became of each message that is still placed somewhere. Closes its body."""
        by_folder: dict[Folder, dict[str, tuple[Message, Placement]]] = {}
        for row, place in wanted:
            if place and place.removed_at is None and not placements.is_retired(place.remote_id):
                by_folder.setdefault(place.folder, {})[place.remote_id] = row, place
        for folder, those in by_folder.items():
            waiting = dict(those)
            mailbox = next(iter(those.values()))[0].mailbox
            try:
                session, remote = self._open(mailbox, folder)
                for answer in session.fetch(remote, [_ref(*pair) for pair in those.values()]):
                    row, _ = waiting.pop(answer.ref.remote_id)
                    if isinstance(answer, RawMessage):
                        with contextlib.closing(answer):
                            yield row, answer
                    else:
                        yield row, answer.error
            except errors.ConnectorError as error:
                self._heed(error, mailbox)
                for row, _ in waiting.values():
                    yield row, error

    def _open(self, mailbox: Mailbox, folder: Folder) -> tuple[MailboxSession, RemoteFolder]:
        if refused := self.refused or self._closed.get(mailbox.pk):
            raise refused
        if self._mailbox != mailbox.pk:
            self._sessions.close()
            self._mailbox = None
            remote = RemoteMailbox(mailbox.remote_id, mailbox.address)
            self._session = self._sessions.enter_context(self._connector.open(remote))
            self._folders = {listed.remote_id: listed for listed in self._session.folders()}
            self._mailbox = mailbox.pk
            self._let_in = True
        if folder.remote_id not in self._folders:
            raise errors.FolderGone("Its folder is not there any more.")
        return self._session, self._folders[folder.remote_id]

    def _heed(self, error: errors.ConnectorError, mailbox: Mailbox) -> None:
        if mailbox.pk in self._closed:  # it was not asked for again
            return
        # Once let in, who is to wait is to wait with this one: others have limits of their own.
        waits = isinstance(error, errors.RateLimited) and self._let_in
        if waits or isinstance(error, errors.MailboxUnavailable):
            self._closed[mailbox.pk] = error
        elif isinstance(error, errors.Unavailable) and self._mailbox:
            self._mailbox = None  # a connection that was lost is made again
        elif not isinstance(error, errors.Skippable | errors.CursorExpired):
            self.refused = error


def _ref(row: Message, place: Placement) -> MessageRef:
    return MessageRef(
        remote_id=place.remote_id,
        size_bytes=row.size_bytes,
        stable_id=place.stable_id,
        thread_id=place.thread_id,
        received_at=row.received_at,
        labels=tuple(place.labels),
    )
