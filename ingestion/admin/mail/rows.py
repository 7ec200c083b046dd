"""The middle pane: messages as lines of a list."""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import OuterRef
from django.utils import timezone

from ingestion.admin import display
from ingestion.admin.base import capped_count
from ingestion.admin.mail import places
from ingestion.admin.mail.asked import Asked
from ingestion.models import Document, Message
from ingestion.search import marks
from ingestion.search.marks import Piece
from ingestion.search.query import Node
from ingestion.services.archive import highlights
from ingestion.services.archive.highlights import Highlight
from ingestion.states import FolderRole

#: A line shows less; the rest of a subject of 10,000 characters is on the message's page.
_MAX_CHARS = 300
#: What a page waits for at most, to show words that are neither in subjects nor in previews.
_SECONDS_FOR_EXCERPTS = 0.5
_MAX_CHIPS = 3
_MAX_CHARS_OF_CHIP = 40
_MAX_COUNTED_IN_THREAD = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A line of the list."""

    id: uuid.UUID
    url: str
    who: str
    from_field: str
    subject: Sequence[Piece]
    excerpt: Sequence[Piece]
    preview: str
    date: str
    full_date: str
    moment: dt.datetime
    mailbox: str
    chips: Sequence[str]
    attachments: int
    defects: str
    in_thread: str


def of(messages: Iterable[Message], asked: Asked, query: Node) -> list[Row]:
    """Return messages with their documents and placements as lines. One query."""
    shown = list(messages)
    threads = _threads(shown)
    found = _found(shown, query)
    return [_row(message, asked, found[message.pk], threads[message.pk]) for message in shown]


def _found(messages: list[Message], query: Node) -> dict[uuid.UUID, Highlight]:
    """Return of each message its subject in pieces, and an excerpt where its text has the words.

    What neither subject nor preview has is looked up in the text, in a limited time.
    """
    words = marks.phrases(query, "")
    in_subject = [*words, *marks.phrases(query, "subject")]
    known = {
        message.pk: Highlight(
            marks.marked(message.subject[:_MAX_CHARS], in_subject),
            marks.excerpt(message.document.preview, words),
        )
        for message in messages
    }
    if words:
        unseen = [message for message in messages if not _is_seen(known[message.pk])]
        known |= highlights.highlights(unseen, query, seconds=_SECONDS_FOR_EXCERPTS)
    return known


def _is_seen(highlight: Highlight) -> bool:
    return bool(highlight.text) or any(piece.found for piece in highlight.subject)


def _row(message: Message, asked: Asked, found: Highlight, in_thread: int) -> Row:
    document = message.document
    mailbox = "" if asked.mailbox else message.mailbox.address
    chips = _chips(message, asked)
    room = _MAX_CHIPS - bool(mailbox)
    more = [f"+{len(chips) - room}"] if len(chips) > room else []
    return Row(
        id=message.pk,
        url=asked.url(message.pk),
        who=name_of(message.sender),
        from_field=message.sender[:_MAX_CHARS],
        subject=found.subject,
        excerpt=found.text,
        preview=document.preview[:_MAX_CHARS],
        date=short_date(document.date),
        full_date=f"{display.clock(document.date)}, {display.when(document.date)}",
        moment=document.date,
        mailbox=mailbox,
        chips=[*chips[:room], *more],
        attachments=sum(1 for file in document.attachments if not file.get("inline")),
        defects=" ".join([*message.defects, *document.defects]),
        in_thread=display.count(in_thread, cap=_MAX_COUNTED_IN_THREAD) if in_thread > 1 else "",
    )


def _threads(messages: list[Message]) -> dict[Any, int]:
    """Return how many messages the conversation of each has, counted up to a cap."""
    same = Document.objects.filter(mailbox=OuterRef("mailbox"), thread=OuterRef("thread"))
    shown = Document.objects.filter(pk__in=[message.pk for message in messages])
    return dict(shown.values_list("pk", capped_count(same, cap=_MAX_COUNTED_IN_THREAD)))


def _chips(message: Message, asked: Asked) -> list[str]:
    """Return where a message is, but for the place that the list is of."""
    here = [placement for placement in message.placements.all() if placement.removed_at is None]
    found = [
        placement.folder.path
        for placement in here
        if placement.folder_id != asked.folder and placement.folder.role != FolderRole.ALL
    ]
    labels = [label for placement in here for label in placement.labels]
    found += [label for label in labels if label != asked.label and places.is_place(label)]
    short = (name[:_MAX_CHARS_OF_CHIP] for name in found)
    return list(dict.fromkeys(short)) if here else ["In no folder any more"]


def name_of(sender: str) -> str:
    """Return the name in a From field, or all of it where that could be taken for an address."""
    name = sender.split("<", maxsplit=1)[0].strip(' "')
    return (name if name and "@" not in name else sender)[:_MAX_CHARS]


def short_date(moment: dt.datetime, *, now: dt.datetime | None = None) -> str:
    """Say a date as lists of mail do (UTC): 14:05 of today, 3 May of this year, else 2021-05-03."""
    today = (now or timezone.now()).astimezone(dt.UTC)
    moment = moment.astimezone(dt.UTC)
    if moment.date() == today.date():
        return f"{moment:%H:%M}"
    if moment.year == today.year and moment < today:
        return f"{moment.day} {moment:%b}"
    return f"{moment:%Y-%m-%d}"
