"""The pages of archived messages: the list of them, and each by itself. Read-only.

What a message's page shows is in `reading`, what it hands out in `message_files`.
"""

import re
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import SEARCH_VAR
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from unfold.contrib.filters.admin import AutocompleteSelectFilter

from ingestion import queries
from ingestion.admin import display, message_files, reading
from ingestion.admin.base import ReadOnlyAdmin, as_uuid
from ingestion.models import Mailbox, Message
from ingestion.services.audit import Actor
from ingestion.services.operations import people

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
        ordering = self.get_ordering(request)
        return queries.visible_messages(request.user).order_by(*ordering)

    def get_fieldsets(self, request: HttpRequest, obj: Message | None = None) -> Any:
        return []  # the template shows all of it

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Leave what is no id and no hash to the mail view: it finds by words, in all there is."""
        term = request.GET.get(SEARCH_VAR, "").strip()
        if term and not as_uuid(term) and not _SHA256.fullmatch(term):
            return HttpResponseRedirect(f"{reverse('mail')}?{urlencode({'q': term})}")
        response = super().changelist_view(request, extra_context)
        listed = (getattr(response, "context_data", None) or {}).get("cl")
        if listed is not None:
            people.mail_listed(
                query=request.GET.urlencode(),
                how="table",
                shown=len(listed.result_list),
                actor=Actor.of_request(request),
            )
        return response

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
        return [*message_files.urls(), *super().get_urls()]

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        pk = as_uuid(object_id)
        message = queries.message(request.user, pk) if pk else None
        context = dict(extra_context or {})
        if message is not None and self.has_view_permission(request, message):
            context |= {
                "title": "Message",
                "mail": reading.details(request.user, message),
                "neighbours": reading.neighbours(request.user, message, request.GET.get("q", "")),
            }
            people.mail_read(message, how="page", actor=Actor.of_request(request))
        return super().change_view(request, object_id, form_url, context)
