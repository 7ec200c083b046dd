"""Filters that are operators' questions: what needs me, what runs, what fails."""

import datetime as dt
import operator
import uuid
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from ingestion import freshness
from ingestion.admin import display
from ingestion.freshness import Verdict
from ingestion.models import IngestionSource, Run
from ingestion.states import SourceStatus

#: A sync this late was not started by anyone: no worker or no beat is running.
OVERDUE = dt.timedelta(minutes=15)


def overdue() -> Q:
    return Q(status=SourceStatus.ACTIVE, next_sync_at__lt=timezone.now() - OVERDUE)


#: Value in the address -> (label, tone of its count, what it selects: of rows, or of verdicts).
QUESTIONS: dict[str, tuple[str, str, Q | Callable[[Verdict], bool]]] = {
    "attention": ("Needs attention", "danger", freshness.needs_somebody),
    "running": (
        "Running now",
        "primary",
        Q(Exists(Run.objects.filter(source=OuterRef("pk"), finished_at=None))),
    ),
    "failing": ("Failed messages", "warning", operator.attrgetter("lacks_messages")),
    "paused": ("Paused", "neutral", Q(status=SourceStatus.PAUSED)),
    "new": ("Never imported", "info", Q(imported_at=None)),
}


def _verdicts(request: HttpRequest) -> list[Verdict]:
    """A page counts by them, and selects: to judge all takes longer than all the rest of it."""
    if not hasattr(request, "verdicts"):
        sources = IngestionSource.objects.filter(deleted_at=None)
        vars(request)["verdicts"] = freshness.verdicts(sources, dated=False)
    found: list[Verdict] = vars(request)["verdicts"]
    return found


def _ids(request: HttpRequest, selects: Callable[[Verdict], bool]) -> list[uuid.UUID]:
    return [verdict.pk for verdict in _verdicts(request) if selects(verdict)]


class SourceQuestion(admin.SimpleListFilter):
    title = "question"
    parameter_name = "show"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, label) for value, (label, _, _) in QUESTIONS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        asked = QUESTIONS.get(self.value() or "")
        if asked is None:
            return queryset
        selects = asked[2]
        if isinstance(selects, Q):
            return queryset.filter(selects)
        return queryset.filter(pk__in=freshness.among(_ids(request, selects)))

    @classmethod
    def links(cls, request: HttpRequest) -> list[dict[str, Any]]:
        """Return the questions with their counts, for the links above the list."""
        asked, counts = {}, {}
        for value, (_, _, selects) in QUESTIONS.items():
            if isinstance(selects, Q):
                asked[value] = Count("pk", filter=selects)
            else:
                counts[value] = len(_ids(request, selects))
        counts |= IngestionSource.objects.filter(deleted_at=None).aggregate(**asked)
        now = request.GET.get(cls.parameter_name, "")
        address = reverse("admin:ingestion_ingestionsource_changelist")
        links = [{"label": "All", "url": address, "active": not now, "tone": "", "count": ""}]
        for value, (label, tone, _) in QUESTIONS.items():
            links.append(
                {
                    "label": label,
                    "url": f"{address}?{cls.parameter_name}={value}",
                    "active": now == value,
                    "tone": tone if counts[value] else "neutral",
                    "count": display.count(counts[value]),
                }
            )
        return links


class RunningNow(admin.SimpleListFilter):
    """Mailboxes and runs that owe work."""

    title = "work"
    parameter_name = "work"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("running", "Importing or syncing now"), ("failing", "Failing, tried again")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "running":
            return queryset.filter(run__isnull=False)
        if self.value() == "failing":
            return queryset.filter(attempts__gt=0)
        return queryset


class Failing(admin.SimpleListFilter):
    """Folders that could not be read."""

    title = "trouble"
    parameter_name = "trouble"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("failing", "Could not be read")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(failing_since__isnull=False) if self.value() else queryset
