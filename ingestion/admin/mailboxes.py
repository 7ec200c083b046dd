"""The pages of mailboxes and of folders with their cursors. Read-only."""

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from ingestion.admin import display
from ingestion.admin.base import ReadOnlyAdmin, capped_count
from ingestion.admin.filters import Failing, RunningNow
from ingestion.admin.mail.asked import Asked
from ingestion.models import Folder, Mailbox, Placement

#: So many messages of a folder are counted: a page has a hundred folders.
_MAX_COUNTED = 1_000


@admin.register(Mailbox)
class MailboxAdmin(ReadOnlyAdmin):
    list_display = ("name", "badge", "messages", "size", "last_synced", "work", "trouble")
    list_filter = (RunningNow, "state", ("source", AutocompleteSelectFilter))
    list_filter_submit = True
    list_select_related = ("source", "run")
    search_fields = ("address__istartswith",)
    search_help_text = "Start of an address, or an id"
    nothing_yet = "The first import of a source lists its mailboxes."
    ordering = ("address", "id")
    fieldsets = (
        (
            "Mailbox",
            {"fields": ("address", "source", "badge", "state_reason", "remote_id", "contents")},
        ),
        (
            "Work",
            {
                "fields": (
                    "last_synced",
                    "work",
                    "next_try",
                    "attempts",
                    "last_error_code",
                    "last_error",
                    "leased_until",
                )
            },
        ),
    )
    readonly_fields = ("badge", "contents", "last_synced", "work", "next_try", "leased_until")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Mailbox]:
        return super().get_queryset(request).filter(source__deleted_at=None)

    @admin.display(description="Mailbox", ordering="address")
    def name(self, mailbox: Mailbox) -> Any:
        return display.two_lines(display.clipped(mailbox.address), mailbox.source.name)

    @admin.display(description="State", ordering="state")
    def badge(self, mailbox: Mailbox) -> Any:
        tone = display.MAILBOX_TONES[mailbox.state]
        return display.badge(mailbox.get_state_display(), tone, title=mailbox.state_reason)

    @admin.display(description="Messages")
    def messages(self, mailbox: Mailbox) -> Any:
        return display.link(Asked(mailbox=mailbox.pk).url(), f"{mailbox.message_count:,}")

    @admin.display(description="Size")
    def size(self, mailbox: Mailbox) -> Any:
        return display.number(display.size(mailbox.archived_bytes))

    @admin.display(description="Archived")
    def contents(self, mailbox: Mailbox) -> Any:
        folders = reverse("admin:ingestion_folder_changelist")
        return display.two_lines(
            f"{mailbox.message_count:,} messages, {display.size(mailbox.archived_bytes)}",
            display.link(f"{folders}?mailbox__id__exact={mailbox.pk}", "Folders and cursors"),
        )

    @admin.display(description="Last synced")
    def last_synced(self, mailbox: Mailbox) -> Any:
        return display.time_tag(mailbox.last_synced_at)

    @admin.display(description="Work")
    def work(self, mailbox: Mailbox) -> Any:
        if mailbox.run is None:
            return display.NOTHING
        return display.link(display.page_of(mailbox.run), mailbox.run.get_kind_display())

    @admin.display(description="Next try")
    def next_try(self, mailbox: Mailbox) -> Any:
        return display.time_tag(mailbox.not_before) if mailbox.run_id else display.NOTHING

    @admin.display(description="Leased until")
    def leased_until(self, mailbox: Mailbox) -> Any:
        return display.time_tag(mailbox.lease_expires_at)

    @admin.display(description="Trouble")
    def trouble(self, mailbox: Mailbox) -> Any:
        text = mailbox.state_reason or mailbox.last_error
        return display.clipped(text) if text else display.NOTHING


@admin.register(Folder)
class FolderAdmin(ReadOnlyAdmin):
    list_display = ("name", "role", "archived", "at_provider", "listed", "trouble")
    list_filter = (
        Failing,
        "role",
        ("mailbox__source", AutocompleteSelectFilter),
        ("mailbox", AutocompleteSelectFilter),
        ("removed_at", admin.EmptyFieldListFilter),
    )
    list_filter_submit = True
    list_select_related = ("mailbox", "mailbox__source")
    search_fields = ("path__istartswith",)
    search_help_text = "Start of a path"
    nothing_yet = "The first import of a mailbox lists its folders."
    search_by_id = False
    ordering = ("id",)
    sortable_by = ()
    fieldsets = (
        (
            "Folder",
            {"fields": ("path", "mailbox", "role", "remote_id", "stable_id", "gone")},
        ),
        ("Progress", {"fields": ("archived", "at_provider", "listed", "cursor_pretty")}),
        (
            "Trouble",
            {"fields": ("failing", "last_error_code", "last_error", "attempts", "next_try")},
        ),
    )
    readonly_fields = (
        *("archived", "at_provider", "listed", "cursor_pretty", "gone"),
        *("failing", "next_try"),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Folder]:
        present = Placement.objects.filter(folder=OuterRef("pk"), removed_at=None)
        shown: QuerySet[Folder] = super().get_queryset(request)
        return shown.filter(mailbox__source__deleted_at=None).annotate(
            present=capped_count(present, cap=_MAX_COUNTED)
        )

    @admin.display(description="Folder")
    def name(self, folder: Folder) -> Any:
        return display.two_lines(
            display.clipped(folder.path), f"{folder.mailbox.address} · {folder.mailbox.source.name}"
        )

    @admin.display(description="Archived")
    def archived(self, folder: Any) -> Any:
        place = Asked(mailbox=folder.mailbox_id, folder=folder.pk)
        return display.link(place.url(), display.count(folder.present, cap=_MAX_COUNTED))

    @admin.display(description="At the provider")
    def at_provider(self, folder: Folder) -> str:
        return display.NOTHING if folder.remote_count is None else f"{folder.remote_count:,}"

    @admin.display(description="Listed")
    def listed(self, folder: Folder) -> Any:
        return display.time_tag(folder.listed_at) if folder.listed_at else "in progress"

    @admin.display(description="Gone since")
    def gone(self, folder: Folder) -> Any:
        return display.time_tag(folder.removed_at)

    @admin.display(description="Trouble")
    def trouble(self, folder: Folder) -> Any:
        if folder.failing_since is None:
            return display.NOTHING
        return display.two_lines(
            display.clipped(folder.last_error), f"since {display.when(folder.failing_since)}"
        )

    @admin.display(description="Could not be read since")
    def failing(self, folder: Folder) -> Any:
        return display.full_time(folder.failing_since)

    @admin.display(description="Next try")
    def next_try(self, folder: Folder) -> Any:
        return display.time_tag(folder.not_before) if folder.failing_since else display.NOTHING

    @admin.display(description="Cursor")
    def cursor_pretty(self, folder: Folder) -> Any:
        return display.pretty_json(folder.cursor)
