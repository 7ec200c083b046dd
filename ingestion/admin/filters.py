"""Filters that are operators' questions: what needs me, what runs, what fails."""

import datetime as dt
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from ingestion.models import FailedMessage, IngestionSource, Mailbox, Run
from ingestion.states import MailboxState, SourceStatus

#: A sync this late was not started by anyone: no worker or no beat is running.
OVERDUE = dt.timedelta(minutes=15)
_COUNTED = 1_000


def overdue() -> Q:
    return Q(status=SourceStatus.ACTIVE, next_sync_at__lt=timezone.now() - OVERDUE)


def running() -> Exists:
    return Exists(Run.objects.filter(source=OuterRef("pk"), finished_at=None))


def failing() -> Exists:
    return Exists(FailedMessage.objects.filter(mailbox__source=OuterRef("pk")))


def needs_attention() -> Q:
    unavailable = Mailbox.objects.filter(source=OuterRef("pk"), state=MailboxState.UNAVAILABLE)
    return Q(status=SourceStatus.ERROR) | overdue() | Q(Exists(unavailable)) | Q(failing())


#: Value in the address -> (label, tone of its count, what it selects).
QUESTIONS: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "attention": ("Needs attention", "danger", needs_attention),
    "running": ("Running now", "primary", running),
    "failing": ("Failed messages", "warning", failing),
    "paused": ("Paused", "neutral", lambda: Q(status=SourceStatus.PAUSED)),
    "new": ("Never imported", "info", lambda: Q(imported_at=None)),
}


class SourceQuestion(admin.SimpleListFilter):
    title = "question"
    parameter_name = "show"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, label) for value, (label, _, _) in QUESTIONS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        asked = QUESTIONS.get(self.value() or "")
        return queryset.filter(asked[2]()) if asked else queryset

    @classmethod
    def links(cls, request: HttpRequest) -> list[dict[str, Any]]:
        """Return the questions with their counts, for the links above the list."""
        sources = IngestionSource.objects.filter(deleted_at=None)
        now = request.GET.get(cls.parameter_name, "")
        address = reverse("admin:ingestion_ingestionsource_changelist")
        links = [{"label": "All", "url": address, "active": not now, "tone": "", "count": ""}]
        for value, (label, tone, selects) in QUESTIONS.items():
            number = sources.filter(selects())[:_COUNTED].count()
            links.append(
                {
                    "label": label,
                    "url": f"{address}?{cls.parameter_name}={value}",
                    "active": now == value,
                    "tone": tone if number else "neutral",
                    "count": f"{number:,}" + ("+" if number == _COUNTED else ""),
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
