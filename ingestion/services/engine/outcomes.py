"""What becomes of a mailbox, its run and its source when a slice of work has ended.

`engine.trouble` says what an error means, `act_on` what that does to the rows. Everything here is
written under the lease, in transactions of its own: LeaseLost where it is no longer held.
"""

import datetime as dt

import structlog
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from connectors import errors
from ingestion.errors import LeaseLost, LostRace
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.engine import backoff, careful, folder_turns, trouble
from ingestion.services.engine import statements as sql
from ingestion.services.engine.lease import Lease
from ingestion.services.engine.trouble import Action, Trouble
from ingestion.services.sources import verbs
from ingestion.services.sources.status import locked
from ingestion.services.transactions import in_transaction
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
    _defer(held, mailbox, run, error, attempts=attempts)


@in_transaction
def _defer(
    held: Lease, mailbox: Mailbox, run: Run, error: errors.Unavailable, *, attempts: int
) -> None:
    held.fence()
    Mailbox.objects.filter(pk=mailbox.pk).update(
        attempts=attempts,
        failing_since=trouble.FAILING_SINCE,
        last_error_code=error.code,
        last_error=str(error),
        not_before=Now() + backoff.delay(attempts),
    )
    Run.objects.filter(pk=run.pk).update(warning=str(error))


def act_on(error: Exception, held: Lease, mailbox: Mailbox, run: Run) -> None:
    """Write down how a slice failed. Raises `error` where nobody can be told in rows."""
    what = trouble.of_archive(error) if isinstance(error, OSError) else trouble.of(error)
    if what.action is Action.BUG:
        log.error("sync_bug", error=type(error).__name__, exc_info=error)
    # As they are now: progress reset them since the slice began.
    before = Mailbox.objects.filter(pk=mailbox.pk).values_list("attempts", "last_error_code")
    failures = what.failures(*before.first() or (0, ""))
    wait = what.wait(failures)
    if wait is not None:
        _retry_later(held, mailbox, run, what, failures=failures, wait=wait)
    elif what.action is Action.MAILBOX:
        _set_aside(held, mailbox, run, what)
    else:
        _stop_source(held, mailbox, what)


#: The lease is given back with it, by a statement less. Of the run is asked what it was when the
#: slice began: whether somebody asked for more since, and whose warning it shows, which has passed.
#: Archived is what came before this slice began, and before the others of this pass began, of
#: which folders remember it. When it has work again, it stands behind whoever waits by then.
_SETTLE = """
WITH run AS (
    UPDATE ingestion_run
       SET mailboxes_done = mailboxes_done + 1, progress_at = now(),
           warning = CASE WHEN warning = %(error)s THEN '' ELSE warning END
     WHERE id = %(run)s AND asked_at IS NOT DISTINCT FROM %(asked_at)s
 RETURNING id)
UPDATE ingestion_mailbox
   SET run_id = NULL, not_before = now(),
       attempts = 0, failing_since = NULL, last_error_code = '', last_error = '',
       last_synced_at = statement_timestamp(), worker_deaths = 0, messages_expected = 0,
       archived_up_to = least(%(slice)s, (
           SELECT min(f.followed_at) FROM ingestion_folder f
            WHERE f.mailbox_id = %(mailbox)s AND f.followed_at >= %(begun)s)),
       lease_expires_at = NULL
  FROM run WHERE ingestion_mailbox.id = %(mailbox)s"""


def settle(held: Lease, mailbox: Mailbox, run: Run) -> bool:
    """The mailbox is followed to the end: it owes the run nothing more, unless somebody asked for
    what came since (False). Gives the lease back."""
    owed, settled = _settle(held, mailbox, run)
    held.given_back = settled
    return settled or not owed


@in_transaction
def _settle(held: Lease, mailbox: Mailbox, run: Run) -> tuple[bool, bool]:
    """Return whether it owed the run anything until now, and whether that is settled."""
    if held.fence() != run.pk:
        return False, False
    given = {
        "run": run.pk,
        "asked_at": run.asked_at,
        "error": mailbox.last_error,
        "mailbox": mailbox.pk,
        "slice": held.began,
        "begun": folder_turns.begun(run, mailbox),
    }
    return True, sql.run(_SETTLE, given) == 1


@in_transaction
def yield_turn(held: Lease) -> None:
    held.fence()
    Mailbox.objects.filter(pk=held.mailbox_id).update(
        not_before=Now(), handed_out_at=Now(), worker_deaths=0
    )


@in_transaction
def _retry_later(
    held: Lease,
    mailbox: Mailbox,
    run: Run,
    what: Trouble,
    *,
    failures: int,
    wait: dt.timedelta,
) -> None:
    if held.fence() != run.pk or _has_other_credentials(mailbox):  # another run began meanwhile
        return
    leaves = failures >= _ATTEMPTS_PER_RUN[RunKind(run.kind)]
    Mailbox.objects.filter(pk=mailbox.pk).update(
        attempts=0 if leaves else failures,
        failing_since=None if what.asks_to_wait else trouble.FAILING_SINCE,
        last_error_code=what.code,
        last_error=what.text,
        not_before=Now() + wait,
        handed_out_at=None,
        run=None if leaves else run,
        messages_expected=0 if leaves else F("messages_expected"),
    )
    Run.objects.filter(pk=run.pk).update(
        warning=what.text,
        mailboxes_done=F("mailboxes_done") + (1 if leaves else 0),
    )
    about = {"code": what.code, "attempts": failures, "seconds": wait.total_seconds()}
    transaction.on_commit(lambda: log.info("mailbox_deferred", **about))


@in_transaction
def _set_aside(held: Lease, mailbox: Mailbox, run: Run, what: Trouble) -> None:
    """This one mailbox can't be had; the next run's listing tries it again."""
    if held.fence() != run.pk or _has_other_credentials(mailbox):  # another run began meanwhile
        return
    Mailbox.objects.filter(pk=mailbox.pk).update(
        run=None,
        state=MailboxState.UNAVAILABLE,
        state_reason=what.text,
        messages_expected=0,
        failing_since=None,
        last_error_code=what.code,
        last_error=what.text,
    )
    Run.objects.filter(pk=run.pk).update(mailboxes_done=F("mailboxes_done") + 1)


@in_transaction
def _stop_source(held: Lease, mailbox: Mailbox, what: Trouble) -> None:
    """An operator must act: the source goes to error and says why."""
    try:
        source = locked(mailbox.source)
    except LostRace as lost:
        raise LeaseLost(str(lost)) from lost
    held.fence()
    if not source.runnable or _has_other_credentials(mailbox):
        return
    Mailbox.objects.filter(pk=mailbox.pk).update(
        last_error_code=what.code, last_error=what.text, attempts=0
    )
    verbs.fail(source, what.text, code=what.code, actor="ingestion")


def _has_other_credentials(mailbox: Mailbox) -> bool:
    """Tell whether the source was given others since the slice began. What became of those of
    before says nothing of these, so that the mailbox is due at once. Call under the fence."""
    version = mailbox.source.credentials_version
    if IngestionSource.objects.filter(pk=mailbox.source_id, credentials_version=version).exists():
        return False
    Mailbox.objects.filter(pk=mailbox.pk).update(
        attempts=0, failing_since=None, not_before=Now(), handed_out_at=None
    )
    return True
