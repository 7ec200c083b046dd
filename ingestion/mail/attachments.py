"""What a part of a message is, for people: its name, and what its type means. Pure."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from ingestion.mail.documents import summary_of
from ingestion.mail.headers import head_of, parse_headers
from ingestion.mail.mime import Part, Raw, content
from ingestion.mail.parameters import file_name, safe_name

ATTACHED_MESSAGES = frozenset({"message/rfc822", "message/global", "message/news"})
_KINDS = {
    **dict.fromkeys(ATTACHED_MESSAGES, "attached message"),
    "message/delivery-status": "report of a delivery",
    "message/disposition-notification": "report of a reading",
    "message/external-body": "file that is elsewhere",
    "message/partial": "piece of a message",
    "text/rfc822-headers": "headers of a message",
    "text/calendar": "calendar",
    "application/ics": "calendar",
    "text/vcard": "business card",
    "text/x-vcard": "business card",
    "application/pgp-signature": "signature (PGP)",
    "application/pgp-encrypted": "encryption (PGP)",
    "application/pgp-keys": "key (PGP)",
    "application/pkcs7-signature": "signature (S/MIME)",
    "application/x-pkcs7-signature": "signature (S/MIME)",
    "application/pkcs7-mime": "sealed content (S/MIME)",
    "application/x-pkcs7-mime": "sealed content (S/MIME)",
    "application/ms-tnef": "Outlook's own format, which may hold more files",
    "application/vnd.ms-tnef": "Outlook's own format, which may hold more files",
}


class Attachment(NamedTuple):
    """`name` is safe to show and to save under, "" where there is none; an attached message without
    one is called by its subject, a calendar by its event. `kind` says what a type means that is no
    file's, or "". `inline`: it belongs into the text, as a picture that HTML can name. Size and
    SHA-256 are what a download has.
    """

    name: str
    type: str
    size_bytes: int
    sha256: str
    inline: bool
    kind: str = ""


def is_text(part: Part) -> bool:
    """Whether a part is to be shown by itself. A name doesn't make it a file (RFC 2183)."""
    return part.type in {"text/plain", "text/html"} and part.disposition.word in {"", "inline"}


def attached(part: Part) -> Iterator[Part]:
    """Yield the parts within one that are attachments, in their order. A text with a name is shown
    and is one too."""
    if part.parts:
        for child in part.parts:
            yield from attached(child)
    elif part.type.startswith("multipart/") and part.looked_into:
        return  # its parts can't be told apart: it is shown as text
    elif not is_text(part) or file_name(part.disposition, part.content_type):
        yield part


def described(raw: Raw, part: Part) -> Attachment:
    """Read all of a part, in constant memory."""
    name = file_name(part.disposition, part.content_type)
    size, digest = 0, hashlib.sha256()
    for piece in content(raw, part):
        if not size and not name and part.type in ATTACHED_MESSAGES:
            name = safe_name(parse_headers(head_of(piece)).subject)
        elif not size and not name and _KINDS.get(part.type) == "calendar":
            name = safe_name(summary_of(piece))
        size += len(piece)
        digest.update(piece)
    kind = _KINDS.get(part.type, "")
    return Attachment(name, part.type, size, digest.hexdigest(), _is_inline(part), kind)


def _is_inline(part: Part) -> bool:
    """Its sender's word alone says little: Apple Mail calls every file inline."""
    if is_text(part):
        return part.disposition.word == "inline"
    is_named_picture = part.type.startswith("image/") and bool(part.id)
    return is_named_picture and part.disposition.word in {"", "inline"}
