"""Gets past a message that makes workers die, or connections break, and leaves the others alone.

A worker that died left its lease behind, and the next one is told (`Lease.deaths`). Until a batch
is committed, or its slice is over, it fetches message by message, and writes down the worst before
it touches one: a FailedMessage that is taken away once the message is parsed and in its pack, or by
a worker that lived to see an error. (The dead one may have had several batches in hand, most of
them on their way to the disk. Then another death or two lead to the message.) Those that pass are
committed together: one, then two, four, eight, so that workers which die soon after their start get
on as well, and thousands of messages are no thousands of packs. A suspect is committed by itself.
So one that kills leaves a row that counts its victims:

    0 or 1   fetched and archived as any other
    2        archived without parsing: exact bytes, empty header fields, a defect that says so
    3        set aside as "poison": tried again once a day, and when somebody asks

Together with the death that made the work careful these are three before anything is given up, and
two of one message alone. After a death the others have their turn first: whatever else kills
workers, also each soon after its start, hits the same message twice only by chance.

A server that breaks the connection at one message is got past in the same way: once downloads of a
folder broke off twice without progress, its messages are fetched one by one. One at which that
breaks again is a suspect: an outage in which logins work looks the same. It is left out, and asked
for once more when all others had their turn; if that breaks too, it is recorded as failed. From
then on it says nothing of the mailbox: when its time has come it is asked for last of all.
"""

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Callable, Iterator, Sequence

import structlog
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from connectors.base import MailboxSession
from connectors.errors import ConnectorError, Unavailable
from connectors.types import MessageRef, Missing, RawMessage, RemoteFolder
from ingestion.models import FailedMessage, Folder, Mailbox, Run
from ingestion.services.engine import backoff, commit, statements
from ingestion.services.engine.capture import Capture, OpenBatch
from ingestion.services.engine.lease import Lease
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

WORKER_DIED, POISON, BREAKS = "worker_died", "poison", "breaks_connection"
#: Messages that failed with these codes are never fetched among others.
ALONE = frozenset({WORKER_DIED, POISON, BREAKS})
_VICTIMS_BEFORE_UNPARSED = 2
_VICTIMS_BEFORE_SET_ASIDE = 3
_POISON_WAIT = dt.timedelta(days=1)

_DIED = (
    "A worker died while it handled this message. It is tried again alone, and if that happens "
    "twice it is archived without being parsed. Nothing needs to be done."
)
_SET_ASIDE = (
    "Every worker that handled this message died, at last even without parsing it. It is left out "
    "and tried once a day. The system's log may say why (out of memory?); retry it when that is "
    "mended."
)

_SUSPECT = "The connection broke when this message was asked for. It is asked for once more soon."
_BREAKS = "Whenever this message is asked for, the connection breaks; the others can be had."


@dataclasses.dataclass
class CarefulFetch:
    """The careful way of one lease. Not thread-safe.

    `stuck`: downloads broke off before, without progress.
    """

    held: Lease
    capture: Capture
    run: Run
    mailbox: Mailbox
    stuck: bool
    #: Whether a message was found that may break the connection.
    blamed: bool = False
    #: How many came, in all folders.
    messages: int = 0
    #: Of which message the worst is written down, and what was known of it before.
    _expected: tuple[Folder, MessageRef, FailedMessage | None] | None = None
    #: How many are committed together next.
    _together: int = 1
    _bytes: int = 0

    @property
    def needed(self) -> bool:
        """Whether what went wrong before may lie in a message that is not committed yet."""
        return self.stuck or self.held.deaths > 0

    def fetch_while_needed(
        self,
        session: MailboxSession,
        remote: RemoteFolder,
        folder: Folder,
        refs: Sequence[MessageRef],
        *,
        must_stop: Callable[[], bool],
    ) -> Sequence[MessageRef] | None:
        """Fetch message by message while that is needed; return the rest. None: it had to stop.

        Opens its own transactions. Raises what a fetch or a commit raises; what came before an
        error of the connection is kept.
        """
        done = 0
        while done < len(refs) and self.needed:
            if must_stop():
                return None
            with self._batch(folder) as batch:
                for ref in refs[done : done + self._together]:
                    self._fetch(batch, session, remote, folder, ref, row=_row(folder, ref))
                    done += 1
                    if batch.full or must_stop():
                        break
            self._together *= 2
        return refs[done:]

    def fetch_alone(
        self, session: MailboxSession, remote: RemoteFolder, folder: Folder, ref: MessageRef
    ) -> None:
        """Fetch one message that is known for what went wrong at it, and commit it by itself.

        Opens its own transactions. Raises what a fetch or a commit raises. Then nothing of the
        message is changed, but where it broke the connection as downloads did before: that is
        recorded.
        """
        row = _row(folder, ref)
        if row and row.code == WORKER_DIED and row.attempts >= _VICTIMS_BEFORE_SET_ASIDE:
            self._set_aside(row)
            return
        with self._batch(folder, parse=_victims(row) < _VICTIMS_BEFORE_UNPARSED) as batch:
            self._fetch(batch, session, remote, folder, ref, row=row)

    @contextlib.contextmanager
    def _batch(self, folder: Folder, *, parse: bool = True) -> Iterator[OpenBatch]:
        """A batch that is visible in the end; then, or after an error, the worst is expected of
        none of its messages."""
        try:
            with self.capture.batch(folder, parse=parse) as batch:
                try:
                    yield batch
                except ConnectorError:
                    if not batch.empty:
                        batch.commit()
                    raise
                self._bytes += batch.fetched_bytes
                batch.commit()
            self.capture.wait()
        except BaseException:
            self._take_back()
            raise
        self._expected = None  # the commit took it away
        if self.messages >= commit.COMMIT_MESSAGES or self._bytes >= commit.COMMIT_BYTES:
            self._relax()

    def _relax(self) -> None:
        with transaction.atomic():
            self.held.fence()
            Mailbox.objects.filter(pk=self.mailbox.pk).update(worker_deaths=0)
        self.held.deaths, self.stuck = 0, False

    def _fetch(
        self,
        batch: OpenBatch,
        session: MailboxSession,
        remote: RemoteFolder,
        folder: Folder,
        ref: MessageRef,
        *,
        row: FailedMessage | None,
    ) -> None:
        """Fetch one message into a batch, and see it packed."""
        self._expect_the_worst(folder, ref, row)
        try:
            for answer in _answers(session, remote, ref):
                if isinstance(answer, Missing):
                    self._take_back()
                batch.add(answer)
            batch.settle()
        except Unavailable as error:
            self._take_back()
            if self.stuck or (row and row.code == BREAKS):
                self._record_break(folder, ref, row, error)
            raise
        self.messages += 1

    def _expect_the_worst(self, folder: Folder, ref: MessageRef, row: FailedMessage | None) -> None:
        """Write it down of this message, and no more of the one before."""
        poison = row is not None and row.code == POISON
        with transaction.atomic():
            self.held.fence()
            self._restore()
            statements.upsert_failure(
                self.mailbox.pk,
                folder.pk,
                ref,
                code=POISON if poison else WORKER_DIED,
                reason=_SET_ASIDE if poison else _DIED,
                attempts=_victims(row) + 1,
                wait=_POISON_WAIT if poison else dt.timedelta(),
            )
        self._expected = folder, ref, row

    def _take_back(self) -> None:
        """Nobody died: leave what was known of the message before. Idempotent."""
        if self._expected is None:
            return
        self._restore_now()
        self._expected = None

    @in_transaction
    def _restore_now(self) -> None:
        self.held.fence()
        self._restore()

    def _restore(self) -> None:
        """Call inside a transaction, under the fence. `_expected` is to follow once that came: one
        that fails leaves the worst written down."""
        if self._expected is None:
            return
        folder, ref, row = self._expected
        mine = FailedMessage.objects.filter(folder=folder, remote_id=ref.remote_id)
        if row is None:
            mine.delete()
        else:
            mine.update(
                code=row.code,
                reason=row.reason,
                attempts=row.attempts,
                not_before=row.not_before,
            )

    def _record_break(
        self, folder: Folder, ref: MessageRef, row: FailedMessage | None, error: Unavailable
    ) -> None:
        attempts = row.attempts + 1 if row else 0
        with transaction.atomic():
            self.held.fence()
            statements.upsert_failure(
                self.mailbox.pk,
                folder.pk,
                ref,
                code=BREAKS,
                reason=f"{_BREAKS if attempts else _SUSPECT} {error}",
                attempts=attempts,
                wait=backoff.failure_delay(attempts) if attempts else dt.timedelta(),
            )
            if row and is_suspect(row):  # nobody has counted it yet
                self._count_failed()
        self.blamed = True

    def _count_failed(self) -> None:
        Run.objects.filter(pk=self.run.pk).update(messages_failed=F("messages_failed") + 1)

    def _set_aside(self, row: FailedMessage) -> None:
        with transaction.atomic():
            self.held.fence()
            FailedMessage.objects.filter(pk=row.pk).update(
                code=POISON, reason=_SET_ASIDE, not_before=Now() + _POISON_WAIT
            )
            self._count_failed()
        log.error("message_is_poison", folder=row.folder_id, failure=row.pk, victims=row.attempts)


def is_suspect(row: FailedMessage) -> bool:
    """Tell whether it is yet to be shown that the message itself kills, or breaks the connection.

    All others have their turn first.
    """
    return row.code == WORKER_DIED or (row.code == BREAKS and row.attempts == 0)


def _row(folder: Folder, ref: MessageRef) -> FailedMessage | None:
    return FailedMessage.objects.filter(folder=folder, remote_id=ref.remote_id).first()


def _victims(row: FailedMessage | None) -> int:
    return row.attempts if row and row.code in (WORKER_DIED, POISON) else 0


def _answers(
    session: MailboxSession, remote: RemoteFolder, ref: MessageRef
) -> Iterator[RawMessage | Missing]:
    unanswered = True
    for answer in session.fetch(remote, [ref]):
        unanswered = False
        yield answer
    if unanswered:
        raise Unavailable("The server left a message unanswered.", code="short_reply")
