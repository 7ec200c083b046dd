"""What changes by itself on a page: a source's state and the progress of its run, in words.

Pages show it when they are made, and `static/ingestion/live.js` asks for it again every few
seconds. Both take the words from here, so they can't differ.
"""

import dataclasses
import functools
import uuid
from collections.abc import Iterable
from typing import Any

from django.db.models import OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Least

from ingestion import explaining, freshness, index_health
from ingestion.admin import display, mending, verbs
from ingestion.admin.base import capped_count
from ingestion.models import FailedMessage, IngestionSource, Mailbox, Run
from ingestion.states import MailboxState, RunKind, SourceStatus

#: One answer describes at most this many sources; a page of a list has fewer.
MAX_SOURCES = 200
FAILURES_CAP = 1_000
MAILBOXES_CAP = 100_000
#: So many mailboxes a source's page names; lists have the others.
MAILBOXES_NAMED = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """A run in words. `percent` is None while the total is unknown."""

    run: str
    title: str
    percent: int | None
    text: str
    warning: str

    @classmethod
    def of(cls, run: Run) -> "Progress":
        settled = run.messages_done + run.messages_failed + run.messages_gone
        percent = None
        if run.finished_at is not None:
            percent = 100
        elif run.messages_total:
            percent = min(99, settled * 100 // run.messages_total)
        noun = "Import" if run.kind == RunKind.IMPORT else "Sync"
        waits = _WAITING.get(run.source.status, "")
        return cls(
            run=str(run.pk),
            title=f"{noun} {waits}" if waits else f"{noun}ing",
            percent=percent,
            text=_progress_text(run, moving=not waits),
            warning=run.warning,
        )


#: Why an unfinished run does not move, by the status of its source.
_WAITING: dict[str, str] = {
    SourceStatus.PENDING_AUTH: "waits until the credentials are checked",
    SourceStatus.PAUSED: "is paused",
    SourceStatus.ERROR: "waits until the error is solved",
}


def _progress_text(run: Run, *, moving: bool) -> str:
    if run.discovered_at is None and not moving:
        return ""
    if run.discovered_at is None:
        return "Listing mailboxes…"
    if not run.messages_total:
        return "Looking for new mail…" if run.kind == RunKind.SYNC else "Listing folders…"
    parts = [f"{run.messages_done:,} of {run.messages_total:,} messages"]
    if run.messages_failed:
        parts.append(f"{run.messages_failed:,} failed")
    if run.bytes_done:
        parts.append(display.size(run.bytes_done))
    rate, eta = run.messages_per_second, run.eta_seconds
    if not moving:
        return " · ".join(parts)
    if rate is not None:
        parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s")
    if eta is not None and eta >= 1:
        parts.append(f"{display.duration(eta)} left")
    return " · ".join(parts)


def read(sources: QuerySet[IngestionSource]) -> list[Any]:
    """Read sources with what `state` needs, in a constant number of queries."""
    judged = freshness.judged(index_health.with_health(sources))
    return freshness.read(judged.annotate(**_counts()))


@functools.cache
def _counts() -> dict[str, Combinable]:
    mailboxes = Mailbox.objects.filter(source=OuterRef("pk"))
    # Of each mailbox: of a join, PostgreSQL may read all failures there are, for each source.
    failures = capped_count(FailedMessage.objects.filter(mailbox=OuterRef("pk")), cap=FAILURES_CAP)
    failing = mailboxes.order_by().values("source").annotate(n=Sum(failures)).values("n")
    return {
        "mailbox_total": capped_count(mailboxes, cap=MAILBOXES_CAP),
        "failure_total": Least(Coalesce(Subquery(failing), 0), FAILURES_CAP),
    }


def current_run(source: IngestionSource) -> Run | None:
    """Return the unfinished run of a source that `read` has read."""
    runs: list[Run] = source.unfinished_runs  # type: ignore[attr-defined] # annotated
    return runs[0] if runs else None


def texts(source: Any) -> dict[str, str]:
    """Return the words of every cell that changes, by name. Made once of a row that was read."""
    found: dict[str, str] | None = vars(source).get("live_texts")
    if found is None:
        found = vars(source)["live_texts"] = _texts(source)
    return found


def _texts(source: Any) -> dict[str, str]:
    message = _message(source)
    return {
        "status": display.source_status(source),
        "message": message,
        "archivedUpTo": _archived_up_to(source),
        "mailboxes": display.count(source.mailbox_total, cap=MAILBOXES_CAP),
        "ofMailboxes": _of_mailboxes(source),
        "messages": display.count(source.message_count),
        "archived": display.size(source.archived_bytes),
        "indexed": _indexed(source),
        "failures": display.count(source.failure_total, cap=FAILURES_CAP),
        "lastTry": display.when(source.last_sync_finished_at),
        "tried": _tried(source),
        "nextSync": _next_sync(source),
        # A list shows it of a source that has no bar.
        "now": "" if current_run(source) is not None else message,
        "counted": _counted(source),
    }


def _of_mailboxes(source: Any) -> str:
    number = display.count(source.mailbox_total, cap=MAILBOXES_CAP)
    return f"{number} {'mailbox' if source.mailbox_total == 1 else 'mailboxes'}"


def _indexed(source: Any) -> str:
    health = index_health.of(source)
    return health.told() if health.messages else display.NOTHING


def _message(source: Any) -> str:
    """Say why it needs somebody; else what it did last, or why it stands where it does."""
    reasons = " ".join(map(str, explaining.reasons(source)))
    did = source.last_sync_status_message if source.status == SourceStatus.ACTIVE else ""
    return display.in_labels(source, reasons or did or source.status_message)


def _counted(source: Any) -> str:
    """Say how far the run is, as its bar does: the list of runs stands below it."""
    run = current_run(source)
    return (Progress.of(run).text or "Under way.") if run else ""


def _archived_up_to(source: Any) -> str:
    if source.archived_up_to is None:
        return "not yet" if source.mailbox_total else display.NOTHING
    return display.when(source.archived_up_to)


def _tried(source: Any) -> str:
    tried = source.last_sync_finished_at
    return f"tried {display.when(tried)}" if tried else ""


def _next_sync(source: Any) -> str:
    if current_run(source) is not None and source.runnable:
        return "running"
    if not source.runnable or source.next_sync_at is None:
        return display.NOTHING
    spoken = display.when(source.next_sync_at)
    return "due" if spoken.endswith(("ago", "now")) else spoken


def first_mailboxes(source: IngestionSource | uuid.UUID) -> list[Mailbox]:
    """Return the mailboxes that fail first, then the others by address: those a page names."""
    ours = Mailbox.objects.filter(source=source).order_by("address")
    trouble = Q(state=MailboxState.UNAVAILABLE) | Q(attempts__gt=0)
    found = list(ours.filter(trouble)[:MAILBOXES_NAMED])
    return [*found, *ours.exclude(trouble)[: MAILBOXES_NAMED - len(found)]]


def next_verb(source: Any) -> str:
    """Return the verb that stands out: none where a field of the settings is to be mended."""
    return "" if mending.edit(source) else verbs.next_step(source)


def refusals(source: Any) -> dict[str, str]:
    """Return why each verb makes no sense now, "" where it does."""
    return verbs.refusals(source, run=current_run(source), failures=source.failure_total)


def state(source: Any) -> dict[str, Any]:
    """Return what the page's script needs of one source that `read` has read."""
    run, edit = current_run(source), mending.edit(source)
    return {
        "tone": display.source_tone(source),
        "texts": texts(source),
        "run": dataclasses.asdict(Progress.of(run)) if run else None,
        "refusals": refusals(source),
        "next": next_verb(source),
        "mend": dataclasses.asdict(edit) if edit else None,
    }


def states(
    sources: QuerySet[IngestionSource], ids: Iterable[uuid.UUID]
) -> dict[str, dict[str, Any]]:
    """Return the state of each of `ids` that is among `sources`."""
    wanted = list(ids)[:MAX_SOURCES]
    found = {str(s.pk): state(s) for s in read(sources.filter(pk__in=wanted))}
    if len(wanted) == 1:  # its own page, which names mailboxes
        for shown in found.values():
            shown["texts"] |= _counts_of_mailboxes(wanted[0])
    return found


def _counts_of_mailboxes(source: uuid.UUID) -> dict[str, str]:
    return {
        f"mailbox:{mailbox.pk}": display.count(mailbox.message_count)
        for mailbox in first_mailboxes(source)
    }
