"""The pages of a user's own exports: asked for here, followed, downloaded, deleted."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from unfold import widgets

from ingestion.admin import display
from ingestion.admin.base import AuditedAdmin
from ingestion.errors import ServiceError
from ingestion.models import Export
from ingestion.services.archive.exports import jobs
from ingestion.services.audit import Actor
from ingestion.states import ExportState

_FORMATS = {
    "eml": "Zip of .eml files: opens anywhere, one file for each message",
    "mbox": "Mbox (in a zip): for Thunderbird, mutt and most importers",
    "maildir": "Maildir (in a tar): for mail servers, with folders and flags",
}
_TONES: dict[str, str] = {
    ExportState.WAITING: "neutral",
    ExportState.RUNNING: "primary",
    ExportState.DONE: "success",
    ExportState.FAILED: "danger",
    ExportState.EXPIRED: "neutral",
}


class ExportForm(forms.ModelForm):  # type: ignore[type-arg] # the stubs' generic fails at run time
    class Meta:
        model = Export
        fields = ("query", "format")
        widgets = {"query": widgets.UnfoldAdminTextInputWidget}
        help_texts = {
            "query": "As in a search of mail, or source:NAME, mailbox:ADDRESS. Empty: all mail "
            "that you may see.",
        }

    format = forms.ChoiceField(
        choices=list(_FORMATS.items()), initial="eml", widget=widgets.UnfoldAdminRadioSelectWidget
    )

    def clean(self) -> dict[str, Any]:
        """Ask for it here, where a refusal is shown beside the form."""
        given: dict[str, Any] = super().clean() or {}
        if not self.errors:
            try:
                made = jobs.start(
                    self.actor.user,  # type: ignore[attr-defined] # the admin sets it
                    query=given["query"],
                    format=given["format"],
                    actor=self.actor,  # type: ignore[attr-defined] # the admin sets it
                )
            except ServiceError as error:
                raise forms.ValidationError(str(error)) from None
            self.instance = made
        return given


@admin.register(Export)
class ExportAdmin(AuditedAdmin):
    """`add/?query=...` is what a page of mail links to: "Export this search"."""

    form = ExportForm
    list_display = ("title", "badge", "progress", "size", "made", "file")
    list_display_links = None
    search_fields = ("query__icontains",)
    search_help_text = "A part of the query"
    nothing_yet = "Mail that you take out of the archive appears here, for three days as a file."
    ordering = ("-created_at", "-id")
    sortable_by = ()
    fields = ("query", "format")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Export]:
        found: QuerySet[Export] = super().get_queryset(request)
        return found.filter(owner=request.user.pk)

    def has_change_permission(self, request: HttpRequest, obj: Export | None = None) -> bool:
        return False

    def get_form(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        form = super().get_form(request, *args, **kwargs)
        form.actor = Actor.of_request(request)  # type: ignore[attr-defined] # this request's own
        return form

    def save_model(self, request: HttpRequest, obj: Export, form: Any, change: bool) -> None:
        """Leave it: `ExportForm.clean` had it made."""

    def delete_model(self, request: HttpRequest, obj: Export) -> None:
        jobs.delete(obj, actor=Actor.of_request(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Export]) -> None:
        for export in queryset:
            self.delete_model(request, export)

    @admin.display(description="Search")
    def title(self, export: Export) -> Any:
        return display.two_lines(export.query or "All mail", f"as {export.format}")

    @admin.display(description="State")
    def badge(self, export: Export) -> Any:
        badge = display.badge(export.get_state_display(), _TONES[export.state])
        return self._refreshed(export, "badge", badge)

    @admin.display(description="Progress")
    def progress(self, export: Export) -> Any:
        shown: Any = export.message or display.NOTHING
        if export.state in jobs.UNFINISHED:
            shown = _bar(export)
        return self._refreshed(export, "progress", shown)

    @admin.display(description="Size")
    def size(self, export: Export) -> Any:
        shown = display.number(display.size(export.size_bytes))
        return self._refreshed(export, "size", shown)

    @admin.display(description="Asked for")
    def made(self, export: Export) -> Any:
        return display.time_tag(export.created_at)

    @admin.display(description="File")
    def file(self, export: Export) -> Any:
        shown: Any = display.NOTHING
        if export.state == ExportState.DONE:
            shown = display.html(
                '<a class="ing-button" href="{}" download>Download</a>'
                '<span class="ing-subtle ing-block">deleted {}</span>',
                reverse("exports-download", args=(export.pk,)),
                display.when(export.expires_at),
            )
        return self._refreshed(export, "file", shown)

    @staticmethod
    def _refreshed(export: Export, name: str, shown: Any) -> Any:
        return display.refreshed(f"export-{export.pk}-{name}", shown)


def _bar(export: Export) -> Any:
    """Return how far it is. data-busy: the page's script looks again until it is gone."""
    settled = export.messages_done + export.messages_unreadable
    total = export.messages_total
    percent = min(99, settled * 100 // total) if total else None
    known = f" of {total:,}" if total else ""
    return display.html(
        '<span class="ing-progress" data-busy><progress max="100"{} aria-label="Progress">'
        '</progress><span class="ing-progress-percent">{}</span>'
        '<span class="ing-progress-text">{}</span>'
        '<span class="ing-progress-warning">{}</span></span>',
        "" if percent is None else display.html(' value="{}"', percent),
        "" if percent is None else f"{percent} %",
        f"{settled:,}{known} messages",
        export.message,
    )
