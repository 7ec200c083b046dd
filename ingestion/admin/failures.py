"""The pages of messages that could not be had: which, why, when they are tried again."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from ingestion import dispatching
from ingestion.admin import display
from ingestion.admin.base import ReadOnlyAdmin
from ingestion.errors import ServiceError
from ingestion.models import FailedMessage, IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.engine import failures
from ingestion.services.engine.careful import BREAKS, POISON, WORKER_DIED

#: What a code says in a list, before anybody reads the reason; docs/errors.md has them all.
_WORDS = {
    "message_refused": "The server does not hand it out",
    "message_gone": "Gone before it was fetched",
    "too_large": "Larger than MAX_MESSAGE_BYTES",
    "wrong_size": "Not the size that was announced",
    "empty": "The server sends no bytes",
    "stand_in": "A notice in place of the message",
    "no_mail": "Not mail",
    "foreign_id": "Not an id of the provider's",
    WORKER_DIED: "A worker died of it, tried again alone",
    POISON: "Workers die of it, set aside",
    BREAKS: "Breaks the connection",
}


def words(code: str) -> str:
    """Say the code of a failure; one of a plug-in's own is spelled out."""
    return _WORDS.get(code) or code.replace("_", " ").capitalize()


@admin.register(FailedMessage)
class FailedMessageAdmin(ReadOnlyAdmin):
    list_display = ("title", "mailbox_name", "why", "attempts", "last_failed", "next_try")
    list_filter = (
        ("mailbox__source", AutocompleteSelectFilter),
        ("mailbox", AutocompleteSelectFilter),
    )
    list_filter_submit = True
    list_select_related = ("folder", "mailbox", "mailbox__source")
    search_fields = ("code__exact", "remote_id__exact")
    search_help_text = "Code, or the provider's id of a message"
    nothing_yet = "Every message that was listed has been archived."
    search_by_id = False
    ordering = ("-id",)
    sortable_by = ()
    actions = ("retry_selected",)
    fieldsets = (
        ("Message", {"fields": ("folder", "mailbox", "remote_id", "size", "received", "labels")}),
        (
            "Failure",
            {"fields": ("kind", "reason", "attempts", "first_failed", "last_failed", "next_try")},
        ),
    )
    readonly_fields = ("size", "received", "kind", "first_failed", "last_failed", "next_try")

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedMessage]:
        return super().get_queryset(request).filter(mailbox__source__deleted_at=None)

    def has_retry_permission(self, request: HttpRequest) -> bool:
        """A retry starts a sync, so it takes the right to change sources."""
        return request.user.has_perm("ingestion.change_ingestionsource")

    @admin.action(description="Try again now", permissions=["retry"])
    def retry_selected(self, request: HttpRequest, chosen: QuerySet[FailedMessage]) -> None:
        by_source: dict[IngestionSource, list[int]] = {}
        for failed in chosen.select_related("mailbox__source"):
            by_source.setdefault(failed.mailbox.source, []).append(failed.pk)
        for source, ids in by_source.items():
            try:
                number = failures.retry(source, actor=Actor.of_request(request), ids=ids)
            except ServiceError as refusal:
                self.message_user(request, f"“{source.name}”: {refusal}", messages.ERROR)
                continue
            dispatching.on_commit(source)
            noun = "message is" if number == 1 else "messages are"
            text = f"“{source.name}”: {number:,} failed {noun} tried again now."
            self.message_user(request, text, messages.SUCCESS)

    @admin.display(description="Message")
    def title(self, failed: FailedMessage) -> Any:
        return display.two_lines(
            display.clipped(failed.folder.path, characters=60), f"id {failed.remote_id}"
        )

    @admin.display(description="Mailbox")
    def mailbox_name(self, failed: FailedMessage) -> Any:
        return display.two_lines(
            display.clipped(failed.mailbox.address, characters=40), failed.mailbox.source.name
        )

    @admin.display(description="Reason")
    def why(self, failed: FailedMessage) -> Any:
        return display.two_lines(words(failed.code), display.clipped(failed.reason, characters=100))

    @admin.display(description="Code")
    def kind(self, failed: FailedMessage) -> Any:
        return display.two_lines(words(failed.code), failed.code)

    @admin.display(description="Size")
    def size(self, failed: FailedMessage) -> str:
        return display.size(failed.size_bytes)

    @admin.display(description="Received")
    def received(self, failed: FailedMessage) -> Any:
        return display.full_time(failed.received_at)

    @admin.display(description="First failed")
    def first_failed(self, failed: FailedMessage) -> Any:
        return display.full_time(failed.first_failed_at)

    @admin.display(description="Last failed")
    def last_failed(self, failed: FailedMessage) -> Any:
        return display.time_tag(failed.last_failed_at)

    @admin.display(description="Tried again")
    def next_try(self, failed: FailedMessage) -> Any:
        return display.time_tag(failed.not_before)
