"""The list of emails: from their rows, as they were archived; or searched, from what is indexed."""

from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User
from drf_spectacular.utils import OpenApiExample
from rest_framework.exceptions import ValidationError

from ingestion import queries
from ingestion.api import email_serializers
from ingestion.search import facets, pages
from ingestion.search import query as language
from ingestion.services.archive import highlights

EXAMPLES = [
    OpenApiExample(
        "What a search answers",
        summary="q=invoice from:example.com&count=true&highlight=true",
        value={
            "results": [
                {
                    "id": "0b3c7a52-5f0e-4e0c-9d5b-6a3f1d0f7c11",
                    "sourceId": "f2b1a1de-3c55-4f5e-8a86-3f1d6c0b9a20",
                    "mailboxId": "5a1f0f0e-6f2e-4a53-9d0f-2f0c7d8e9b31",
                    "mailbox": "ada@example.com",
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "sizeBytes": 48_213,
                    "receivedAt": "2024-05-31T08:00:00Z",
                    "archivedAt": "2026-01-02T03:04:05Z",
                    "subject": "Invoice 2024-117",
                    "sender": "Billing <billing@example.com>",
                    "recipients": "Ada <ada@example.com>",
                    "sentAt": "2024-05-31T07:59:58Z",
                    "messageId": "<117@example.com>",
                    "defects": [],
                    "placements": [],
                    "preview": "Dear Ada, please find the invoice enclosed",
                    "highlight": {
                        "subject": [
                            {"text": "Invoice", "found": True},
                            {"text": " 2024-117", "found": False},
                        ],
                        "text": [
                            {"text": "Dear Ada, please find the ", "found": False},
                            {"text": "invoice", "found": True},
                            {"text": " enclosed", "found": False},
                        ],
                    },
                }
            ],
            "nextCursor": "",
            "previousCursor": "",
            "count": {"number": 1, "more": False},
        },
        response_only=True,
        status_codes=["200"],
    )
]


def listed(user: User, wanted: Mapping[str, Any], *, may_read: bool) -> dict[str, Any]:
    """Return the page of the list that checked parameters ask for; with text of the mail itself
    only where one `may_read` it. Raises ValidationError."""
    if _is_search(wanted):
        return _found(user, wanted, may_read=may_read)
    narrowed = queries.MessageFilter(
        source=wanted.get("source"),
        mailbox=wanted.get("mailbox"),
        folder=wanted.get("folder"),
        sender=wanted.get("sender", ""),
        subject=wanted.get("subject", ""),
        received_from=wanted.get("receivedFrom"),
        received_before=wanted.get("receivedBefore"),
    )
    cursor, size = wanted.get("cursor", ""), wanted["pageSize"]
    try:
        page, following = queries.messages(user, narrowed, cursor=cursor, size=size)
    except ValueError:
        raise _no_cursor() from None
    return dict(email_serializers.EmailPage({"results": page, "nextCursor": following}).data)


def _is_search(wanted: Mapping[str, Any]) -> bool:
    asked = any(wanted.get(name) for name in ("q", "recipient", "label"))
    asked = asked or any(wanted[name] for name in ("count", "facets", "highlight"))
    asked = asked or wanted["hasAttachment"] is not None
    if asked and wanted.get("sort") == "-archived":
        raise ValidationError({"sort": ["A search is sorted by -date, date or relevance."]})
    return asked or wanted.get("sort", "-archived") != "-archived"


def _found(user: User, wanted: Mapping[str, Any], *, may_read: bool) -> dict[str, Any]:
    node = _query(wanted)
    since, before = wanted.get("receivedFrom"), wanted.get("receivedBefore")
    search = pages.Search(user, node, since=since, before=before)
    sort, cursor, size = wanted.get("sort", "-date"), wanted.get("cursor", ""), wanted["pageSize"]
    try:
        page = search.page(sort=sort, cursor=cursor, size=size)
    except ValueError:
        raise _no_cursor() from None
    document: dict[str, Any] = {
        "results": page.messages,
        "nextCursor": page.next,
        "previousCursor": page.previous,
    }
    if wanted["count"]:
        document["count"] = search.count()
    if wanted["facets"]:
        document["facets"] = facets.facets(search)
    if wanted["highlight"]:
        shown = highlights.highlights(page.messages, node)
        for message in page.messages:
            message.highlight = shown.get(message.pk)  # type: ignore[attr-defined] # FoundEmailOut's
    return dict(email_serializers.FoundPage(document, context={"may_read": may_read}).data)


def _no_cursor() -> ValidationError:
    return ValidationError({"cursor": ["Not a cursor of this list."]})


def _query(wanted: Mapping[str, Any]) -> language.Node:
    """Return the query that parameters make together."""
    try:
        nodes = [language.parse(wanted.get("q", ""))]
    except language.QueryError as error:
        told = f"{error} (At character {error.position + 1}.)"
        raise ValidationError({"q": [told]}) from None
    for name, operator in _OPERATORS.items():
        if value := wanted.get(name):
            nodes.append(_term(name, operator, str(value)))
    if value := wanted.get("recipient"):
        each = [_term("recipient", operator, value) for operator in ("to", "cc", "bcc")]
        nodes.append(language.AnyOf(tuple(each)))
    if wanted["hasAttachment"] is not None:
        has = language.term("has", "attachment")
        nodes.append(has if wanted["hasAttachment"] else language.Not(has))
    return language.all_of(*nodes)


_OPERATORS = {
    "source": "source",
    "mailbox": "mailbox",
    "folder": "folder",
    "label": "label",
    "sender": "from",
    "subject": "subject",
}


def _term(name: str, operator: str, value: str) -> language.Term:
    try:
        return language.term(operator, value)
    except language.QueryError as error:
        raise ValidationError({name: [str(error)]}) from None
