"""What the page of one message shows: context for `message_body.html`, which the mail view has too.

All of it is a stranger's text, cut to what a page bears; markup is shown in frames alone
(`ingestion.admin.message_files`).
"""

import mimetypes
import re
from typing import Any, NamedTuple

from django.contrib.auth.models import AnonymousUser, User
from django.urls import reverse

from ingestion import queries
from ingestion.admin import display
from ingestion.errors import ArchiveUnavailable, Corrupt, InvalidInput
from ingestion.mail.attachments import Attachment
from ingestion.mail.body import Contents
from ingestion.models import Message
from ingestion.search import pages
from ingestion.search import query as language
from ingestion.search.readings import Key
from ingestion.services.archive import reading
from ingestion.services.archive.reading import Reading

_MAX_PLACEMENTS = 100
_MAX_IN_THREAD = 100
_MAX_HEADERS = 500
_MAX_ATTACHMENTS = 500
_ROLES = (
    ("sender", "Sent by"),
    ("reply-to", "Reply to"),
    ("to", "To"),
    ("cc", "Cc"),
    ("bcc", "Bcc"),
)
#: Shown only where they say something else than From.
_OFTEN_THE_SENDER = ("sender", "reply-to")
#: So many people are shown; the others are folded.
_PEOPLE_SHOWN = 8
_MAX_PEOPLE = 500
#: What a browser shows of an attachment by itself.
MAX_PICTURE_BYTES = 10_000_000
_PICTURES = {"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"}
_TEXTS = re.compile(r"(text|message)/.*|application/(json|xml|sql|x-sh|yaml|ics)|.*\+(json|xml)")
_NEIGHBOURS = (("Newer", "chevron_left", True), ("Older", "chevron_right", False))
_ICONS = (
    (re.compile(r"image/"), "image"),
    (re.compile(r"message/"), "mail"),
    (re.compile(r"text/calendar|application/ics"), "event"),
    (re.compile(r".*(pgp|pkcs)"), "key"),
    (re.compile(r"audio/"), "music_note"),
    (re.compile(r"video/"), "movie"),
    (re.compile(r".*(zip|tar|compressed|archive)"), "folder_zip"),
    (re.compile(r".*(sheet|excel|csv)"), "table"),
    (re.compile(r"application/pdf|text/|.*(word|document)"), "description"),
)


class Shown(NamedTuple):
    """An attachment as a line: `preview` is "picture", "text" or ""."""

    number: int
    name: str
    about: str
    size: str
    icon: str
    preview: str


class People(NamedTuple):
    label: str
    shown: list[str]
    folded: list[str]


def details(user: User | AnonymousUser, message: Message) -> dict[str, Any]:
    """Return the context of `message_body.html`; what can't be read is said in `damage`."""
    damage = ""
    try:
        read = reading.whole(message)
    except (ArchiveUnavailable, Corrupt) as error:
        damage = str(error)
        read = Reading(Contents(notes=("The archived bytes can't be shown.",)))
    says = read.contents
    thread = queries.conversation(user, message, limit=_MAX_IN_THREAD + 1)
    others = thread[:_MAX_IN_THREAD]
    placements = list(message.placements.select_related("folder").order_by("removed_at", "id"))
    here = [placement for placement in placements if placement.removed_at is None]
    return {
        "message": message,
        "damage": damage,
        "says": says,
        "html": read.html,
        "tab": "html" if says.has_html else "text",
        "people": _people(message, read),
        "date": message.sent_at or message.received_at,
        "labels": sorted({label for placement in here for label in placement.labels}),
        "attachments": [
            _shown(number, attachment)
            for number, attachment in enumerate(says.attachments[:_MAX_ATTACHMENTS], 1)
        ],
        "attachments_left_out": max(0, len(says.attachments) - _MAX_ATTACHMENTS),
        "headers": _fields(says.headers)[:_MAX_HEADERS],
        "thread": others,
        "thread_count": f"{len(others) + 1}{'+' if len(thread) > len(others) else ''}",
        "thread_listed": len(others) if len(thread) > len(others) else 0,
        "indexed": hasattr(message, "document"),
        "placements": placements[:_MAX_PLACEMENTS],
        "placements_left_out": max(0, len(placements) - _MAX_PLACEMENTS),
        "size": display.size(message.size_bytes),
    }


def neighbours(user: User | AnonymousUser, message: Message, q: str) -> list[tuple[str, str, str]]:
    """Return (name, icon, address) of the messages before and after one in the list of a query, by
    date; without one, of its mailbox. Empty where it is not indexed, not in such a list, or where
    that takes too long."""
    if not hasattr(message, "document"):
        return []
    try:
        node = language.parse(q) if q else language.term("mailbox", str(message.mailbox_id))
        return _neighbours(pages.Search(user, node), message, q)
    except (language.QueryError, InvalidInput):
        return []


def _neighbours(search: pages.Search, message: Message, q: str) -> list[tuple[str, str, str]]:
    at = Key(message.document.date, message.pk)
    found = []
    for name, icon, backwards in (
        ("Newer", "chevron_left", True),
        ("Older", "chevron_right", False),
    ):
        there = search.page(cursor=str(pages.Cursor(at, backwards)), size=1).messages
        query = {"q": q} if q else None
        found += [
            (name, icon, reverse("admin:ingestion_message_change", args=[one.pk], query=query))
            for one in there
        ]
    return found


def _people(message: Message, read: Reading) -> list[People]:
    """Return whom the header names, by role; what Message has where the header was not read."""
    by_role: dict[str, list[str]] = {}
    for role, address, name in read.named.participants:
        by_role.setdefault(role, []).append(f"{name} <{address}>" if name else address)
    if not by_role:
        return [
            People(label, [text], [])
            for label, text in (("From", message.sender), ("To and Cc", message.recipients))
            if text
        ]
    senders = by_role.get("from", [])
    found = [People("From", [message.sender], [])] if message.sender else []
    for role, label in _ROLES:
        everybody = by_role.get(role, [])[:_MAX_PEOPLE]
        if role in _OFTEN_THE_SENDER and set(everybody) <= set(senders):
            continue
        if everybody:
            found.append(People(label, everybody[:_PEOPLE_SHOWN], everybody[_PEOPLE_SHOWN:]))
    return found


def _fields(headers: str) -> list[tuple[str, str]]:
    """Return header fields as they stand there, unfolded: (name, value)."""
    found: list[tuple[str, str]] = []
    for line in headers.split("\n"):
        name, colon, value = line.partition(":")
        if found and line[:1] in {" ", "\t"}:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif line.strip():
            found.append((name, value.strip()) if colon else ("", line))
    return found


def _shown(number: int, attachment: Attachment) -> Shown:
    kind = attachment.kind or ("belongs into the text" if attachment.inline else "")
    return Shown(
        number,
        attachment.name or "Without a name",
        f"{kind} ({attachment.type})" if kind else attachment.type,
        display.size(attachment.size_bytes),
        next((icon for pattern, icon in _ICONS if pattern.match(attachment.type)), "attach_file"),
        _preview(attachment),
    )


def _preview(attachment: Attachment) -> str:
    """Return how a page can show an attachment, by its type or by what its name ends with."""
    if not attachment.size_bytes:
        return ""
    guessed = mimetypes.guess_type(attachment.name)[0] or ""
    for kind in (attachment.type, guessed):
        if kind in _PICTURES:
            return "picture" if attachment.size_bytes <= MAX_PICTURE_BYTES else ""
        if _TEXTS.fullmatch(kind):
            return "text"
    return ""
