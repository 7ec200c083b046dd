"""A small archive to search in, without packs: three sources of two owners, and who may see what."""

import dataclasses
import datetime as dt
import hashlib
import random
import uuid
from typing import Any

from django.contrib.auth.models import Permission, User

from ingestion.models import Document, Folder, IngestionSource, Mailbox, Message, Pack, Placement
from tests.documents import a_file, indexed

FIRST = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
WORDS = ("annual", "report", "invoice", "meeting", "rare", "黒い猫", "straße")
_LABELS = ((), ("\\Seen",), ("Important", "\\Seen"), ("VIP",), ("DRAFT",), ("SPAM", "VIP"))
PEOPLE = (("ada@example.com", "Ada Lovelace"), ("bob@corp.example.org", "Bob"), ("zoë@x.test", ""))


@dataclasses.dataclass(frozen=True)
class Known:
    """What the oracle goes by."""

    message: Message
    date: dt.datetime
    subject: str
    text: str
    sender: int
    files: tuple[str, ...]
    folder: Folder
    labels: tuple[str, ...]
    removed: bool


@dataclasses.dataclass(frozen=True)
class World:
    owner: User
    other: User
    staff: User
    reader: User
    mailboxes: list[Mailbox]
    known: list[Known]

    def of(self, *mailboxes: int) -> list[Known]:
        wanted = {self.mailboxes[number].pk for number in mailboxes}
        return [one for one in self.known if one.message.mailbox_id in wanted]


def a_user(name: str, *permissions: str) -> User:
    user = User.objects.create(username=name, is_staff=bool(permissions))
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def a_world(size: int = 90, seed: int = 1) -> World:
    """Mailboxes 0 and 1 are of the owner's first source, 2 of the second; 3 is the other user's.
    `staff` may see sources, `reader` their mail as well."""
    draw = random.Random(seed)
    owner, other = a_user("ow"), a_user("ot")
    staff = a_user("st", "view_ingestionsource")
    reader = a_user("re", "view_ingestionsource", "view_message")
    sources = [
        IngestionSource.objects.create(name=name, provider="generic_imap", owner=user)
        for name, user in (("Sales", owner), ("Support", owner), ("Other", other))
    ]
    mailboxes = [
        Mailbox.objects.create(source=sources[at], remote_id=f"m{n}", address=f"M{n}@example.com")
        for n, at in enumerate((0, 0, 1, 2))
    ]
    folders = {
        mailbox.pk: [
            Folder.objects.create(mailbox=mailbox, remote_id=path, path=path, role=role)
            for path, role in (("INBOX", "inbox"), ("Work/Reports", ""), ("Sent", "sent"))
        ]
        for mailbox in mailboxes
    }
    packs = {s.pk: Pack.objects.create(source=s, size_bytes=1, message_count=1) for s in sources}
    known = []
    for number in range(size):
        mailbox = draw.choice(mailboxes)
        subject = " ".join(draw.choices(WORDS, k=2))
        text = " ".join(draw.choices(WORDS[:4], k=6)) + draw.choice([" rare 黒い猫が", "", "", ""])
        sender = draw.randrange(len(PEOPLE))
        files = draw.choice([(), (), ("Annual report.pdf",), ("logo.png", "Invoice 7.xlsx")])
        # several at the same moment: the order by date alone is none
        date = FIRST + dt.timedelta(days=draw.randrange(size // 2))
        message = Message.objects.create(
            mailbox=mailbox,
            sha256=hashlib.sha256(str(number).encode()).digest(),
            size_bytes=draw.choice([500, 1_024, 1_000_000, 5_000_000]),
            pack=packs[mailbox.source_id],
            pack_offset=0,
            pack_length=1,
            received_at=date,
            subject=subject,
            message_id=f"<{number}@x>",
        )
        indexed(
            message,
            text,
            thread=number // 3,
            participants=(
                ("from", *PEOPLE[sender]),
                ("to", "team@example.com", "The Team"),
                ("to", "ann.jones@mail.example.org", "Ann Jones"),
            ),
            attachments=tuple(a_file(name, _type(name)) for name in files),
        )
        placed: dict[str, Any] = {
            "folder": draw.choice(folders[mailbox.pk]),
            "labels": list(draw.choice(_LABELS)),
        }
        removed = draw.random() < 0.2
        Placement.objects.create(
            mailbox=mailbox,
            message=message,
            remote_id=str(number),
            removed_at=date if removed else None,
            **placed,
        )
        labels = tuple(placed["labels"])
        known.append(
            Known(message, date, subject, text, sender, files, placed["folder"], labels, removed)
        )
    return World(owner, other, staff, reader, mailboxes, known)


def _type(name: str) -> str:
    return {"pdf": "application/pdf", "png": "image/png"}.get(name[-3:], "application/vnd.ms-excel")


def newest(found: list[Known]) -> list[uuid.UUID]:
    """Return ids, newest first."""
    return [k.message.pk for k in sorted(found, key=lambda k: (k.date, k.message.pk), reverse=True)]


def as_of_version_2() -> None:
    """Take from all documents what they have had since then."""
    Document.objects.update(version=2, numbers=[])


def forget_document(known: Known) -> None:
    Document.objects.filter(message=known.message).delete()
