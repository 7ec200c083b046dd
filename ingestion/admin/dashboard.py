"""The first page: what operators ask first. Is all archived, who needs me, what happens now, what
came, where is it, was it proven?

It costs a constant number of queries, and counts no mail: sources, days, runs and packs have sums.
"""

import collections
import uuid
from typing import Any

from django.db.models import Count, QuerySet, Sum
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from ingestion import explaining, freshness, index_health, queries
from ingestion.admin import attention, chart, display, failures, latest_runs, overview
from ingestion.admin.filters import overdue
from ingestion.freshness import Verdict
from ingestion.models import (
    ArchivedDay,
    IngestionSource,
    Mailbox,
    Pack,
    Proof,
    ProofKind,
    Run,
)
from ingestion.packs.store import store
from ingestion.services.engine import heartbeat
from ingestion.states import MailboxState, SourceStatus

_ROWS = 8
_FURTHEST_BEHIND = 6
_FAILURES_CAP = 10_000
_WEEK = 7
#: Work is handed out every 3 s; ten times missed is no hiccup.
_SILENT_SECONDS = 30


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the dashboard to the index page's context, for those who may see sources."""
    if request.user.has_perm("ingestion.view_ingestionsource"):
        context["dashboard"] = _dashboard(request)
    return context


def _dashboard(request: HttpRequest) -> dict[str, Any]:
    sources = IngestionSource.objects.filter(deleted_at=None)
    days = chart.days(ArchivedDay.objects.filter(source__deleted_at=None))
    health = index_health.in_all(sources)
    found = freshness.verdicts(sources)
    needing, behind = attention.worst(found), _furthest_behind(found)
    named = {*explaining.named_by_summary(found), *needing, *behind}
    rows = freshness.judged_before(found, named)
    reasons, statuses = _failures_by_reason(), _statuses(found)
    totals = sources.aggregate(
        messages=Sum("message_count", default=0),
        size=Sum("archived_bytes", default=0),
        late=Count("pk", filter=overdue()),
    )
    return {
        "engine": _engine(late=totals["late"]),
        "freshness": explaining.summed_up(found, rows),
        "attention": attention.items(request, [rows[pk] for pk in needing]),
        "running": _running(sources),
        "chart": chart.context(days),
        "tiles": [
            *_archive_tiles(request, totals, days),
            *_trouble_tiles(request, reasons, found),
            _index_tile(health),
            *_proof_tiles(),
        ],
        "statuses": statuses,
        "any": any(status["number"] for status in statuses),
        "behind": _lags([rows[pk] for pk in behind]),
        "reasons": reasons[:_ROWS],
        "failed": _may(request, "failedmessage"),
        "lines": latest_runs.lines(Run.objects.filter(finished_at__isnull=False), limit=_ROWS),
        "may_add": request.user.has_perm("ingestion.add_ingestionsource"),
        "list": _list(),
        "add": reverse("admin:ingestion_ingestionsource_add"),
        "all_runs": _may(request, "run"),
    }


def _list() -> str:
    return reverse("admin:ingestion_ingestionsource_changelist")


def _may(request: HttpRequest, model: str) -> str:
    """Return the address of a list, "" for whom it would refuse."""
    allowed = request.user.has_perm(f"ingestion.view_{model}")
    return reverse(f"admin:ingestion_{model}_changelist") if allowed else ""


def _engine(*, late: int) -> dict[str, str]:
    """Say whether anybody does the work: without a worker every page would just look idle. The
    sentence on freshness says the rest, so nothing is said here while all is well."""
    last = heartbeat.last()
    if not last.cache_answers:
        return {
            "tone": "danger",
            "title": "Redis can't be reached",
            "text": "Nothing new is started until it is back. Nothing is lost: what is due stands"
            " in the database.",
        }
    if last.seconds is None:
        return {
            "tone": "warning",
            "title": "No sign of the workers yet",
            "text": "They report every few seconds. If this stays, start beat and a control worker:"
            " nothing is imported or synced until they run.",
        }
    if not last.younger_than(_SILENT_SECONDS):
        return {
            "tone": "danger",
            "title": "Nothing is being done",
            "text": "Beat or the control worker has been silent for"
            f" {display.duration(last.seconds)}. Start both: nothing is imported or synced until"
            " they run.",
        }
    if late:
        noun = "source is" if late == 1 else "sources are"
        return {
            "tone": "warning",
            "title": "Syncs are late",
            "text": f"{late} {noun} overdue by more than 15 minutes. Add sync workers, or look"
            " for mailboxes that take long.",
        }
    return {}


# -- in numbers --------------------------------------------------------------------------------


def _tile(
    label: str, text: str, note: str = "", *, url: str = "", tone: str = ""
) -> dict[str, str]:
    return {"label": label, "text": text, "note": note, "url": url, "tone": tone}


def _archive_tiles(
    request: HttpRequest, totals: dict[str, int], days: list[chart.Day]
) -> list[dict[str, str]]:
    stored = Pack.objects.aggregate(size=Sum("size_bytes"))["size"] or 0
    week = days[-_WEEK:]
    grown = sum(day.size_bytes for day in week)
    came = sum(day.messages for day in week)
    return [
        _tile(
            "Messages archived",
            f"{totals['messages']:,}",
            f"{came:,} in 7 days",
            url=_may(request, "message"),
        ),
        _tile("Mail", display.size(totals["size"]), f"{display.size(grown)} in 7 days"),
        _tile("On disk", display.size(stored), _free()),
    ]


def _free() -> str:
    try:
        room = store().room()
    except OSError:  # not mounted, which doctor says
        return ""
    return f"{display.size(room[0])} free" if room else ""


def _trouble_tiles(
    request: HttpRequest, reasons: list[dict[str, Any]], found: list[Verdict]
) -> list[dict[str, str]]:
    failed = sum(reason["number"] for reason in reasons)
    lacking = [one.pk for one in found if one.lacks_mailboxes]
    unavailable = Mailbox.objects.filter(
        source__in=freshness.among(lacking), state=MailboxState.UNAVAILABLE
    )
    number = unavailable.count() if lacking else 0
    mailboxes = _may(request, "mailbox")
    return [
        _tile(
            "Failed messages",
            display.count(failed, cap=_FAILURES_CAP),
            "tried again by themselves" if failed else "",
            url=_may(request, "failedmessage"),
            tone="danger" if failed else "",
        ),
        _tile(
            "Unavailable mailboxes",
            f"{number:,}",
            url=f"{mailboxes}?state__exact={MailboxState.UNAVAILABLE}" if mailboxes else "",
            tone="danger" if number else "",
        ),
    ]


def _index_tile(health: index_health.Health) -> dict[str, str]:
    """Say how much search does not know of yet."""
    waits = f"{health.waiting:,}"
    if health.unreadable_packs:
        noun = "pack" if health.unreadable_packs == 1 else "packs"
        note = f"{health.unreadable_packs:,} {noun} can't be read: see doctor"
        return _tile("To be indexed", waits, note, tone="danger")
    return _tile("To be indexed", waits, str(health))


def _proof_tiles() -> list[dict[str, str]]:
    """Say when the archive was last proven, and how that went. The words are `proof_words`'."""
    whole = Proof.objects.filter(kind=ProofKind.VERIFICATION, source=None).first()
    compared = (
        Proof.objects.filter(kind=ProofKind.RECONCILIATION, source__deleted_at=None)
        .select_related("source")
        .first()
    )
    of_source = f"{compared.source}: " if compared else ""
    return [
        _proof_tile("Last verified", whole, "verify_archive reads all of it back"),
        _proof_tile(
            "Last compared", compared, "reconcile_source asks the provider", before=of_source
        ),
    ]


def _proof_tile(label: str, proof: Proof | None, never: str, *, before: str = "") -> dict[str, str]:
    if proof is None:
        return _tile(label, "never", never)
    words = overview.proof_words(proof)
    return _tile(label, display.when(proof.at), before + words, tone="" if proof.ok else "danger")


def _failures_by_reason() -> list[dict[str, Any]]:
    """Count failed messages by their code, each with what a provider said of one of them."""
    return [
        {"code": code, "number": number, "example": example, "words": failures.words(code)}
        for code, number, example in queries.failures_by_code(rows=_FAILURES_CAP)
    ]


def _furthest_behind(found: list[Verdict]) -> list[uuid.UUID]:
    """Return the ids of the sources whose last success is longest ago."""
    followed = sorted((one for one in found if one.status == SourceStatus.ACTIVE), key=Verdict.age)
    return [one.pk for one in followed[:_FURTHEST_BEHIND]]


def _lags(sources: list[Any]) -> list[dict[str, Any]]:
    """Say of each source how long ago its last success is."""
    now = timezone.now()
    return [
        {
            "source": source,
            "badge": display.source_badge(source),
            "lag": display.duration((now - source.archived_up_to).total_seconds())
            if source.archived_up_to
            else "not yet",
        }
        for source in sources
    ]


def _statuses(found: list[Verdict]) -> list[dict[str, Any]]:
    numbers = collections.Counter(one.status for one in found)
    return [
        {
            "label": status.label,
            "tone": display.SOURCE_TONES[status] if numbers.get(status) else "neutral",
            "number": numbers.get(status, 0),
            "count": f"{numbers.get(status, 0):,}",
            "url": f"{_list()}?status__exact={status}",
        }
        for status in SourceStatus
    ]


def _running(sources: QuerySet[IngestionSource]) -> list[dict[str, Any]]:
    unfinished = (
        Run.objects.filter(finished_at=None, source__in=sources)
        .select_related("source")
        .order_by("started_at")[:_ROWS]
    )
    return [
        {"source": run.source, "progress": overview.progress_bar(run.source, run)}
        for run in unfinished
    ]
