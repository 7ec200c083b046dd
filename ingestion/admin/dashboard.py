"""The first page: what operators ask first. Does it run, who needs me, what happens now?"""

from typing import Any

from django.db.models import Count, QuerySet, Sum
from django.http import HttpRequest
from django.urls import reverse
from redis.exceptions import RedisError

from ingestion import freshness, index_health
from ingestion.admin import attention, display, overview
from ingestion.admin.filters import overdue
from ingestion.models import FailedMessage, IngestionSource, Mailbox, Run
from ingestion.services.engine import due_work
from ingestion.states import MailboxState, SourceStatus

_ROWS = 8
_FAILURES_CAP = 10_000
#: Work is handed out every 3 s; ten times missed is no hiccup.
_SILENT_SECONDS = 30


def context(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Add the dashboard to the index page's context, for those who may see sources."""
    if request.user.has_perm("ingestion.view_ingestionsource"):
        context["dashboard"] = _dashboard(request)
    return context


def _dashboard(request: HttpRequest) -> dict[str, Any]:
    sources = IngestionSource.objects.filter(deleted_at=None)
    return {
        "engine": _engine(sources),
        "freshness": freshness.summary(sources),
        "index": _index(sources),
        "tiles": _tiles(sources),
        "statuses": _statuses(sources),
        "attention": attention.items(request),
        "running": _running(sources),
        "runs": Run.objects.filter(source__deleted_at=None, finished_at__isnull=False)
        .select_related("source")
        .order_by("-started_at")[:_ROWS],
        "may_add": request.user.has_perm("ingestion.add_ingestionsource"),
        "list": _list(),
        "add": reverse("admin:ingestion_ingestionsource_add"),
        "all_runs": reverse("admin:ingestion_run_changelist"),
    }


def _list() -> str:
    return reverse("admin:ingestion_ingestionsource_changelist")


def _engine(sources: QuerySet[IngestionSource]) -> dict[str, str]:
    """Say whether anybody does the work: without a worker every page would just look idle. The
    sentence on freshness says the rest, so nothing is said here while all is well."""
    try:
        silent = due_work.seconds_since_heartbeat()
    except RedisError:
        return {
            "tone": "danger",
            "title": "Redis can't be reached",
            "text": "Nothing new is started until it is back. Nothing is lost: what is due stands"
            " in the database.",
        }
    late = sources.filter(overdue())[: _ROWS + 1].count()
    if silent is None:
        return {
            "tone": "warning",
            "title": "No sign of the workers yet",
            "text": "They report every few seconds. If this stays, start beat and a control worker:"
            " nothing is imported or synced until they run.",
        }
    if silent > _SILENT_SECONDS:
        return {
            "tone": "danger",
            "title": "Nothing is being done",
            "text": f"Beat or the control worker has been silent for {display.duration(silent)}."
            " Start both: nothing is imported or synced until they run.",
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


def _index(sources: QuerySet[IngestionSource]) -> dict[str, str]:
    """Say what search does not know of; nothing where it knows all."""
    health = index_health.in_all(sources)
    if not health.waiting and not health.defects:
        return {}
    tone = "danger" if health.unreadable_packs else "neutral"
    return {"tone": tone, "text": f"For search: {health}."}


def _tiles(sources: QuerySet[IngestionSource]) -> list[dict[str, Any]]:
    totals = sources.aggregate(
        n=Count("pk"), messages=Sum("message_count"), b=Sum("archived_bytes")
    )
    failed = FailedMessage.objects.filter(mailbox__source__deleted_at=None)
    failures = failed.order_by()[:_FAILURES_CAP].count()
    unavailable = Mailbox.objects.filter(
        source__deleted_at=None, state=MailboxState.UNAVAILABLE
    ).count()
    mailboxes = reverse("admin:ingestion_mailbox_changelist")
    return [
        {"label": "Sources", "text": f"{totals['n']:,}", "url": _list()},
        {
            "label": "Messages archived",
            "text": f"{totals['messages'] or 0:,}",
            "url": reverse("admin:ingestion_message_changelist"),
        },
        {"label": "Size", "text": display.size(totals["b"] or 0), "url": ""},
        {
            "label": "Failed messages",
            "text": display.count(failures, cap=_FAILURES_CAP),
            "url": reverse("admin:ingestion_failedmessage_changelist"),
            "tone": "danger" if failures else "",
        },
        {
            "label": "Unavailable mailboxes",
            "text": f"{unavailable:,}",
            "url": f"{mailboxes}?state__exact={MailboxState.UNAVAILABLE}",
            "tone": "danger" if unavailable else "",
        },
    ]


def _statuses(sources: QuerySet[IngestionSource]) -> list[dict[str, Any]]:
    numbers = dict(sources.order_by().values_list("status").annotate(n=Count("pk")))
    return [
        {
            "label": status.label,
            "tone": display.SOURCE_TONES[status] if numbers.get(status) else "neutral",
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
