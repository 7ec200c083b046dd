"""Copies one mailbox: lists its folders' changes, drops what is archived, captures the rest.

    lease --> folders() --> per folder: changes() page -> drop known -> fetch() -> Capture.commit
                                             ^                                         |
                                             +----- next page, until nothing is new ---+

The work ends when all folders are followed (the mailbox owes its run nothing more), at the end of
the time slice (the row is due again at once), when the source is paused or deleted or the lease is
lost (at the next message), or with an error: the ladder in `sync_mailbox` says what each class of
error means. A session opened here never outlives the lease; nothing here runs inside a transaction
but what Capture commits.
"""

import time
import uuid
from collections.abc import Generator, Iterable, Sequence

import structlog
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from connectors import errors, registry
from connectors.base import MailboxSession
from connectors.types import (
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteIds,
    RemoteMailbox,
)
from ingestion.archive.store import store
from ingestion.errors import LeaseLost
from ingestion.models import FailedMessage, Folder, Mailbox, Placement, Run
from ingestion.services import backoff, folders, lease, runs, sources
from ingestion.services import capture_sql as sql
from ingestion.services.capture import Capture
from ingestion.services.commit import Committer
from ingestion.services.discovery import MAX_AUTH_FAILURES
from ingestion.services.lease import Lease
from ingestion.services.options import Options
from ingestion.services.status import locked
from ingestion.states import MailboxState, RunKind

log = structlog.get_logger(__name__)

#: After this long the worker takes the next mailbox in line; this one goes on in its turn.
SLICE_SECONDS = 120
#: A mailbox that fails this often in a row leaves the run; the next run tries again.
_ATTEMPTS_PER_RUN = {RunKind.SYNC: 6, RunKind.IMPORT: 40}
_SWEEP_ROWS = 5_000


def sync_mailbox(mailbox_id: uuid.UUID, *, slice_seconds: float = SLICE_SECONDS) -> bool:
    """Work on a mailbox that is due, for one time slice; tell whether it has more to do at once.

    Does nothing where the mailbox is not due or another worker has it. Raises nothing that an
    operator could mend: that is in the mailbox's row.
    """
    held = lease.acquire(mailbox_id)
    if held is None:
        return False
    mailbox = Mailbox.objects.select_related("source", "run").get(pk=mailbox_id)
    run = mailbox.run
    assert run is not None, "acquire() takes only mailboxes that owe work to a run"
    with structlog.contextvars.bound_contextvars(
        source=str(mailbox.source_id), mailbox=str(mailbox.pk), run=str(run.pk)
    ):
        return _sync_under_lease(held, mailbox, run, time.monotonic() + slice_seconds)


def _sync_under_lease(held: Lease, mailbox: Mailbox, run: Run, until: float) -> bool:
    finished = False
    with held:
        try:
            finished = _Mailbox(held, mailbox, run, until).work()
            if finished:
                _settle(held, mailbox, run)
            else:
                _yield_turn(held)
        except LeaseLost:
            log.warning("lease_lost")
            return False
        except errors.ConnectorError as error:
            _act_on(error, held, mailbox, run)
        except (OperationalError, InterfaceError) as error:
            # Nobody can be told in rows: the lease expires and the dispatcher finds the mailbox.
            log.warning("database_unavailable", error=type(error).__name__)
            connection.close()
            return False
        except OSError as error:
            _retry_later(held, mailbox, run, _storage_error(error), server_seconds=None)
        except Exception as error:
            log.exception("sync_bug", error=type(error).__name__)
            _retry_later(held, mailbox, run, _bug(error), server_seconds=None)
    if finished or Mailbox.objects.filter(pk=mailbox.pk, run=None).exists():
        runs.finish_if_done(run.pk)
        return False
    return (
        not held.stopping.is_set()
        and Mailbox.objects.filter(pk=mailbox.pk, run__isnull=False, not_before__lte=Now()).exists()
    )


def _act_on(error: errors.ConnectorError, held: Lease, mailbox: Mailbox, run: Run) -> None:
    """What each class of error means, by what it asks of the caller."""
    if isinstance(error, errors.Retryable):
        _retry_later(held, mailbox, run, error, server_seconds=error.retry_after_seconds)
    elif isinstance(error, errors.MailboxUnavailable):
        _set_aside(held, mailbox, run, error)
    elif isinstance(error, errors.NeedsReauth) and _refused_before(mailbox) < MAX_AUTH_FAILURES - 1:
        _retry_later(held, mailbox, run, error, server_seconds=20.0)
    elif isinstance(error, errors.NeedsReauth | errors.Fatal):
        _stop_source(mailbox, error)
    else:
        log.error("sync_bug", error=type(error).__name__)
        _retry_later(held, mailbox, run, _bug(error), server_seconds=None)


def _refused_before(mailbox: Mailbox) -> int:
    """Return how often in a row the login was refused before, not counting other trouble.

    Trouble before the first refusal counts with it: rather one login too few.
    """
    mailbox.refresh_from_db(fields=["attempts", "last_error_code"])  # progress resets them
    return mailbox.attempts if mailbox.last_error_code == errors.NeedsReauth.code else 0


def _storage_error(error: OSError) -> errors.Unavailable:
    reason = f"The archive can't be written ({error.strerror or type(error).__name__})."
    return errors.Unavailable(f"{reason} Free space or mend ARCHIVE_DIR.", code="storage")


def _bug(error: Exception) -> errors.ConnectorError:
    return errors.ConnectorError(sources.bug_message(error), code="internal_error")


# -- what becomes of the row -------------------------------------------------------------------


def _settle(held: Lease, mailbox: Mailbox, run: Run) -> None:
    """The mailbox is followed to the end: it owes the run nothing more."""
    with transaction.atomic():
        held.fence()
        Mailbox.objects.filter(pk=mailbox.pk).update(
            run=None,
            attempts=0,
            last_error_code="",
            last_error="",
            last_synced_at=Now(),
        )
        Run.objects.filter(pk=run.pk).update(
            mailboxes_done=F("mailboxes_done") + 1, progress_at=Now()
        )
        if mailbox.last_error:  # as it was when this slice began: it has passed
            Run.objects.filter(pk=run.pk, warning=mailbox.last_error).update(warning="")


def _yield_turn(held: Lease) -> None:
    with transaction.atomic():
        held.fence()
        Mailbox.objects.filter(pk=held.mailbox_id).update(not_before=Now(), rung_at=Now())


def _retry_later(
    held: Lease,
    mailbox: Mailbox,
    run: Run,
    error: errors.ConnectorError,
    *,
    server_seconds: float | None,
) -> None:
    with transaction.atomic():
        held.fence()
        mailbox.refresh_from_db(fields=["attempts"])  # progress in this slice reset it
        attempts = mailbox.attempts + 1
        wait = backoff.delay(attempts, server_seconds=server_seconds)
        leaves = attempts >= _ATTEMPTS_PER_RUN[RunKind(run.kind)]
        Mailbox.objects.filter(pk=mailbox.pk).update(
            attempts=0 if leaves else attempts,
            last_error_code=error.code,
            last_error=str(error),
            not_before=timezone.now() + wait,
            rung_at=None,
            run=None if leaves else run,
        )
        Run.objects.filter(pk=run.pk).update(
            warning=str(error),
            mailboxes_done=F("mailboxes_done") + (1 if leaves else 0),
        )
    log.info(
        "mailbox_deferred",
        code=error.code,
        attempts=attempts,
        seconds=wait.total_seconds(),
    )


def _set_aside(held: Lease, mailbox: Mailbox, run: Run, error: errors.ConnectorError) -> None:
    """This one mailbox can't be had; the next run's listing tries it again."""
    with transaction.atomic():
        held.fence()
        Mailbox.objects.filter(pk=mailbox.pk).update(
            run=None,
            state=MailboxState.UNAVAILABLE,
            state_reason=str(error),
            last_error_code=error.code,
            last_error=str(error),
        )
        Run.objects.filter(pk=run.pk).update(mailboxes_done=F("mailboxes_done") + 1)


def _stop_source(mailbox: Mailbox, error: errors.ConnectorError) -> None:
    """An operator must act: the source goes to error and says why."""
    with transaction.atomic():
        source = locked(mailbox.source)
        if source.runnable:
            Mailbox.objects.filter(pk=mailbox.pk).update(
                last_error_code=error.code, last_error=str(error), attempts=0
            )
            sources.fail(source, str(error), actor="ingestion")


# -- the work ----------------------------------------------------------------------------------


class _Mailbox:
    """One slice of work on one mailbox, under its lease."""

    def __init__(self, held: Lease, mailbox: Mailbox, run: Run, until: float) -> None:
        self.held, self.mailbox, self.run, self.until = held, mailbox, run, until
        self.options = Options.of(mailbox.source.options)
        self.committer = Committer(held, run=run, mailbox=mailbox)

    def work(self) -> bool:
        """Return whether every folder is followed to the end."""
        source = self.mailbox.source
        remote = RemoteMailbox(self.mailbox.remote_id, self.mailbox.address)
        with (
            registry.build(
                source.provider,
                {**source.config, **source.secrets},
                sources.environment(),
            ) as connector,
            connector.open(remote) as session,
            self.committer,
        ):
            session.prefer(self.options.wanted)
            followed = folders.store_listing(
                self.held, self.run, self.mailbox, session.folders(), self.options
            )
            return self._retry_failures(session, followed) and all(
                self._follow(session, remote_folder, folder) for remote_folder, folder in followed
            )

    def _must_stop(self) -> bool:
        return self.held.stopping.is_set() or time.monotonic() >= self.until

    def _follow(self, session: MailboxSession, remote: RemoteFolder, folder: Folder) -> bool:
        try:
            return self._pages(session, remote, folder, session.changes(remote, folder.cursor))
        except errors.CursorExpired:
            log.info("cursor_expired", folder=folder.pk)
            return self._pages(session, remote, folder, session.changes(remote, None))
        except errors.FolderGone:
            log.info("folder_gone", folder=folder.pk)  # the next listing says what became of it
            return True

    def _pages(
        self,
        session: MailboxSession,
        remote: RemoteFolder,
        folder: Folder,
        pages: Iterable[Page],
    ) -> bool:
        for page in pages:
            self._capture_page(session, remote, folder, page)
            if self._must_stop():
                return False
        return True

    def _capture_page(
        self, session: MailboxSession, remote: RemoteFolder, folder: Folder, page: Page
    ) -> None:
        wanted = [ref for ref in page.added if self.options.wants_message(ref)]
        if any(ref.stable_id for ref in wanted):
            self.committer.wait()  # what it is about to show may be the same messages
        known, unknown = self._split(folder, wanted)
        if self.run.kind == RunKind.SYNC and wanted:
            Run.objects.filter(pk=self.run.pk).update(
                messages_total=F("messages_total") + len(unknown)
            )
        capture = self._capture(folder)
        capture.place(known)
        if not self._fetch_into(capture, session, remote, unknown):
            return  # stopped on the way: what came is kept, the cursor stays
        if page.present is not None:
            self._sweep(folder, page)
        capture.commit(
            cursor=page.cursor,
            removed=page.removed,
            relabelled=page.relabelled,
            listed=page.present is not None,
        )
        folder.cursor = dict(page.cursor)

    def _capture(self, folder: Folder) -> Capture:
        return Capture(self.committer, store=store(), mailbox=self.mailbox, folder=folder)

    def _fetch_into(
        self,
        capture: Capture,
        session: MailboxSession,
        remote: RemoteFolder,
        refs: Sequence[MessageRef],
    ) -> bool:
        """Fetch all of `refs`, committing as it goes; what arrived before an error is kept.

        Returns False where the work had to stop before the last. Leaves the rest uncommitted, for
        the caller to commit together with the cursor.
        """
        if not refs:
            return True
        asked = {ref.remote_id for ref in refs}
        try:
            answers = session.fetch(remote, refs)
            try:
                for answer in answers:
                    asked.discard(answer.ref.remote_id)
                    self._take(capture, answer)
                    if self.held.stopping.is_set() and asked:
                        capture.commit()
                        return False
            finally:
                if isinstance(answers, Generator):
                    answers.close()  # its threads end here, not when it is collected
        except errors.ConnectorError:
            if not capture.empty:
                capture.commit()
            raise
        except BaseException:
            capture.abandon()
            raise
        if asked:
            raise errors.Unavailable(
                f"The server left {len(asked)} of {len(refs)} messages unanswered.",
                code="short_reply",
            )
        return True

    def _take(self, capture: Capture, answer: RawMessage | Missing) -> None:
        if self.options.wants_message(answer.ref):
            capture.add(answer)
        else:  # only the download told
            capture.leave_out(answer)
        if capture.full:
            capture.commit()

    def _split(
        self, folder: Folder, refs: Sequence[MessageRef]
    ) -> tuple[list[tuple[MessageRef, uuid.UUID]], list[MessageRef]]:
        """Part the references into those whose bytes are archived (and by which message id), and
        those to fetch. A message that failed is fetched when its own time has come, not before."""
        ids = [ref.remote_id for ref in refs]
        stable_ids = {ref.stable_id for ref in refs} - {""}
        placed, failed = sql.placed(folder.pk, ids), sql.failed(folder.pk, ids)
        stable = sql.stable(self.mailbox.pk, stable_ids)
        known, unknown = [], {}
        for ref in refs:
            message_id = placed.get(ref.remote_id) or stable.get(ref.stable_id)
            if message_id is not None:
                known.append((ref, message_id))
            elif ref.remote_id not in failed:
                unknown[ref.remote_id] = ref  # once, also where a provider repeats itself
        return known, list(unknown.values())

    def _sweep(self, folder: Folder, page: Page) -> None:
        """Mark as removed what the whole listing no longer has, and forget that it failed.

        Each step is its own transaction.
        """
        assert page.present is not None
        self._forget_failures(folder, page.present)
        after = 0
        while True:
            rows = list(
                Placement.objects.filter(folder=folder, removed_at=None, pk__gt=after)
                .order_by("pk")
                .values_list("pk", "remote_id")[:_SWEEP_ROWS]
            )
            if not rows:
                return
            after = rows[-1][0]
            absent = [pk for pk, remote_id in rows if remote_id not in page.present]
            if absent:
                with transaction.atomic():
                    self.held.fence()
                    Placement.objects.filter(pk__in=absent).update(removed_at=Now())

    def _forget_failures(self, folder: Folder, present: RemoteIds) -> None:
        failed = FailedMessage.objects.filter(folder=folder).values_list("pk", "remote_id")
        absent = [pk for pk, remote_id in failed.iterator() if remote_id not in present]
        if absent:
            with transaction.atomic():
                self.held.fence()
                FailedMessage.objects.filter(pk__in=absent).delete()

    def _retry_failures(
        self, session: MailboxSession, followed: Sequence[tuple[RemoteFolder, Folder]]
    ) -> bool:
        """Fetch again what failed before and is due. Returns False where the work had to stop."""
        remote_of = {folder.pk: (remote, folder) for remote, folder in followed}
        due: dict[int, list[MessageRef]] = {}
        for row in FailedMessage.objects.filter(mailbox=self.mailbox, not_before__lte=Now()):
            ref = MessageRef(
                remote_id=row.remote_id,
                size_bytes=row.size_bytes,
                stable_id=row.stable_id,
                received_at=row.received_at,
                labels=tuple(row.labels),
            )
            due.setdefault(row.folder_id, []).append(ref)
        for folder_id, refs in due.items():
            if folder_id not in remote_of:
                continue
            remote, folder = remote_of[folder_id]
            capture = self._capture(folder)
            try:
                complete = self._fetch_into(capture, session, remote, refs)
            except errors.FolderGone:
                continue
            if not complete:
                return False
            capture.commit()
        return True
