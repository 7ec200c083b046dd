"""A provider in memory, with faults on demand, for tests of the engine alone.

It follows no real server: it implements the connector interface honestly, with uids under a
UIDVALIDITY as IMAP has them. What real servers do is tested with real and scripted servers.
"""

import contextlib
import dataclasses
import sys
import types
from collections.abc import Callable, Iterator, Sequence

from connectors import registry
from connectors.base import Connector, MailboxSession
from connectors.config import Config, Environment, field
from connectors.errors import CursorExpired, FolderGone, IdsReused, MessageGone, Unavailable
from connectors.types import (
    Cursor,
    Identity,
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteMailbox,
)

SLUG = "scripted"


@dataclasses.dataclass
class Mail:
    body: bytes
    stable_id: str = ""
    labels: tuple[str, ...] = ()
    thread_id: str = ""


@dataclasses.dataclass
class Server:
    """What the provider holds, and how it misbehaves. Folders: name -> {uid: Mail}."""

    folders: dict[str, dict[int, Mail]] = dataclasses.field(default_factory=dict)
    validity: dict[str, int] = dataclasses.field(default_factory=dict)
    #: How often a folder was put back to an earlier day, so that its ids name other mail now.
    restored: dict[str, int] = dataclasses.field(default_factory=dict)
    page_size: int = 10
    #: Whether a listing leaves out what fetch() and describe() say.
    lists_bare: bool = False
    undescribed: bool = False
    described: list[str] = dataclasses.field(default_factory=list)
    fetched: list[str] = dataclasses.field(default_factory=list)
    #: Called before each message is handed out, with the number handed out so far: may raise.
    before_message: Callable[[int], None] = lambda _: None
    accounts: Sequence[str] = ("me",)
    #: Called before a mailbox is listed.
    before_mailbox: Callable[[], None] = lambda: None
    refused: dict[str, Exception] = dataclasses.field(default_factory=dict)
    #: Called before a folder's changes are listed, with its name: may raise.
    before_changes: Callable[[str], None] = lambda _: None
    #: Folders that are there, and that the listing lacks.
    unlisted: set[str] = dataclasses.field(default_factory=set)
    #: How many more messages a folder counts than it lists.
    uncounted: dict[str, int] = dataclasses.field(default_factory=dict)
    #: Messages at which the connection ends: "folder/remote id".
    breaking: set[str] = dataclasses.field(default_factory=set)
    unanswered: set[str] = dataclasses.field(default_factory=set)
    #: Called when credentials are checked, before the answer: may raise.
    before_check: Callable[[], None] = lambda: None
    check_error: Exception | None = None
    open_error: Exception | None = None
    #: Of some accounts alone.
    open_errors: dict[str, Exception] = dataclasses.field(default_factory=dict)
    #: How often a mailbox was opened, or refused to be.
    opened: int = 0

    def deliver(self, folder: str, body: bytes, *, stable_id: str = "", thread_id: str = "") -> int:
        mails = self.folders.setdefault(folder, {})
        self.validity.setdefault(folder, 1)
        uid = max(mails, default=0) + 1
        mails[uid] = Mail(body, stable_id, thread_id=thread_id)
        return uid

    def renumber(self, folder: str) -> None:
        """Give the folder a new UIDVALIDITY and new uids."""
        self.validity[folder] += 1
        self.folders[folder] = dict(enumerate(self.folders[folder].values(), 1))

    def ids(self, folder: str) -> set[str]:
        return {f"{self.validity[folder]}:{uid}" for uid in self.folders[folder]}


SERVER = Server()


class ScriptedConnector(Connector):
    def __init__(self, config: Config, environment: Environment) -> None:
        pass

    def check(self) -> Identity:
        SERVER.before_check()
        if SERVER.check_error:
            raise SERVER.check_error
        return Identity("me@example.com")

    def mailboxes(self) -> Iterator[RemoteMailbox]:
        for account in SERVER.accounts:
            SERVER.before_mailbox()
            yield RemoteMailbox(account, f"{account}@example.com")

    def open(self, mailbox: RemoteMailbox) -> MailboxSession:
        SERVER.opened += 1
        if SERVER.open_error:
            raise SERVER.open_error
        if mailbox.remote_id in SERVER.open_errors:
            raise SERVER.open_errors[mailbox.remote_id]
        return ScriptedSession()


class ScriptedSession(MailboxSession):
    def folders(self) -> Sequence[RemoteFolder]:
        return [
            RemoteFolder(
                name,
                name,
                message_count=len(mails) + SERVER.uncounted.get(name, 0),
                exact_count=True,
            )
            for name, mails in SERVER.folders.items()
            if name not in SERVER.unlisted
        ]

    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        name = folder.remote_id
        SERVER.before_changes(name)
        if name not in SERVER.folders:
            raise FolderGone("There is no such folder.")
        validity = SERVER.validity[name]
        if since is not None and since["validity"] != validity:
            raise CursorExpired("The folder was renumbered.")
        restored = SERVER.restored.get(name, 0)
        if since is not None and since.get("restored", 0) != restored:
            raise IdsReused("The folder was restored.")
        first = since["next"] if since else 1
        before = {int(uid): tuple(labels) for uid, labels in since["seen"]} if since else {}
        mails = SERVER.folders[name]
        new = sorted(uid for uid in mails if uid >= first)
        for start in range(0, len(new), SERVER.page_size):
            uids = new[start : start + SERVER.page_size]
            seen = [(u, m.labels) for u, m in mails.items() if u <= uids[-1]]
            yield Page(
                {
                    "validity": validity,
                    "restored": restored,
                    "next": uids[-1] + 1,
                    "seen": seen,
                },
                added=[self._listed(name, uid) for uid in uids],
                present=SERVER.ids(name) if uids[-1] == new[-1] else None,
            )
        if since is None and not new:
            nothing = {"validity": validity, "restored": restored, "next": 1, "seen": []}
            yield Page(nothing, present=set())
        removed = [f"{validity}:{uid}" for uid in before if uid not in mails]
        relabelled = [
            (f"{validity}:{uid}", mails[uid].labels)
            for uid, labels in before.items()
            if uid in mails and mails[uid].labels != labels
        ]
        if removed or relabelled:
            seen = [(uid, mail.labels) for uid, mail in mails.items()]
            cursor = {
                "validity": validity,
                "restored": restored,
                "next": max(mails, default=0) + 1,
                "seen": seen,
            }
            yield Page(cursor, removed=removed, relabelled=relabelled)

    def describe(self, folder: RemoteFolder, refs: Sequence[MessageRef]) -> Sequence[MessageRef]:
        SERVER.described.extend(ref.remote_id for ref in refs)
        uids = [int(ref.remote_id.split(":")[1]) for ref in refs]
        there = {} if SERVER.undescribed else SERVER.folders[folder.remote_id]
        return [self._ref(folder.remote_id, uid) for uid in uids if uid in there]

    def fetch(
        self, folder: RemoteFolder, refs: Sequence[MessageRef]
    ) -> Iterator[RawMessage | Missing]:
        for ref in refs:
            SERVER.before_message(len(SERVER.fetched))
            if f"{folder.remote_id}/{ref.remote_id}" in SERVER.breaking:
                raise Unavailable("The server hung up.")
            if ref.remote_id in SERVER.unanswered:
                continue
            if ref.remote_id in SERVER.refused:
                yield Missing(ref, SERVER.refused[ref.remote_id])
                continue
            validity, uid = map(int, ref.remote_id.split(":"))
            mail = SERVER.folders[folder.remote_id].get(uid)
            if mail is None or validity != SERVER.validity[folder.remote_id]:
                yield Missing(ref, MessageGone("Gone."))
                continue
            SERVER.fetched.append(f"{folder.remote_id}/{ref.remote_id}")
            labels = mail.labels if ref.labels is None else ref.labels
            yield RawMessage(ref._replace(labels=labels), mail.body)

    def _listed(self, folder: str, uid: int) -> MessageRef:
        ref = self._ref(folder, uid)
        return MessageRef(ref.remote_id, labels=None) if SERVER.lists_bare else ref

    def _ref(self, folder: str, uid: int) -> MessageRef:
        mail = SERVER.folders[folder][uid]
        return MessageRef(
            f"{SERVER.validity[folder]}:{uid}",
            size_bytes=len(mail.body),
            stable_id=mail.stable_id,
            thread_id=mail.thread_id,
            labels=mail.labels,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptedConfig(Config):
    host: str = field("Host", default="")
    password: str = field("Password", secret=True)


@contextlib.contextmanager
def installed() -> Iterator[Server]:
    """Register the provider, with a fresh Server, for the length of a test."""
    package, connector, config = (
        types.ModuleType(name)
        for name in ("scripted_pkg", "scripted_pkg.connector", "scripted_pkg.config")
    )
    connector.CONNECTOR = ScriptedConnector  # type: ignore[attr-defined] # made here
    config.LABEL = "Scripted"  # type: ignore[attr-defined] # made here
    config.CONFIG = ScriptedConfig  # type: ignore[attr-defined] # made here
    made = {module.__name__: module for module in (package, connector, config)}
    sys.modules.update(made)
    providers = registry.PROVIDERS  # itself: other modules have it by name
    registry.PROVIDERS = {**providers, SLUG: registry.Provider(SLUG, "scripted_pkg")}
    SERVER.__dict__.update(Server().__dict__)
    try:
        yield SERVER
    finally:
        registry.PROVIDERS = providers
        for name in made:
            del sys.modules[name]
