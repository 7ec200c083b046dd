"""The generic IMAP connector: one account is one mailbox. It only reads: EXAMINE and BODY.PEEK[].

A session has one connection for listing, which also downloads, and opens more for a large download
(Environment.connections_per_account). A connection that failed is never repaired.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

from connectors.base import Connector, MailboxSession, Watch, require_own
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, FolderGone, FolderRefused, Unavailable
from connectors.generic_imap import client, commands, folders, listing, opening
from connectors.generic_imap.client import Login
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.download import Download
from connectors.generic_imap.idling import Idling
from connectors.generic_imap.uids import Uids
from connectors.generic_imap.wire import Wire
from connectors.types import (
    Cursor,
    Identity,
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteMailbox,
    Wanted,
)

#: Connector.check() has 15 s; each step of it less.
_CHECK_SECONDS = 13.0
_CHECK_STEP_SECONDS = 6.0
_PROVISIONAL = (
    ". This server may number the messages of a folder anew until a mail program has opened it"
    " (Courier does). Such a folder is compared at each sync, and read again where it changed."
)


class ImapConnector(Connector):
    def __init__(self, config: ImapConfig, environment: Environment) -> None:
        self._config, self._environment = config, environment

    def check(self) -> Identity:
        quick = dataclasses.replace(
            self._environment,
            timeout_seconds=min(_CHECK_STEP_SECONDS, self._environment.timeout_seconds),
        )
        until = time.monotonic() + _CHECK_SECONDS
        with ImapSession(self._config, quick, until=until) as session:
            found = session.folders()
            if not found:
                raise Fatal("The account has no folder that can be read.", code="no_folders")
            inbox = next((folder for folder in found if folder.role == "inbox"), found[0])
            try:
                provisional = session.probe(inbox).provisional
            except FolderGone as error:
                raise Fatal(f"The login works, and {inbox.path} can't be read. {error}") from None
            except FolderRefused as error:  # now, perhaps: it is there
                text = f"The login works, and {inbox.path} can't be opened now. {error}"
                raise Unavailable(text) from None
        notice = _PROVISIONAL if provisional else ""
        return Identity(self._config.username, f"{_counted(len(found))}{notice}")

    def mailboxes(self) -> Iterator[RemoteMailbox]:
        yield RemoteMailbox(self._config.username, self._config.username)

    def open(self, mailbox: RemoteMailbox) -> MailboxSession:
        require_own(mailbox, self._config.username)
        return ImapSession(self._config, self._environment)

    def watch(self, mailboxes: Sequence[RemoteMailbox]) -> Watch | None:
        login = client.login(self._config, self._environment)
        try:
            if not login.can("IDLE"):
                login.close()
                return None
            opening.examine(login, RemoteFolder("INBOX", "INBOX"))
            return Idling(login, mailboxes)
        except BaseException:
            login.close()
            raise


class ImapSession(MailboxSession):
    """Connections to one account. One that broke, or was left in the middle of a reply, is replaced
    at the next use."""

    def __init__(
        self, config: ImapConfig, environment: Environment, *, until: float = math.inf
    ) -> None:
        self._config, self._environment, self._until = config, environment, until
        self._extra: dict[int, Login] = {}
        self._refused_more = False
        self._wanted = Wanted()
        self._first = self._log_in()

    def close(self) -> None:
        for login in (self._first, *self._extra.values()):
            login.close()

    def folders(self) -> Sequence[RemoteFolder]:
        for is_last in (False, True):
            login = self._main()
            try:
                return folders.list_folders(login)
            except Unavailable as error:
                login.close()
                if login.wire.one_at_a_time:
                    raise
                if is_last or isinstance(error.__cause__, TimeoutError):
                    break  # twice, or for long: perhaps because commands came together
        client.ask_one_at_a_time(self._config)
        return folders.list_folders(self._main())

    def probe(self, folder: RemoteFolder) -> opening.Opened:
        """Prove that a folder can be opened; return what the server told of it."""
        return opening.examine(self._main(), folder)

    def prefer(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        return listing.changes(self._main(), folder, since, wanted=self._wanted)

    def describe(self, folder: RemoteFolder, refs: Sequence[MessageRef]) -> Sequence[MessageRef]:
        login = self._main()
        validity = opening.opened(login, folder)  # where it is new, so are the answers' ids
        uids = (int(ref.remote_id.partition(":")[2]) for ref in refs)
        labels = commands.labels_of(login, validity, Uids((uid, uid) for uid in uids))
        return [MessageRef(remote_id, labels=words) for remote_id, words in labels]

    def fetch(
        self, folder: RemoteFolder, refs: Sequence[MessageRef]
    ) -> Iterator[RawMessage | Missing]:
        return Download(
            folder,
            refs,
            main=self._main(),
            more=self._another,
            connections=self._environment.connections_per_account,
            max_message_bytes=self._environment.max_message_bytes,
        ).answers()

    def _log_in(self, reached: Callable[[Wire], None] = lambda _: None) -> Login:
        login = client.login(self._config, self._environment, until=self._until, reached=reached)
        try:
            client.enable(login)
        except BaseException:
            login.close()
            raise
        return login

    def _main(self) -> Login:
        if not self._first.alive:
            self._first.close()
            self._first = self._log_in()
        return self._first

    def _another(
        self, number: int, reached: Callable[[Wire], None], is_wanted: Callable[[], bool]
    ) -> Login | None:
        """Return a further connection, which keeps its number; None where the server takes no more.
        For several threads at once, each with numbers of its own. `reached`: as of client.login.
        `is_wanted`: whether nobody ended it on purpose."""
        login = self._extra.get(number)
        if login is not None and login.alive:
            return login
        if login is not None:
            login.close()
            del self._extra[number]
        if not self._refused_more:
            try:
                self._extra[number] = self._log_in(reached)
            except ConnectorError:
                if is_wanted():
                    self._refused_more = True  # one is enough; the next session asks again
        return self._extra.get(number)


def _counted(folders: int) -> str:
    return "1 folder" if folders == 1 else f"{folders:,} folders"


CONNECTOR = ImapConnector
