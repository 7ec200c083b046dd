"""Rows that pages show, made without an import: sources in any state, mail in the archive."""

import datetime as dt
import hashlib
from typing import Any

from django.contrib.auth.models import User
from django.utils import timezone

from ingestion.mail.headers import head_of, parse_headers
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs.record import Origin, RecordHeader
from ingestion.packs.store import store
from ingestion.services.archive import storage
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration

SECRET = "s3cret-of-the-test-account"
#: Far enough that no beat takes up what a test has put there.
LATER = dt.timedelta(days=30)
CONFIG = {"host": "imap.example.com", "username": "ada@example.com", "password": SECRET}


def a_source(owner: User, name: str = "Sales", **state: Any) -> IngestionSource:
    """Make a source; by default it is active, imported, and due in a month."""
    source = configuration.create(
        owner=owner,
        name=name,
        provider="generic_imap",
        provider_config=CONFIG,
        actor=Actor.system("tests"),
    )
    now = timezone.now()
    usual = {
        "status": "active",
        "proven_at": now,
        "imported_at": now,
        "next_sync_at": now + LATER,
        "check_not_before": now + LATER,
    }
    IngestionSource.objects.filter(pk=source.pk).update(**(usual | state))
    source.refresh_from_db()
    return source


def a_mailbox(source: IngestionSource, address: str = "ada@example.com", **state: Any) -> Mailbox:
    state = {"not_before": timezone.now() + LATER} | state
    return Mailbox.objects.create(source=source, remote_id=address, address=address, **state)


def a_folder(mailbox: Mailbox, path: str = "INBOX", **state: Any) -> Folder:
    return Folder.objects.create(mailbox=mailbox, remote_id=path, path=path, **state)


def _record(body: bytes, origin: Origin, *, remote_id: str) -> RecordHeader:
    sha256 = hashlib.sha256(body).digest()
    return RecordHeader(sha256, len(body), origin, remote_id, "", "", None, ())


def archived(folder: Folder, *bodies: bytes) -> list[Message]:
    """Put messages into the archive as capture does: a pack, then the rows."""
    storage.require()
    mailbox = folder.mailbox
    with store().writer(mailbox.source_id) as pack:
        origin = Origin(mailbox.remote_id, mailbox.address, folder.remote_id, folder.path, "")
        records = [
            (_record(body, origin, remote_id=f"1:{number}").dumps(), body)
            for number, body in enumerate(bodies, 1)
        ]
        extents = pack.append(records)
        size = pack.commit()
    row = Pack.objects.create(
        id=pack.pack_id, source=mailbox.source, size_bytes=size, message_count=len(bodies)
    )
    messages = []
    for number, (body, extent) in enumerate(zip(bodies, extents, strict=True), 1):
        headers = parse_headers(head_of(body))
        message = Message.objects.create(
            mailbox=mailbox,
            sha256=hashlib.sha256(body).digest(),
            size_bytes=len(body),
            pack=row,
            pack_offset=extent.offset,
            pack_length=extent.length,
            received_at=timezone.now(),
            subject=headers.subject,
            sender=headers.sender,
            recipients=headers.recipients,
            sent_at=headers.sent_at,
            message_id=headers.message_id,
        )
        Placement.objects.create(
            mailbox=mailbox, folder=folder, message=message, remote_id=f"1:{number}"
        )
        messages.append(message)
    return messages
