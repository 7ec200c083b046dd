"""What an export tells of a message, and where it files it: by the folders and labels it has. Pure
but for `item`, which reads a row."""

import dataclasses
import datetime as dt
import uuid
from typing import NamedTuple

from ingestion.models import Message, Placement
from ingestion.states import FolderRole


class Place(NamedTuple):
    """A folder that a message lies in, or lay in, with its labels there."""

    path: str
    role: str
    labels: tuple[str, ...]
    first_seen_at: dt.datetime
    removed_at: dt.datetime | None
    provider: str


class Filed(NamedTuple):
    """Where a message is put: a folder, and its flags (of IMAP, such as "\\\\Seen") there."""

    path: str
    role: str
    flags: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Item:
    id: uuid.UUID
    sha256: str
    size: int
    mailbox: str
    subject: str
    received_at: dt.datetime | None
    sent_at: dt.datetime | None
    archived_at: dt.datetime
    places: tuple[Place, ...]

    @property
    def at(self) -> dt.datetime:
        return self.received_at or self.sent_at or self.archived_at

    @property
    def filed(self) -> list[Filed]:
        """Where it lies now; where it lay last, if it was removed from everywhere."""
        now = [place for place in self.places if place.removed_at is None]
        if not now and self.places:
            now = [max(self.places, key=lambda place: place.removed_at or self.archived_at)]
        found: dict[str, Filed] = {}
        for place in now:
            for filed in _filed(place):
                same = found.get(filed.path)
                flags = filed.flags | same.flags if same else filed.flags
                found[filed.path] = filed._replace(flags=flags)
        return list(found.values()) or [Filed("", "", frozenset())]


def item(message: Message) -> Item:
    """Return what is told of a message, read with its mailbox, source, placements and folders."""
    provider = message.mailbox.source.provider
    placements = sorted(message.placements.all(), key=lambda placement: placement.pk)
    return Item(
        message.pk,
        message.sha256_hex,
        message.size_bytes,
        message.mailbox.address,
        message.subject,
        message.received_at,
        message.sent_at,
        message.archived_at,
        tuple(_place(placement, provider) for placement in placements),
    )


def _place(placement: Placement, provider: str) -> Place:
    folder = placement.folder
    return Place(
        folder.path,
        folder.role,
        tuple(placement.labels),
        placement.first_seen_at,
        placement.removed_at,
        provider,
    )


# -- folders and flags -----------------------------------------------------------------------------

#: RFC 9051 section 2.3.2, without \Recent, which nobody can set.
SYSTEM_FLAGS = {
    name.lower(): name for name in ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft")
}
#: Gmail's own labels, as its API names them and as IMAP does (without the backslash): folders.
_GMAIL_FOLDERS = {
    "inbox": ("INBOX", FolderRole.INBOX),
    "sent": ("Sent", FolderRole.SENT),
    "draft": ("Drafts", FolderRole.DRAFTS),
    "drafts": ("Drafts", FolderRole.DRAFTS),
    "spam": ("Spam", FolderRole.JUNK),
    "junk": ("Spam", FolderRole.JUNK),
    "trash": ("Trash", FolderRole.TRASH),
}
_GMAIL_VIEWS = frozenset({"unread", "starred", "important", "chat", "muted", "allmail", "all"})


def _filed(place: Place) -> list[Filed]:
    flags = frozenset(
        SYSTEM_FLAGS.get(label.lower(), label) for label in place.labels if _is_flag(label)
    )
    if place.provider == "google":
        flags = _gmail_flags(place.labels)
    elif not _is_gmail(place):
        return [Filed(place.path, place.role, flags)]
    folders = [filed for label in place.labels if (filed := _label_folder(label, place, flags))]
    return folders or [Filed(place.path, place.role, flags)]


def _is_gmail(place: Place) -> bool:
    """Tell whether labels stand for folders: everything lies in All Mail there."""
    return place.role == FolderRole.ALL and place.path.startswith(("[Gmail]", "[Google Mail]"))


def _is_flag(label: str) -> bool:
    return label.lower() in SYSTEM_FLAGS or label.startswith("$")


def _gmail_flags(labels: tuple[str, ...]) -> frozenset[str]:
    flags = set() if "UNREAD" in labels else {"\\Seen"}
    if "STARRED" in labels:
        flags.add("\\Flagged")
    if "DRAFT" in labels:
        flags.add("\\Draft")
    return frozenset(flags)


def _label_folder(label: str, place: Place, flags: frozenset[str]) -> Filed | None:
    name = label.removeprefix("\\").lower()
    own = label.startswith("\\") or (place.provider == "google" and label.isupper())
    if own and name in _GMAIL_FOLDERS:
        path, role = _GMAIL_FOLDERS[name]
        return Filed(path, role, flags)
    if _is_flag(label) or (own and (name in _GMAIL_VIEWS or name.startswith("category_"))):
        return None
    return Filed(label.replace("\\", "_"), "", flags)
