"""What the server holds: users, their folders and messages, and what changed in each folder.

Written after Microsoft's documentation of user, mailFolder, message and delta query. Every change
gets the next number of its mailbox; a state token of delta query is such a number.
"""

import base64
import dataclasses
import datetime as dt
import itertools
import threading
import uuid
from typing import Literal

Change = Literal["whole", "read", "removed"]
_MAILBOXES = itertools.count()
_EPOCH = dt.datetime(2026, 1, 5, 8, 0, tzinfo=dt.UTC)

#: Well-known names (mailFolder resource type) and what Outlook calls the folders.
WELL_KNOWN = {
    "inbox": "Inbox",
    "sentitems": "Sent Items",
    "drafts": "Drafts",
    "deleteditems": "Deleted Items",
    "junkemail": "Junk Email",
    "archive": "Archive",
}


@dataclasses.dataclass
class Message:
    """`number` makes both ids: the immutable one, and the one that changes with each move."""

    number: int
    id: str
    folder: "Folder"
    body: bytes
    received: dt.datetime
    is_read: bool = False
    is_draft: bool = False
    flagged: bool = False
    categories: tuple[str, ...] = ()
    kind: str = "#microsoft.graph.message"
    downloads: int = 0

    @property
    def mutable_id(self) -> str:
        return _id("AQMk", self.folder.number, self.number)


@dataclasses.dataclass
class Folder:
    number: int
    id: str
    name: str
    parent: "Folder | None" = None
    well_known: str = ""
    hidden: bool = False
    search: bool = False
    children: "list[Folder]" = dataclasses.field(default_factory=list)
    messages: dict[int, Message] = dataclasses.field(default_factory=dict)
    #: message number -> the number of its last change here, and what that was; in order.
    changes: dict[int, tuple[int, Change]] = dataclasses.field(default_factory=dict)
    ids: dict[int, str] = dataclasses.field(default_factory=dict)


class Mailbox:
    """One user's mail. Methods may be called from any thread."""

    def __init__(self, well_known: tuple[str, ...] = tuple(WELL_KNOWN)) -> None:
        self.lock = threading.RLock()
        self._mark = next(_MAILBOXES)
        self._number = 0
        #: State tokens of an earlier epoch are not found any more.
        self.epoch = 1
        #: Whether each download of a message has other bytes, as generated MIME may.
        self.regenerates = False
        self.root = Folder(0, _id("AAMk", self._mark, 0), "Top of Information Store")
        self.recoverable = Folder(0, _id("AAMk", self._mark, 1), "Recoverable Items", hidden=True)
        self.folders: dict[str, Folder] = {}
        self.by_name: dict[str, Folder] = {"msgfolderroot": self.root}
        self.messages: dict[str, Message] = {}
        for name in well_known:
            self.add_folder(WELL_KNOWN[name], well_known=name)

    def add_folder(
        self,
        name: str,
        *,
        parent: Folder | None = None,
        well_known: str = "",
        hidden: bool = False,
        search: bool = False,
    ) -> Folder:
        with self.lock:
            number = self._next()
            above = parent or self.root
            folder = Folder(
                number, _id("AAMk", self._mark, number), name, above, well_known, hidden, search
            )
            above.children.append(folder)
            self.folders[folder.id] = folder
            if well_known:
                self.by_name[well_known] = folder
            return folder

    def remove_folder(self, folder: Folder) -> None:
        with self.lock:
            for message in list(folder.messages.values()):
                self.remove(message.id)
            del self.folders[folder.id]
            assert folder.parent is not None
            folder.parent.children.remove(folder)

    def find_folder(self, name_or_id: str) -> Folder | None:
        return self.by_name.get(name_or_id) or self.folders.get(name_or_id)

    @property
    def inbox(self) -> Folder:
        return self.by_name["inbox"]

    def deliver(
        self,
        body: bytes,
        folder: Folder | None = None,
        *,
        received: dt.datetime | None = None,
        is_draft: bool = False,
        kind: str = "#microsoft.graph.message",
    ) -> str:
        """Put a message into a folder (the inbox); return its immutable id."""
        with self.lock:
            number = self._next()
            message = Message(
                number,
                _id("AAkA", self._mark, number),
                folder or self.inbox,
                body,
                received or _EPOCH + dt.timedelta(seconds=number),
                is_draft=is_draft,
                kind=kind,
            )
            self.messages[message.id] = message
            self._put(message)
            return message.id

    def move(self, message_id: str, folder: Folder) -> None:
        with self.lock:
            message = self.messages[message_id]
            self._take(message)
            message.folder = folder
            self._put(message)

    def send(self, message_id: str, body: bytes) -> None:
        """Send a draft as it reads by now: the copy in Sent Items has the draft's immutable id."""
        with self.lock:
            message = self.messages[message_id]
            message.body, message.is_draft = body, False
            self.move(message_id, self.by_name["sentitems"])

    def remove(self, message_id: str) -> None:
        with self.lock:
            self._take(self.messages.pop(message_id))

    def mark(
        self,
        message_id: str,
        *,
        is_read: bool | None = None,
        flagged: bool | None = None,
        categories: tuple[str, ...] | None = None,
    ) -> None:
        """Change a message. Of one that was only read, delta tells no more than that."""
        with self.lock:
            message = self.messages[message_id]
            whole = flagged is not None or categories is not None
            message.is_read = message.is_read if is_read is None else is_read
            message.flagged = message.flagged if flagged is None else flagged
            message.categories = message.categories if categories is None else categories
            self._note(message, "whole" if whole else "read")

    def expire_state(self) -> None:
        """Make every state token useless."""
        with self.lock:
            self.epoch += 1

    def now(self) -> int:
        """Return the number of the last change."""
        return self._number

    def _put(self, message: Message) -> None:
        message.folder.messages[message.number] = message
        self._note(message, "whole")

    def _take(self, message: Message) -> None:
        del message.folder.messages[message.number]
        self._note(message, "removed")

    def _note(self, message: Message, change: Change) -> None:
        folder = message.folder
        folder.changes.pop(message.number, None)  # it goes to the end
        folder.changes[message.number] = (self._next(), change)
        folder.ids[message.number] = message.id

    def _next(self) -> int:
        self._number += 1
        return self._number


@dataclasses.dataclass
class User:
    """`plans`: of what is assigned to the user, what is enabled ("exchange")."""

    id: str
    principal_name: str
    mail: str | None
    mailbox: Mailbox | None
    kind: str = "Member"
    enabled: bool = True
    plans: tuple[str, ...] = ("exchange", "SharePoint")
    aliases: tuple[str, ...] = ()


class Tenant:
    """The users of an organisation, and what it lets the application do."""

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self.domain = "contoso.onmicrosoft.com"
        self.users: dict[str, User] = {}
        self.roles = {"User.Read.All", "Mail.Read"}
        #: Ids of the users that an application access policy restricts the application to.
        self.policy: set[str] | None = None
        #: Ids of the users whose mail Exchange's RBAC lets the application read, whatever its token
        #: says.
        self.rbac: set[str] = set()

    def add_user(
        self,
        name: str,
        *,
        mailbox: Mailbox | None = None,
        has_mailbox: bool = True,
        kind: str = "Member",
        enabled: bool = True,
        plans: tuple[str, ...] = ("exchange", "SharePoint"),
        mail: str | None = "",
        principal_name: str = "",
    ) -> User:
        box = (mailbox or Mailbox()) if has_mailbox else None
        address = f"{name}@contoso.example"
        user = User(
            str(uuid.uuid4()),
            principal_name or address,
            address if mail == "" else mail,
            box,
            kind,
            enabled,
            plans,
        )
        self.users[user.id] = user
        return user

    def find(self, id_or_name: str) -> User | None:
        found = self.users.get(id_or_name)
        if found is None and "@" in id_or_name:
            wanted = id_or_name.casefold()
            found = next(
                (u for u in self.users.values() if u.principal_name.casefold() == wanted), None
            )
        return found


def _id(prefix: str, *numbers: int) -> str:
    """An id as Exchange makes them: case matters, and "-", "_" and "=" occur."""
    raw = b"\x00\xfb\xff" + b"".join(number.to_bytes(5, "big") for number in numbers) + b"\x00"
    return prefix + base64.urlsafe_b64encode(raw).decode()
