"""What one record of a pack says, checked: the way back from a pack to rows.

The way there is `ingestion.packer`, which writes the record's header.
"""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Self

from connectors.types import SpooledBody
from ingestion import mime
from ingestion.archive.store import Entry, Extent, PackStore
from ingestion.models import Folder, Mailbox, Placement
from ingestion.rows import NewMessage
from ingestion.services.capture_sql import new_message_ids


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One message of a pack. `headers` only once its bytes were read."""

    sha256: bytes
    size: int
    extent: Extent
    mailbox: str
    address: str
    folder: str
    path: str
    remote_id: str
    stable_id: str
    received_at: dt.datetime | None
    labels: tuple[str, ...]
    headers: mime.Headers = dataclasses.field(default_factory=mime.Headers)

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """Read a record's header. Raises ValueError where a field is missing or no good."""
        given = entry.header
        try:
            sha256 = bytes.fromhex(given["sha256"])
            received = given["received_at"]
            record = cls(
                sha256=sha256,
                size=int(given["size"]),
                extent=entry.extent,
                mailbox=str(given["mailbox"]),
                address=str(given.get("address", "")),
                folder=str(given["folder"]),
                path=str(given.get("path", "")),
                remote_id=str(given["remote_id"]),
                stable_id=str(given.get("stable_id", "")),
                received_at=dt.datetime.fromisoformat(received) if received else None,
                labels=tuple(str(label) for label in given.get("labels", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            where = f"the record at byte {entry.extent.offset} has no usable header"
            raise ValueError(f"{where} ({type(error).__name__}: {error})") from error
        if len(sha256) != 32:
            raise ValueError(f"the record at byte {entry.extent.offset} has no SHA-256")
        return record

    def read(self, archive: PackStore, source_id: uuid.UUID, pack_id: uuid.UUID) -> Self:
        """Return the record with its headers, its bytes having been checked. Raises Corrupt."""
        body = archive.open(source_id, pack_id, self.extent, sha256=self.sha256, size=self.size)
        if isinstance(body, SpooledBody):
            try:
                head = next(body.chunks(), b"")
            finally:
                body.close()
        else:
            head = body
        return dataclasses.replace(self, headers=mime.parse_headers(mime.head_of(head)))

    def message(self) -> NewMessage:
        """Return the row, not yet stored, of the message."""
        [pk] = new_message_ids(1)
        received_at = self.received_at.isoformat() if self.received_at else None
        return NewMessage(pk, self.sha256, self.size, self.extent, received_at, self.headers)

    def placement(
        self, mailbox: Mailbox, folder: Folder, messages: Mapping[bytes, str]
    ) -> Placement:
        """Return the row, not yet stored, of where the message was archived from."""
        return Placement(
            mailbox=mailbox,
            folder=folder,
            message_id=messages[self.sha256],
            remote_id=self.remote_id,
            stable_id=self.stable_id,
            labels=list(self.labels),
        )
