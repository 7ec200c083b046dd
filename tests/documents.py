"""Documents of archived messages, as indexing leaves them: for tests that search, list and read."""

import datetime as dt
from typing import Any

from ingestion.mail.attachments import Attachment
from ingestion.mail.digest import Digest
from ingestion.models import INDEX_VERSION, Document, Message
from ingestion.search import words


def indexed(
    message: Message, text: str = "", *, date: dt.datetime | None = None, **known: Any
) -> Document:
    """Give a message the document of what is known of it.

    `known` are fields of its Digest; or of Document: thread, message_key, sender_address, version.
    """
    own = {name: known.pop(name) for name in list(known) if name not in Digest._fields}
    digest = Digest(text=text, preview=text[:200], **known)
    source = message.mailbox.source_id
    date = date or message.received_at or message.sent_at or message.archived_at
    vector = words.vector(message, digest, source=source, date=date)
    senders = [address for role, address, _ in digest.participants if role == "from"]
    return Document.objects.create(
        message=message,
        source_id=source,
        mailbox_id=message.mailbox_id,
        date=date,
        words=vector.literal,
        numbers=list(vector.numbers),
        preview=digest.preview,
        fields=digest.fields,
        attachments=[file._asdict() for file in digest.attachments],
        defects=[*digest.defects, *vector.defects],
        **(
            {"version": INDEX_VERSION, "thread": 0, "sender_address": senders[0] if senders else ""}
            | own
        ),
    )


def a_file(
    name: str,
    type: str = "application/pdf",  # noqa: A002 - Attachment's
    *,
    size_bytes: int = 1_000,
    sha256: str = "0" * 64,
    inline: bool = False,
) -> Attachment:
    """Return an attachment of a digest."""
    return Attachment(name, type, size_bytes, sha256, inline)
