"""What is kept of a message for search, lists and threads. Pure."""

from typing import NamedTuple

from ingestion.mail import body
from ingestion.mail.attachments import Attachment
from ingestion.mail.headers import Headers, head_of, parse_headers
from ingestion.mail.mime import Raw

#: Of all text of a message that is searched.
MAX_TEXT_BYTES = 200_000
_PREVIEW_CHARACTERS = 150


class Digest(NamedTuple):
    """All of it is text without characters that a page or terminal would obey, and never markup.

    `headers` are Message's own columns, as they are read today. `fields` has what Message has not,
    each where the message has it: "replyTo", "sender", "bcc", "resentFrom", "resentTo",
    "inReplyTo" (an id) as text; "references" as a list of ids, eldest first. `participants` are
    (role, address in lower case, display name) with the roles "from", "to", "cc", "bcc",
    "reply-to" and "sender". `text` is what there is to search in, of the body and of readable
    attachments, cut at MAX_TEXT_BYTES; `defects` says what was cut or not read.
    """

    text: str = ""
    preview: str = ""
    fields: dict[str, str | list[str]] = {}
    participants: tuple[tuple[str, str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    defects: tuple[str, ...] = ()
    headers: Headers = Headers()


def digest(raw: Raw) -> Digest:
    """Return what is kept of a message, of whatever bytes."""
    contents = body.read(raw)
    return Digest(
        text=contents.text,
        preview=" ".join(contents.text[:1_000].split())[:_PREVIEW_CHARACTERS],
        attachments=contents.attachments,
        headers=parse_headers(head_of(raw[:300_000])),
    )
