"""What a search found of each message of a page: its subject and an excerpt of its text, in pieces.

The text is in no table: it is read from the packs, by processes with limits, for what is shown.
"""

import time
import uuid
from collections.abc import Iterable
from typing import NamedTuple

from ingestion.errors import Corrupt
from ingestion.models import Message
from ingestion.search import marks
from ingestion.search.marks import Piece
from ingestion.search.query import Node
from ingestion.services.archive import reading
from ingestion.services.archive.readers import Unreadable

#: For a page: what takes longer is left out.
SECONDS = 2.0
#: A page's text is read for at most so many bytes of a message: pictures are none.
_MAX_BYTES = 5_000_000


class Highlight(NamedTuple):
    """`text` is an excerpt, empty where the words are elsewhere: in a name, a file, the subject."""

    subject: list[Piece]
    text: list[Piece]


def highlights(
    messages: Iterable[Message], query: Node, *, seconds: float = SECONDS
) -> dict[uuid.UUID, Highlight]:
    """Return the highlights of messages by id, with their mailboxes at hand.

    Left out are those that can't be read, and those that were not read in the time.
    """
    text_words = marks.phrases(query, "")
    subject_words = [*text_words, *marks.phrases(query, "subject")]
    deadline = time.monotonic() + seconds
    found = {}
    for message in messages:
        text = _text(message, deadline) if text_words else ""
        if text is not None:
            found[message.pk] = Highlight(
                marks.marked(message.subject, subject_words), marks.excerpt(text, text_words)
            )
    return found


def _text(message: Message, deadline: float) -> str | None:
    left = deadline - time.monotonic()
    if left <= 0 or message.size_bytes > _MAX_BYTES:
        return None
    try:
        return reading.text(message, deadline_seconds=left)
    except (OSError, Corrupt, Unreadable):  # also of this machine, or of one pack
        return None
