"""The pages of archived messages: what was archived, where it was, and its exact bytes.

A read is verified: bytes that don't match their SHA-256 are never shown or handed out. Mail is
shown as text; nothing of it becomes markup. Read-only.
"""

import re
import uuid
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.views.main import SEARCH_VAR
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from ingestion import downloads
from ingestion.admin import display
from ingestion.admin.base import ReadOnlyAdmin, as_uuid
from ingestion.errors import Corrupt
from ingestion.mail.attachments import Attachment
from ingestion.mail.body import Contents
from ingestion.models import Mailbox, Message
from ingestion.services.archive import reading
from ingestion.services.audit import Actor
from ingestion.services.operations import people

_MAX_PLACEMENTS = 100
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display = ("title", "sender_text", "mailbox_name", "received", "size", "archived")
    list_filter = (
        ("mailbox__source", AutocompleteSelectFilter),
        ("mailbox", AutocompleteSelectFilter),
    )
    list_filter_submit = True
    list_select_related = ("mailbox", "mailbox__source")
    search_fields = ("subject",)
    search_help_text = "SHA-256 or id; words are searched in Mail"
    nothing_yet = "What an import archives appears here within seconds."
    ordering = ("-archived_at", "-id")
    sortable_by = ()
    fieldsets = ()
    change_form_outer_before_template = "admin/ingestion/message.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Message]:
        return super().get_queryset(request).filter(mailbox__source__deleted_at=None)

    def get_fieldsets(self, request: HttpRequest, obj: Message | None = None) -> Any:
        return []  # the template shows all of it

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Leave what is no id and no hash to the mail view: it finds by words, in all there is."""
        term = request.GET.get(SEARCH_VAR, "").strip()
        if term and not as_uuid(term) and not _SHA256.fullmatch(term):
            return HttpResponseRedirect(f"{reverse('mail')}?{urlencode({'q': term})}")
        return super().changelist_view(request, extra_context)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Message], search_term: str
    ) -> tuple[QuerySet[Message], bool]:
        """Find by id or hash. The unique index is (mailbox, sha256): one probe for each mailbox."""
        if _SHA256.fullmatch(search_term.strip()):
            mailboxes = Mailbox.objects.values("pk")
            sha256 = bytes.fromhex(search_term.strip())
            return queryset.filter(mailbox__in=mailboxes, sha256=sha256), False
        return super().get_search_results(request, queryset, search_term)

    @admin.display(description="Subject")
    def title(self, message: Message) -> Any:
        return display.clipped(str(message))

    @admin.display(description="From")
    def sender_text(self, message: Message) -> Any:
        return display.clipped(message.sender, characters=40) or display.NOTHING

    @admin.display(description="Mailbox")
    def mailbox_name(self, message: Message) -> Any:
        return display.two_lines(
            display.clipped(message.mailbox.address, characters=40), message.mailbox.source.name
        )

    @admin.display(description="Received")
    def received(self, message: Message) -> Any:
        return display.date_tag(message.received_at)

    @admin.display(description="Size")
    def size(self, message: Message) -> Any:
        return display.number(display.size(message.size_bytes))

    @admin.display(description="Archived")
    def archived(self, message: Message) -> Any:
        return display.time_tag(message.archived_at)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(never_cache(self.raw_view))
        return [path("<uuid:pk>/raw/", view, name="ingestion_message_raw"), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        pk = as_uuid(object_id)
        found = self.get_queryset(request).select_related("mailbox", "mailbox__source")
        message = found.filter(pk=pk).first() if pk else None
        context = dict(extra_context or {})
        if message is not None and self.has_view_permission(request, message):
            context |= {"title": "Message", "mail": details(message)}
            people.mail_read(message, how="page", actor=Actor.of_request(request))
        return super().change_view(request, object_id, form_url, context)

    def raw_view(self, request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
        """Hand out the exact bytes, verified before the first of them is sent."""
        message = self.get_queryset(request).filter(pk=pk).select_related("mailbox__source").first()
        if message is None:
            raise Http404
        if not self.has_view_permission(request, message):
            raise PermissionDenied
        try:
            body = reading.opened(message)
        except Corrupt as error:
            self.message_user(request, f"Not downloaded. {error}", messages.ERROR)
            return HttpResponseRedirect(display.page_of(message))
        people.mail_read(message, how="raw", actor=Actor.of_request(request))
        return downloads.answer(
            request,
            body,
            sha256=message.sha256_hex,
            name=downloads.eml_name(message),
            content_type="message/rfc822",
        )


def details(message: Message) -> dict[str, Any]:
    """Return the context of `message.html`."""
    says, damage = Contents(notes=("The archived bytes can't be shown.",)), ""
    try:
        says = reading.contents(message)
    except Corrupt as error:
        damage = str(error)
    placements = message.placements.select_related("folder").order_by("id")
    return {
        "message": message,
        "damage": damage,
        "says": says,
        "attachments": [
            (attachment.name, _about(attachment), display.size(attachment.size_bytes))
            for attachment in says.attachments
        ],
        "placements": placements[:_MAX_PLACEMENTS],
        "size": display.size(message.size_bytes),
        "facts": [
            ("From", message.sender),
            ("To", message.recipients),
            ("Date", display.clock(message.sent_at)),
            ("Message-ID", message.message_id),
        ],
    }


def _about(attachment: Attachment) -> str:
    """Say what an attachment is: "attached message (message/rfc822)"."""
    kind = attachment.kind or ("belongs into the text" if attachment.inline else "")
    return f"{kind} ({attachment.type})" if kind else attachment.type
