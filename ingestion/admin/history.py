"""The pages of what happened: status changes of sources, and the audit. Read-only."""

import csv
import json
from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, Q, QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter, RangeDateTimeFilter

from ingestion.admin import display
from ingestion.admin.base import ReadOnlyAdmin, as_uuid
from ingestion.models import AuditEvent, IngestionSource, StatusChange
from ingestion.services.audit import Actor, audit
from ingestion.states import SourceStatus


class NewStatus(admin.SimpleListFilter):
    title = "new status"
    parameter_name = "to"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(SourceStatus.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        known = self.value() in SourceStatus.values
        return queryset.filter(to_status=self.value()) if known else queryset


@admin.register(StatusChange)
class StatusChangeAdmin(ReadOnlyAdmin):
    list_display = ("name", "move", "reason_text", "actor", "time")
    list_filter = (NewStatus, ("source", AutocompleteSelectFilter))
    list_filter_submit = True
    list_select_related = ("source",)
    ordering = ("-id",)
    nothing_yet = "Each change of a source's status appears here, with its reason."
    sortable_by = ()
    fields = ("source", "move", "reason", "actor", "time")
    readonly_fields = ("move", "time")

    def get_queryset(self, request: HttpRequest) -> QuerySet[StatusChange]:
        return super().get_queryset(request).filter(source__deleted_at=None)

    @admin.display(description="Source")
    def name(self, change: StatusChange) -> str:
        return change.source.name

    @admin.display(description="Status")
    def move(self, change: StatusChange) -> Any:
        return display.status_move(change)

    @admin.display(description="Reason")
    def reason_text(self, change: StatusChange) -> Any:
        return display.clipped(change.reason, characters=120) or display.NOTHING

    @admin.display(description="When")
    def time(self, change: StatusChange) -> Any:
        return display.time_tag(change.at)


#: A choice of the list, what it is called, and the words before the dot of its events' actions.
ABOUT = {
    "message": ("Mail that was read or taken out", ("message", "export")),
    "session": ("Signing in and out", ("session",)),
    "source": ("Sources and consent links", ("source", "consent_link")),
    "archive": ("The archive and its keys", ("archive", "credentials")),
    "webhook": ("Webhooks and alert rules", ("webhook", "alert_rule")),
    "search": ("Saved searches", ("search",)),
    "key": ("API keys", ("key",)),
    "user": ("Users and groups", ("user", "group")),
    "audit": ("The audit itself", ("audit",)),
}


class AuditAbout(admin.SimpleListFilter):
    """What an event is about."""

    title = "about"
    parameter_name = "about"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, label) for value, (label, _) in ABOUT.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        _, kinds = ABOUT.get(self.value() or "", ("", ()))
        return queryset.filter(action__regex=rf"^({'|'.join(kinds)})\.") if kinds else queryset


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ("action", "actor", "key", "source", "summary", "address", "time")
    list_filter = (
        AuditAbout,
        ("at", RangeDateTimeFilter),
        ("user", AutocompleteSelectFilter),
    )
    list_filter_submit = True
    list_before_template = "admin/ingestion/audit_download.html"
    search_fields = ("actor",)
    search_help_text = "User, action or id of a source"
    nothing_yet = "Each change, sign-in and look at mail appears here."
    ordering = ("-id",)
    sortable_by = ()
    fields = ("action", "actor", "user", "key", "address", "source", "what", "time")
    readonly_fields = ("source", "what", "time")

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEvent]:
        sources = IngestionSource.objects.filter(pk=OuterRef("source_id"), deleted_at=None)
        events: QuerySet[AuditEvent] = super().get_queryset(request)
        return events.annotate(source_name=sources.values("name")[:1])

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEvent], search_term: str
    ) -> tuple[QuerySet[AuditEvent], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        source = as_uuid(term)
        if source:
            return queryset.filter(source_id=source), False
        return queryset.filter(Q(actor=term) | Q(action=term)), False

    def get_urls(self) -> list[URLPattern]:
        download = self.admin_site.admin_view(self.download)
        return [path("csv/", download, name="ingestion_auditevent_csv"), *super().get_urls()]

    def download(self, request: HttpRequest) -> StreamingHttpResponse:
        """Stream the events that the list's filters and search select, newest first."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        selected = self.get_changelist_instance(request).queryset
        audit(Actor.of_request(request), "audit.export", None, {"selected": dict(request.GET)})
        response = StreamingHttpResponse(_lines(selected), content_type="text/csv; charset=utf-8")
        name = f"audit-{timezone.now():%Y-%m-%dT%H%M%SZ}.csv"
        response["Content-Disposition"] = f'attachment; filename="{name}"'
        return response

    @admin.display(description="Source")
    def source(self, event: Any) -> Any:
        if event.source_id is None:
            return display.NOTHING
        if event.source_name is None:
            return display.html('<span title="{}">deleted</span>', event.source_id)
        url = reverse("admin:ingestion_ingestionsource_change", args=(event.source_id,))
        return display.link(url, event.source_name)

    @admin.display(description="Changes")
    def summary(self, event: AuditEvent) -> Any:
        words = display.in_words(event.changes, moves=event.action == "source.update")
        shown = display.clipped(words, characters=160) or display.NOTHING
        return display.html('<span class="ing-anywhere">{}</span>', shown)

    @admin.display(description="Changes")
    def what(self, event: AuditEvent) -> Any:
        return display.pretty_json(event.changes)

    @admin.display(description="When")
    def time(self, event: AuditEvent) -> Any:
        return display.time_tag(event.at)


class _Echo:
    """A file whose `write` gives back what it is given: csv's writer then gives lines."""

    def write(self, line: str) -> str:
        return line


def _lines(events: QuerySet[AuditEvent]) -> Iterator[str]:
    writer = csv.writer(_Echo())
    yield writer.writerow(
        ("time", "action", "actor", "user id", "key", "address", "source id", "changes")
    )
    for event in events.iterator(chunk_size=2_000):
        row = (
            event.at.isoformat(),
            event.action,
            event.actor,
            event.user_id,
            event.key,
            event.address,
            event.source_id,
            json.dumps(event.changes, ensure_ascii=False),
        )
        yield writer.writerow([_harmless(cell) for cell in row])


def _harmless(cell: Any) -> str:
    """Write a cell that no spreadsheet takes for a formula: names are whatever people chose."""
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
