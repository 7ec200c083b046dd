"""The search that "/" opens on every page: sources, mailboxes, folders, pages, and on to the mail.

It finds what the user may see and no more, by names alone: what is in mail, the mail view searches.
"""

import dataclasses
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from ingestion import queries
from ingestion.admin import display, navigation
from ingestion.admin.base import as_uuid
from ingestion.admin.mail.asked import Asked
from ingestion.models import Folder, IngestionSource, Mailbox

#: Of each kind; who wants the others types more.
MOST = 6
#: A letter is in every name.
_LEAST_CHARACTERS = 2
_LONGEST = 200
#: The script asks for the list alone.
_PART = "X-Part"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    title: str
    note: str
    url: str
    icon: str


@never_cache
@require_safe
def find(request: HttpRequest) -> HttpResponse:
    """Show what `?q=` finds: the whole page, or the list for the script of every page."""
    asked = request.GET.get("q", "").replace("\0", "").strip()[:_LONGEST]
    context: dict[str, Any] = {"asked": asked, "found": found(request, asked)}
    if _PART in request.headers:
        return TemplateResponse(request, "admin/ingestion/find/found.html", context)
    page = {**admin.site.each_context(request), "title": "Search", **context}
    return TemplateResponse(request, "admin/ingestion/find/page.html", page)


def found(request: HttpRequest, asked: str) -> list[Found]:
    """Return what is found, mail last. Three queries at most; without words, all pages."""
    shown = _pages(request, asked)
    if len(asked) >= _LEAST_CHARACTERS:
        shown = [*_sources(request, asked), *_mailboxes(request, asked), *shown]
        shown += _folders(request, asked)
    if asked and queries.reads_mail(request.user):
        note = "subjects, people, text and attachments"
        shown.append(Found(f"Search mail for “{asked}”", note, Asked(q=asked).url(), "search"))
    return shown


def _pages(request: HttpRequest, asked: str) -> list[Found]:
    pages = [
        Found(item["title"], section.get("title", ""), str(item["link"]), item["icon"])
        for section in navigation.sections(request)
        for item in section["items"]
        if item.get("permission", lambda _: True)(request)
    ]
    if request.user.has_perm("ingestion.add_ingestionsource"):
        add = reverse("admin:ingestion_ingestionsource_add")
        pages.append(Found("Add a source", "Ingestion", add, "add"))
    pages.append(Found("Change password", "Account", reverse("admin:password_change"), "key"))
    words = asked.casefold().split()
    return [page for page in pages if all(word in page.title.casefold() for word in words)]


def _sources(request: HttpRequest, asked: str) -> list[Found]:
    if not request.user.has_perm("ingestion.view_ingestionsource"):
        return []
    sources = IngestionSource.objects.filter(deleted_at=None)
    return [
        Found(
            source.name,
            f"Source, {source.get_provider_display()}, {source.get_status_display().lower()}",
            display.page_of(source),
            "cloud_download",
        )
        for source in _named(sources, "name", asked).order_by("name", "pk")[:MOST]
    ]


def _mailboxes(request: HttpRequest, asked: str) -> list[Found]:
    if not request.user.has_perm("ingestion.view_mailbox"):
        return []
    mailboxes = Mailbox.objects.filter(source__deleted_at=None).select_related("source")
    found = _named(mailboxes, "address", asked).order_by("address", "pk")[:MOST]
    return [
        Found(one.address, f"Mailbox of {one.source.name}", display.page_of(one), "inbox")
        for one in found
    ]


def _folders(request: HttpRequest, asked: str) -> list[Found]:
    if not request.user.has_perm("ingestion.view_folder"):
        return []
    folders = Folder.objects.filter(mailbox__source__deleted_at=None, removed_at=None)
    # Not in an order: the first few are found without looking at all the others.
    found = _named(folders.select_related("mailbox").order_by(), "path", asked)[:MOST]
    return [
        Found(one.path, f"Folder of {one.mailbox.address}", display.page_of(one), "folder")
        for one in sorted(found, key=lambda one: (one.path, one.mailbox.address))
    ]


def _named(rows: QuerySet[Any], field: str, asked: str) -> QuerySet[Any]:
    """Narrow rows to those that have each word in their name, or this id."""
    pk = as_uuid(asked)
    if pk is not None and rows.model is not Folder:
        return rows.filter(pk=pk)
    for word in asked.split():
        rows = rows.filter(**{f"{field}__icontains": word})
    return rows
