"""What becomes of a mailbox, its run and its source when a slice of work has ended.

`act_on` is the one table of what each class of connector error means. Everything here is written
under the lease, in transactions of its own: LeaseLost where it is no longer held.
"""

import structlog
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from connectors import errors
from ingestion.errors import LeaseLost, LostRace, WrongArchive
from ingestion.models import Mailbox, Run
from ingestion.services.engine import backoff, careful
from ingestion.services.engine.lease import Lease
from ingestion.services.sources import credentials, verbs
from ingestion.services.sources.status import locked
from ingestion.states import MailboxState, RunKind

log = structlog.get_logger(__name__)

#: A mailbox that fails this often in a row leaves the run; the next run tries again.
_ATTEMPTS_PER_RUN = {RunKind.SYNC: 6, RunKind.IMPORT: 40}
#: More workers than this that die in a row, and the mailbox waits before it may have another.
DEATHS_AT_ONCE = 3


def defer_before(held: Lease, mailbox: Mailbox, run: Run) -> None:
    """Workers keep dying over this mailbox: should this one die too, the next one waits first.

    Raises Unavailable where it is time to leave the mailbox to the next run.
    """
    error = errors.Unavailable(
        f"{held.deaths} workers in a row died while they copied this mailbox. It is tried again "
        "ever more rarely. The system's log may say why they died (out of memory?).",
        code=careful.WORKER_DIED,
    )
    attempts = mailbox.attempts + 1
    if attempts >= _ATTEMPTS_PER_RUN[RunKind(run.kind)]:
        raise error
    with transaction.atomic():
        held.fence()
        Mailbox.objects.filter(pk=mailbox.pk).update(
            attempts=attempts,
            last_error_code=error.code,
            last_error=str(error),
            not_before=Now() + backoff.delay(attempts),
        )
        Run.objects.filter(pk=run.pk).update(warning=str(error))


def act_on(error: errors.ConnectorError, held: Lease, mailbox: Mailbox, run: Run) -> None:
    """What each class of error means, by what it asks of the caller."""
    if isinstance(error, errors.Retryable):
        retry_later(held, mailbox, run, error, server_seconds=error.retry_after_seconds)
    elif isinstance(error, errors.MailboxUnavailable):
        _set_aside(held, mailbox, run, error)
    elif isinstance(error, errors.NeedsReauth):
        wait = backoff.refused_login(_failures(mailbox, error))
        if wait is None:
            _stop_source(held, mailbox, error)
        else:
            retry_later(held, mailbox, run, error, server_seconds=wait)
    elif isinstance(error, errors.Fatal):
        _stop_source(held, mailbox, error)
    else:
        log.error("sync_bug", error=type(error).__name__)
        retry_later(held, mailbox, run, bug(error), server_seconds=None)


def _failures(mailbox: Mailbox, error: errors.ConnectorError) -> int:
    """The failures in a row, this one included. Refused logins are counted by themselves: a bad
    network before one says nothing about the password."""
    mailbox.refresh_from_db(fields=["attempts", "last_error_code"])  # progress reset them
    counted = not isinstance(error, errors.NeedsReauth) or mailbox.last_error_code == error.code
    return mailbox.attempts + 1 if counted else 1


def storage_error(error: OSError) -> errors.Unavailable:
    if isinstance(error, WrongArchive):
        return errors.Unavailable(str(error), code=error.code)
    reason = f"The archive can't be written ({error.strerror or type(error).__name__})."
    return errors.Unavailable(f"{reason} Free space or mend ARCHIVE_DIR.", code="storage")


def bug(error: Exception) -> errors.ConnectorError:
    return errors.ConnectorError(credentials.bug_message(error), code="internal_error")


def _owes(mailbox: Mailbox, run: Run) -> bool:
    """Tell whether the mailbox still owes its work to this run. Another may have begun meanwhile,
    and what came of this one says nothing about that. Call under the fence."""
    return Mailbox.objects.filter(pk=mailbox.pk, run=run).exists()


def settle(held: Lease, mailbox: Mailbox, run: Run) -> None:
    """The mailbox is followed to the end: it owes the run nothing more."""
    with transaction.atomic():
        held.fence()
        if not _owes(mailbox, run):
            return
        Mailbox.objects.filter(pk=mailbox.pk).update(
            run=None,
            attempts=0,
            last_error_code="",
            last_error="",
            last_synced_at=Now(),
            worker_deaths=0,
            messages_expected=0,
        )
        Run.objects.filter(pk=run.pk).update(
            mailboxes_done=F("mailboxes_done") + 1, progress_at=Now()
        )
        if mailbox.last_error:  # as it was when this slice began: it has passed
            Run.objects.filter(pk=run.pk, warning=mailbox.last_error).update(warning="")


def yield_turn(held: Lease) -> None:
    with transaction.atomic():
        held.fence()
        Mailbox.objects.filter(pk=held.mailbox_id).update(
            not_before=Now(), rung_at=Now(), worker_deaths=0
        )


def retry_later(
    held: Lease,
    mailbox: Mailbox,
    run: Run,
    error: errors.ConnectorError,
    *,
    server_seconds: float | None,
) -> None:
    with transaction.atomic():
        held.fence()
        if not _owes(mailbox, run):
            return
        attempts = _failures(mailbox, error)
        wait = backoff.delay(attempts, server_seconds=server_seconds)
        leaves = attempts >= _ATTEMPTS_PER_RUN[RunKind(run.kind)]
        Mailbox.objects.filter(pk=mailbox.pk).update(
            attempts=0 if leaves else attempts,
            last_error_code=error.code,
            last_error=str(error),
            not_before=Now() + wait,
            rung_at=None,
            run=None if leaves else run,
            messages_expected=0 if leaves else F("messages_expected"),
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
        if not _owes(mailbox, run):
            return
        Mailbox.objects.filter(pk=mailbox.pk).update(
            run=None,
            state=MailboxState.UNAVAILABLE,
            state_reason=str(error),
            messages_expected=0,
            last_error_code=error.code,
            last_error=str(error),
        )
        Run.objects.filter(pk=run.pk).update(mailboxes_done=F("mailboxes_done") + 1)


def _stop_source(held: Lease, mailbox: Mailbox, error: errors.ConnectorError) -> None:
    """An operator must act: the source goes to error and says why."""
    with transaction.atomic():
        try:
            source = locked(mailbox.source)
        except LostRace as lost:
            raise LeaseLost(str(lost)) from lost
        held.fence()
        if not source.runnable:
            return
        if source.credentials_version != mailbox.source.credentials_version:
            # What was refused were the credentials of before: that says nothing of these.
            Mailbox.objects.filter(pk=mailbox.pk).update(attempts=0, not_before=Now(), rung_at=None)
            return
        Mailbox.objects.filter(pk=mailbox.pk).update(
            last_error_code=error.code, last_error=str(error), attempts=0
        )
        verbs.fail(source, str(error), actor="ingestion")
