"""The pages of runs: what each import and sync did, live while it runs. Read-only."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from ingestion.admin import display, overview
from ingestion.admin.base import ReadOnlyAdmin
from ingestion.models import Run


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    list_display = ("title", "badge", "result", "new", "failed", "size", "started", "took")
    list_filter = ("status", "kind", ("source", AutocompleteSelectFilter))
    list_filter_submit = True
    list_select_related = ("source",)
    search_fields = ("source__name__istartswith",)
    search_help_text = "Start of a source's name, or an id"
    nothing_yet = "Each import and each sync of a source appears here."
    ordering = ("-started_at", "-id")
    sortable_by = ("started",)
    fieldsets = (
        ("Run", {"fields": ("source", "kind", "badge", "result", "actor", "started", "took")}),
        (
            "Counters",
            {
                "fields": (
                    "mailboxes",
                    "messages_total",
                    "messages_done",
                    "messages_new",
                    "messages_failed",
                    "messages_gone",
                    "size",
                )
            },
        ),
    )
    readonly_fields = ("badge", "result", "started", "took", "mailboxes", "size")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Run]:
        return super().get_queryset(request).filter(source__deleted_at=None)

    @admin.display(description="Run")
    def title(self, run: Run) -> Any:
        return display.two_lines(run.source.name, f"{run.get_kind_display()} by {run.actor}")

    @admin.display(description="Status")
    def badge(self, run: Run) -> Any:
        return self._refreshed(
            run, "badge", display.badge(run.get_status_display(), display.RUN_TONES[run.status])
        )

    @admin.display(description="Progress")
    def result(self, run: Run) -> Any:
        if run.finished_at is None:
            shown: Any = overview.progress_bar(run.source, run, run_only=True)
        else:
            shown = run.message or display.NOTHING
        return self._refreshed(run, "result", shown)

    @admin.display(description="New")
    def new(self, run: Run) -> Any:
        return self._refreshed(run, "new", f"{run.messages_new:,}")

    @admin.display(description="Failed")
    def failed(self, run: Run) -> Any:
        return self._refreshed(run, "failed", f"{run.messages_failed:,}")

    @admin.display(description="Size")
    def size(self, run: Run) -> Any:
        return self._refreshed(run, "size", display.number(display.size(run.bytes_done)))

    @admin.display(description="Mailboxes")
    def mailboxes(self, run: Run) -> str:
        return f"{run.mailboxes_done:,} of {run.mailboxes_total:,} done"

    @admin.display(description="Started", ordering="started_at")
    def started(self, run: Run) -> Any:
        return display.time_tag(run.started_at)

    @admin.display(description="Took")
    def took(self, run: Run) -> Any:
        end = run.finished_at or timezone.now()
        spent = display.duration((end - run.started_at).total_seconds())
        return self._refreshed(run, "took", spent if run.finished_at else f"{spent} so far")

    @staticmethod
    def _refreshed(run: Run, name: str, shown: Any) -> Any:
        return display.refreshed(f"run-{run.pk}-{name}", shown)
