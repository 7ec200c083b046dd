"""Lists the mailboxes of a source at the start of a run, and gives each that is wanted its work.

Idempotent: a worker that dies half-way is replaced by one that lists again. Mailboxes already
listed work on meanwhile.

What is listed is stored under the source's row lock, under which runs end and work is made due.
"""

import contextlib
import datetime as dt
import itertools
import uuid
from collections.abc import Iterable, Iterator

import structlog
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone

from connectors.errors import Unavailable
from connectors.types import RemoteMailbox
from ingestion import pace
from ingestion.amounts import counted
from ingestion.errors import LostRace
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Run
from ingestion.services.engine import folders, runs, trouble
from ingestion.services.engine.trouble import Action, Trouble
from ingestion.services.sources import credentials, verbs
from ingestion.services.sources.options import Options
from ingestion.services.sources.status import locked
from ingestion.services.transactions import in_transaction
from ingestion.states import ListAnew, MailboxState, RunKind

log = structlog.get_logger(__name__)

_BATCH = 500


def discover(run_id: uuid.UUID) -> None:
    """List the source's mailboxes and make the wanted ones due. Network outside transactions."""
    run = Run.objects.select_related("source").filter(pk=run_id, finished_at=None).first()
    if run is None or run.discovered_at is not None or not run.source.runnable:
        return
    source = run.source
    try:
        with credentials.connect(source) as connector:
            _list_all(source, run, connector.mailboxes())
    except LostRace:
        log.info("discovery_overtaken")
        _list_again(run)
    except Exception as error:
        what = trouble.of(error)
        if what.action is Action.BUG:
            log.exception("discovery_bug", run=str(run.pk), error=type(error).__name__)
        with contextlib.suppress(LostRace):  # deleted: nobody waits for it
            _act_on(what, source, run)
    else:
        if run.kind == RunKind.IMPORT:
            log.info("mailboxes_listed", source=str(source.pk))
        runs.finish_if_done(run.pk)


def _list_all(source: IngestionSource, run: Run, mailboxes: Iterable[RemoteMailbox]) -> None:
    """Store the listing. Raises LostRace where it is of no use any more: see `_own`."""
    options = Options.of(source.options)
    resting = _resting(source, run)
    seen: set[str] = set()
    for batch in _batched(mailboxes, _BATCH):
        # Who is renamed between two pages of a listing may be on both.
        listed = {mailbox.remote_id: mailbox for mailbox in batch}
        seen |= listed.keys()
        rows = [
            _row(source, None if remote_id in resting else run, mailbox, options)
            for remote_id, mailbox in listed.items()
        ]
        _store(source, run, rows, alone=len(rows) == len(seen) == 1)
    _settle(source, run, seen)


@in_transaction
def _store(source: IngestionSource, run: Run, rows: list[Mailbox], *, alone: bool) -> None:
    _own(source, run)
    if alone:
        _keep_row_of_account(source, rows[0].remote_id)
    Mailbox.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["source", "remote_id"],
        # handed_out_at: that it was for the run before says nothing about this one
        update_fields=["address", "state", "state_reason", "run", "handed_out_at"],
    )


def _keep_row_of_account(source: IngestionSource, listed_id: str) -> None:
    """Keep the row of a source's only mailbox where its login name was completed: "anna" and
    "anna@example.com" are one account, whose mail is not to be archived twice. Its ids are not
    trusted all the same: it may be another domain's anna."""
    rows = list(Mailbox.objects.filter(source=source).exclude(state=MailboxState.GONE)[:2])
    if len(rows) != 1 or not _names_account_of(rows[0].remote_id, listed_id):
        return
    if Mailbox.objects.filter(source=source, remote_id=listed_id).exists():
        return  # it was called so before
    mine = Mailbox.objects.filter(pk=rows[0].pk)
    mine.update(remote_id=listed_id)
    folders.distrust(mine)


def _names_account_of(one: str, other: str) -> bool:
    """Tell whether one of two different names is the other's local part."""
    short, long = sorted((one.lower(), other.lower()), key=len)
    return "@" not in short and long.partition("@")[:2] == (short, "@")


def _own(source: IngestionSource, run: Run) -> None:
    """Lock the source, and prove that the run still wants this listing. Raises LostRace."""
    if locked(source).credentials_version != source.credentials_version:
        raise LostRace("The credentials were changed meanwhile.")
    wanted = Run.objects.filter(pk=run.pk, finished_at=None, discovered_at=None)
    if not _asked_lately(run):
        wanted = wanted.filter(asked_at=run.asked_at)  # else it has all mailboxes already
    if not wanted.exists():
        raise LostRace("The run was ended, listed, or asked to have all mailboxes meanwhile.")


def _asked_lately(run: Run) -> bool:
    """Tell whether somebody asked for all. Who did so longer than a day ago had them: the run is
    listed for its age (`runs.follow_meanwhile`)."""
    return run.asked_at is not None and run.asked_at > timezone.now() - dt.timedelta(days=1)


def _resting(source: IngestionSource, run: Run) -> set[str]:
    """Return the mailboxes that owe nothing, and whose turn it is not. In a sync: before the next
    (`ingestion.pace`). In an import that is listed again: once it followed them, while they still
    end one after the other (`runs.follow_meanwhile`). None where somebody asked: then all have
    their turn."""
    if _asked_lately(run):
        return set()
    options = Options.of(source.options)
    interval = options.sync_interval
    if run.kind == RunKind.IMPORT:
        lately = Mailbox.objects.filter(source=source, last_synced_at__gt=Now() - interval)
        followed = Q(Exists(lately), last_synced_at__gt=run.asked_at or run.started_at)
    else:
        followed = Q(last_synced_at__gt=Now() + interval - pace.as_span(pace.seconds()))
    unfinished = Folder.objects.filter(mailbox__source=source, removed_at=None).filter(
        Q(failing_since__isnull=False) | Q(missing_since__isnull=False)
        | Q(cursor__isnull=True)  # not =None: that is JSON's null
        | ~Q(list_anew=ListAnew.NO)
    )  # fmt: skip
    owing = {
        folder.mailbox_id
        for folder in unfinished.defer("cursor").iterator()
        if options.wants_folder(folders.as_listed(folder))
    }
    failed = FailedMessage.objects.filter(mailbox=OuterRef("pk"), not_before__lte=Now())
    quiet = Mailbox.objects.filter(
        followed, ~Exists(failed), source=source, state=MailboxState.ACTIVE, run=None,
        last_error_code="",
    )  # fmt: skip
    found = quiet.values_list("pk", "remote_id")
    return {remote_id for pk, remote_id in found if pk not in owing}


def _row(
    source: IngestionSource, run: Run | None, remote: RemoteMailbox, options: Options
) -> Mailbox:
    state, reason = MailboxState.ACTIVE, ""
    if not options.wants_mailbox(remote.address):
        state, reason = MailboxState.EXCLUDED, "Excluded by the source's options."
    elif remote.unavailable:
        state, reason = MailboxState.UNAVAILABLE, remote.unavailable
    return Mailbox(
        source=source,
        remote_id=remote.remote_id,
        address=remote.address,
        state=state,
        state_reason=reason,
        run=run if state == MailboxState.ACTIVE else None,
    )


@in_transaction
def _settle(source: IngestionSource, run: Run, seen: set[str]) -> None:
    _own(source, run)
    mine = Mailbox.objects.filter(source=source)
    there = mine.exclude(state=MailboxState.GONE).only("pk", "remote_id", "address")
    gone = [mailbox for mailbox in there if mailbox.remote_id not in seen]
    if gone and not seen:
        raise Unavailable(
            f"The provider lists no mailbox, where it had {len(gone):,}. It is asked again.",
            code="no_mailboxes",
        )
    mine.filter(pk__in=[mailbox.pk for mailbox in gone]).update(
        state=MailboxState.GONE,
        state_reason="No longer listed by the provider. What was archived stays.",
        run=None,
    )
    # With the run's row locked, nobody counts a mailbox as done between these two counts. One
    # that was done before a listing that began again was given its work again.
    Run.objects.select_for_update().get(pk=run.pk)
    wanted = mine.filter(state=MailboxState.ACTIVE).count()
    due = mine.filter(state=MailboxState.ACTIVE, run=run).count()
    Run.objects.filter(pk=run.pk).update(
        discovered_at=Now(),
        not_before=Now() + Options.of(source.options).sync_interval,  # runs.follow_meanwhile
        mailboxes_total=wanted,
        mailboxes_done=wanted - due,
        attempts=0,
        failing_since=None,
        last_error_code="",
        warning="",
    )
    if gone:
        Run.objects.filter(pk=run.pk).update(message=_told(gone))


def _told(gone: list[Mailbox]) -> str:
    """Say which mailboxes are gone: somebody may have taken them from the service's reach."""
    what = counted(len(gone), "mailbox")
    are = "is" if len(gone) == 1 else "are"
    named = runs.named([mailbox.address for mailbox in gone[: runs.NAMED]], len(gone))
    return f"{what} {are} no longer listed by the provider: {named}. What was archived stays."


@in_transaction
def _act_on(what: Trouble, source: IngestionSource, run: Run) -> None:
    """Write down how the listing failed, unless the credentials were changed since it began."""
    now = locked(source)
    if now.credentials_version != source.credentials_version:
        _list_again(run)
        return
    failures = what.failures(run.attempts, run.last_error_code)
    wait = what.wait(failures)
    if wait is not None:
        Run.objects.filter(pk=run.pk).update(
            attempts=failures,
            failing_since=None if what.asks_to_wait else trouble.FAILING_SINCE,
            last_error_code=what.code,
            not_before=Now() + wait,
            handed_out_at=None,
            warning=what.text,
        )
        log.info("discovery_deferred", run=str(run.pk), code=what.code)
    elif now.runnable:
        verbs.fail(now, what.text, code=what.code, actor="ingestion")


def _list_again(run: Run) -> None:
    Run.objects.filter(pk=run.pk, finished_at=None, discovered_at=None).update(handed_out_at=None)


def _batched(items: Iterable[RemoteMailbox], size: int) -> Iterator[list[RemoteMailbox]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
