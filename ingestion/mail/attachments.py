"""What a part of a message is, for people: its name, and what its type means. Pure."""

from typing import NamedTuple

from ingestion.mail.headers import head_of, parse_headers
from ingestion.mail.mime import Part, Raw, content
from ingestion.mail.parameters import file_name

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
    one is called by its subject. `kind` says what a type means that is no file's, or "". `inline`:
    it belongs into the text, such as a picture in HTML. `size_bytes` is what a download would have.
    """

    name: str
    type: str
    kind: str
    size_bytes: int
    inline: bool


def described(raw: Raw, part: Part) -> Attachment:
    """Read all of a part, in constant memory."""
    name = file_name(part.disposition, part.content_type)
    size = 0
    for piece in content(raw, part):
        if not size and not name and part.type in ATTACHED_MESSAGES:
            name = parse_headers(head_of(piece)).subject
        size += len(piece)
    inline = part.disposition.word == "inline" or (not part.disposition.word and part.has_id)
    return Attachment(name, part.type, _KINDS.get(part.type, ""), size, inline)
