"""What is kept of a message for search, lists and threads: the shape. Pure."""

from typing import NamedTuple


class File(NamedTuple):
    """An attachment as lists show it and search finds it."""

    name: str
    type: str
    size_bytes: int
    sha256: str
    inline: bool


class Digest(NamedTuple):
    """All of it is text without characters that a page or terminal would obey, and never markup.

    `fields` has what Message has not, each where the message has it: "replyTo", "sender", "bcc",
    "resentFrom", "resentTo", "inReplyTo" (an id) as text; "references" as a list of ids, eldest
    first. `participants` are (role, address in lower case, display name) with the roles "from",
    "to", "cc", "bcc", "reply-to" and "sender". `text` is what there is to search in, of the body
    and of readable attachments, cut at MAX_TEXT_BYTES; `defects` says what was cut or not read.
    """

    text: str = ""
    preview: str = ""
    fields: dict[str, str | list[str]] = {}
    participants: tuple[tuple[str, str, str], ...] = ()
    attachments: tuple[File, ...] = ()
    defects: tuple[str, ...] = ()
