"""A record of a pack, checked: the way back from a pack to rows."""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Self

from django.utils import timezone

from connectors.types import SpooledBody
from ingestion import rows
from ingestion.mail.headers import Headers, head_of, parse_headers
from ingestion.models import Folder, Mailbox, Placement
from ingestion.packs.record import RecordHeader
from ingestion.packs.store import Entry, Extent, PackStore


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One message of a pack. `headers`, the message's own, only once its bytes were read."""

    header: RecordHeader
    extent: Extent
    headers: Headers = dataclasses.field(default_factory=Headers)

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Read a record's header. Raises ValueError where a field is missing or no good."""
        try:
            return cls(RecordHeader.parse(entry.header), entry.extent)
        except ValueError as error:
            raise ValueError(f"the record at byte {entry.extent.offset} has {error}") from error

    @property
    def sha256(self) -> bytes:
        return self.header.sha256

    @property
    def archived_at(self) -> dt.datetime | None:
        """When the message was archived, by the clock of the worker that did it, which may have
        been wrong: never in the future. None where the pack does not tell."""
        told = self.header.origin.archived_at
        return min(dt.datetime.fromisoformat(told), timezone.now()) if told else None

    def read(self, archive: PackStore, source_id: uuid.UUID, pack_id: uuid.UUID) -> Self:
        """Return the record with its headers, its bytes having been checked. Raises Corrupt."""
        body = archive.open(
            source_id, pack_id, self.extent, sha256=self.sha256, size=self.header.size
        )
        if isinstance(body, SpooledBody):
            try:
                head = next(body.chunks(), b"")
            finally:
                body.close()
        else:
            head = body
        return dataclasses.replace(self, headers=parse_headers(head_of(head)))

    def message(self, pk: str, mailbox: Mailbox, pack_id: uuid.UUID) -> str:
        """Write the row, not yet stored, of the message."""
        return rows.message(
            pk, self.header, self.extent, self.headers, mailbox=mailbox.pk.hex, pack=pack_id.hex
        )

    def placement(
        self, mailbox: Mailbox, folder: Folder, messages: Mapping[bytes, str]
    ) -> Placement:
        """Return the row, not yet stored, of where the message was archived from.

        A draft has no stable id, as what is sent of it may have the same. Packs of before tell one.
        """
        header = self.header
        place = Placement(
            mailbox=mailbox,
            folder=folder,
            message_id=messages[header.sha256],
            remote_id=header.remote_id,
            stable_id="" if "\\Draft" in header.labels else header.stable_id,
            thread_id=header.thread_id,
            labels=list(header.labels),
        )
        if self.archived_at is not None:
            place.first_seen_at = self.archived_at
        return place
