"""The page of the mail view, and its panes one by one for the script."""

import dataclasses
import uuid
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_safe

from ingestion import index_health, queries
from ingestion.admin.mail import places, rows
from ingestion.admin.mail.asked import Asked
from ingestion.admin.mail.readers import for_readers
from ingestion.admin.reading import details
from ingestion.errors import InvalidInput
from ingestion.models import Folder, Mailbox, Message
from ingestion.search.facets import facets
from ingestion.search.pages import Search
from ingestion.search.query import OPERATORS, Node, QueryError
from ingestion.services.audit import Actor
from ingestion.services.operations import people

#: What the script may ask for alone, in the header X-Panes: the page has them all.
_PANES = ("search", "places", "list", "message")
_HELP = (
    ("annual report", "both words, anywhere in the mail"),
    ('"annual report"', "these words in this order"),
    ("invoice OR bill", "one of them"),
    ("-draft", "without this word"),
    ("invoic*", "words that begin so"),
)
_FACETS = (
    ("sender", "From"),
    ("year", "Year"),
    ("mailbox", "Mailbox"),
    ("label", "Label"),
    ("attachment", "With"),
    ("type", "Attached"),
)
_VALUES = 6
#: Of each order: how an address has it, how search has it, its name, and its pages' names.
_ORDERS = (
    ("", "-date", "Newest", "Newer", "Older"),
    ("date", "date", "Oldest", "Older", "Newer"),
    ("relevance", "relevance", "Best", "Before", "More"),
)


@for_readers
@require_safe
def mail(request: HttpRequest, pk: uuid.UUID | None = None) -> HttpResponse:
    """Show places, the list that is asked for, and the message of `pk`."""
    asked = Asked.of(request.GET)
    showing = "places" if asked.show == "places" else "message" if pk else "list"
    if showing == "places":  # what links lead to is shown
        asked = dataclasses.replace(asked, show="")
    named = request.headers.get("X-Panes", "").split()
    wanted = [pane for pane in _PANES if pane in named] or list(_PANES)
    context: dict[str, Any] = {"asked": asked, "pk": pk} | _names(request, asked)
    if "places" in wanted:
        context |= places.context(request.user, asked, request.GET.get("mailboxes", "").strip())
    if "list" in wanted:
        context |= _list(request, asked)
    if "message" in wanted:
        context |= _message(request, asked, pk)
    if "rows" in context and "message" not in context:
        people.mail_listed(
            query=context["query"],
            how="page",
            shown=len(context["rows"]),
            actor=Actor.of_request(request),
        )
    if named:
        parts = (f"admin/ingestion/mail/{pane}.html" for pane in wanted)
        return HttpResponse("".join(render_to_string(part, context, request) for part in parts))
    page = admin.site.each_context(request) | context
    page |= {
        "title": context.get("message") or context["list_title"],
        "showing": showing,
        "is_nav_sidebar_enabled": request.user.is_staff,
        "operators": [*_HELP, *((f"{name}:", wants) for name, (_, wants) in OPERATORS.items())],
    }
    return render(request, "admin/ingestion/mail/page.html", page)


def _names(request: HttpRequest, asked: Asked) -> dict[str, Any]:
    """Return what the place is called that the list is of."""
    readable = queries.sources_of_mail(request.user)
    name = asked.label
    if asked.folder:
        folder = Folder.objects.filter(mailbox__source__in=readable, pk=asked.folder).first()
        name = folder.path if folder else ""
    elif asked.mailbox and not name:
        mailbox = Mailbox.objects.filter(source__in=readable, pk=asked.mailbox).first()
        name = mailbox.address if mailbox else ""
    return {
        "place_name": name or "All mail",
        "list_title": asked.q or name or "All mail",
        "scope": name,
        "everywhere": Asked(q=asked.q).url(),
    }


def _list(request: HttpRequest, asked: Asked) -> dict[str, Any]:
    """Return the context of `mail/list.html`. Raises Http404 for a page of another list."""
    order = next((order for order in _ORDERS if order[0] == asked.sort), _ORDERS[0])
    context = {
        "to_places": asked.url(show="places"),
        "orders": [
            (label, asked.url(sort=name, page=""), name == order[0])
            for name, _, label, *_ in (_ORDERS if asked.q else _ORDERS[:2])
        ],
    }
    try:
        query = asked.query()
    except QueryError as error:
        return context | {"problem": _problem(asked.q, error)}
    try:
        return context | _listed(request, asked, query, order)
    except InvalidInput as error:  # it took too long
        return context | {"problem": {"text": error.words, "before": asked.q}}


def _listed(
    request: HttpRequest, asked: Asked, query: Node, order: tuple[str, ...]
) -> dict[str, Any]:
    """Return what is found. Raises Http404, InvalidInput."""
    search = Search(request.user, query)
    try:
        page = search.page(sort=order[1], cursor=asked.page)
    except ValueError as error:
        raise Http404 from error
    number, more = search.count()
    noun = "message" if number == 1 else "messages"
    unindexed = _unindexed(request, asked)
    return {
        "rows": rows.of(page.messages, asked, query),
        "unindexed": unindexed,
        "count": f"{number:,}{'+' if more else ''} {noun}" if number else "",
        "previous": asked.url(page=page.previous) if page.previous else "",
        "next": asked.url(page=page.next) if page.next else "",
        "previous_name": order[3],
        "next_name": order[4],
        "query": str(query),
        "may_save": bool(str(query)),
        "export": _export(request, str(query)),
        "here": asked.url(),
        "nothing": _nothing(asked, unindexed=bool(unindexed)),
        "narrow": asked.url(show="" if asked.show == "facets" else "facets"),
        "facets": _facets(search, asked) if asked.show == "facets" else [],
    }


def _export(request: HttpRequest, query: str) -> str:
    """Return the address of the form, of the admin, that exports a search, for those who may."""
    may = request.user.is_staff and request.user.has_perm("ingestion.add_export")
    return f"{reverse('admin:ingestion_export_add')}?{urlencode({'query': query})}" if may else ""


def _unindexed(request: HttpRequest, asked: Asked) -> str:
    """Say how many messages lists may lack; "" where there are none."""
    sources = queries.sources_of_mail(request.user)
    if asked.mailbox:
        sources = sources.filter(mailboxes=asked.mailbox)
    health = index_health.in_all(sources)
    if not health.waiting:
        return ""
    where = "of this source" if asked.mailbox else "archived"
    return (
        f"{health.waiting:,} of {health.messages:,} messages {where} wait to be indexed: lists and"
        " searches may not have them yet."
    )


def _facets(search: Search, asked: Asked) -> list[dict[str, Any]]:
    """Return how what was found divides, each value with the address of the narrower list."""
    found = facets(search)
    about = f" of the newest {found.of:,}" if found.more else ""
    shown = []
    for name, title in _FACETS:
        values = [
            (value.text, f"{value.number:,}", asked.narrowed(value.query).url())
            for value in found.values[name]
            if value.number < found.of and (name != "label" or places.is_place(value.text))
        ]
        if values:
            shown.append({"title": f"{title}{about}", "values": values[:_VALUES]})
    return shown


def _nothing(asked: Asked, *, unindexed: bool) -> dict[str, Any]:
    """Return what an empty list says."""
    if unindexed and not asked.q:
        return {
            "icon": "inbox",
            "title": "Nothing to list yet",
            "text": "What is archived appears here as it is indexed. Open the page again soon.",
            "links": [],
        }
    if asked.q:
        links = [("Clear the search", dataclasses.replace(asked, q="", page="").url())]
        if asked.mailbox:
            links.insert(0, ("Search everywhere", Asked(q=asked.q, sort=asked.sort).url()))
        return {
            "icon": "search_off",
            "title": "Nothing matches",
            "text": "All words must be in a message: leave one out, or shorten one: invoic*.",
            "links": links,
        }
    if asked.mailbox:
        return {
            "icon": "inbox",
            "title": "No mail here",
            "text": "What the next sync archives of this place appears here.",
            "links": [("All mail", Asked().url())],
        }
    return {
        "icon": "inbox",
        "title": "No mail yet",
        "text": "What an import archives appears here within seconds.",
        "links": [],
    }


def _problem(text: str, error: QueryError) -> dict[str, str]:
    """Return what is wrong with a search, and the text cut where it is."""
    at = error.position
    end = at + len(text[at:].split(maxsplit=1)[0]) if text[at:].split() else at
    return {"text": str(error), "before": text[:at], "at": text[at:end] or " ", "after": text[end:]}


def _message(request: HttpRequest, asked: Asked, pk: uuid.UUID | None) -> dict[str, Any]:
    if pk is None:
        return {}
    message = queries.message(request.user, pk)
    if message is None:
        raise Http404
    query = _printed(asked)
    people.mail_read(message, how="page", actor=Actor.of_request(request), query=query)
    mail = details(request.user, message)
    _, mark, state = asked.url().partition("?")
    return {
        "message": message,
        "mail": mail,
        "to_list": asked.url(),
        "of_list": mark + state,
        "own_page": _own_page(message, query),
    }


def _printed(asked: Asked) -> str:
    """Return the query of a list; "" where it is none: the list says what is wrong."""
    try:
        return str(asked.query())
    except QueryError:
        return ""


def _own_page(message: Message, query: str) -> str:
    """Return the address of a message's own page, where newer and older are those of the list."""
    parameters = {"q": query} if query else None
    return reverse("admin:ingestion_message_change", args=[message.pk], query=parameters)
