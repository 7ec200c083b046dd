"""The Google connector: a whole Workspace domain by a service account, or one Gmail account.

A mailbox is one folder, All Mail, with labels (see mailbox.py). It only reads: the scopes are
gmail.readonly and, for a domain, admin.directory.user.readonly.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

from connectors.base import Connector, MailboxSession, Watch, require_own
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, FolderGone, MailboxUnavailable, NeedsReauth
from connectors.google import directory, refusals
from connectors.google.client import Caller, Unpaced
from connectors.google.config import GoogleConfig
from connectors.google.consent import GoogleConsent
from connectors.google.download import Download
from connectors.google.listing import Listing
from connectors.google.mailbox import GmailMailbox
from connectors.google.notifications import Notifications
from connectors.google.refusals import (
    MAIL_SCOPE,
    USERS_SCOPE,
    Absent,
    Asker,
    BadRequest,
    delegation_line,
)
from connectors.google.tokens import access
from connectors.google.transport import Http
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

ALL_MAIL = "all"
#: check() has 15 s: no request of it takes longer than a step, none begins after two and a half.
_CHECK_STEP_SECONDS = 4.0
_CHECK_STEPS = 2.5
_MAILBOXES_TRIED = 3


class GoogleConnector(Connector):
    def __init__(self, config: GoogleConfig, environment: Environment) -> None:
        self._config, self._environment = config, environment
        self._stop = threading.Event()  # ends waits and begins no further request

    def check(self) -> Identity:
        quick = min(_CHECK_STEP_SECONDS, self._environment.timeout_seconds)
        environment = dataclasses.replace(self._environment, timeout_seconds=quick)
        connector = GoogleConnector(self._config, environment)
        return connector.check_in_time()

    def check_in_time(self) -> Identity:
        """Check, and give up where Google is too slow."""
        timer = threading.Timer(_CHECK_STEPS * self._environment.timeout_seconds, self._stop.set)
        timer.start()
        try:
            found = self.check_domain() if self._config.is_domain else self.check_account()
            told = self._check_notifications(found.account)
            return dataclasses.replace(found, detail=". ".join(filter(None, (found.detail, told))))
        finally:
            timer.cancel()

    def check_account(self) -> Identity:
        with self.open(next(self.mailboxes())) as session:
            profile = session.mailbox.profile()
        address, count = profile["emailAddress"], profile.get("messagesTotal", 0)
        if address.casefold() != self._config.email.casefold():
            raise refusals.other_account(address, self._config.email)
        return Identity(address, f"{count:,} message{'' if count == 1 else 's'}")

    def check_domain(self) -> Identity:
        """Prove both scopes, so that one answer names all that is missing."""
        admin, missing = self._config.impersonatedAdminEmail, []
        users: list[RemoteMailbox] = []
        try:
            users = next(self._user_pages(), [])
        except NeedsReauth as error:
            if error.code != "scope_not_delegated":
                raise
            missing.append(USERS_SCOPE)
        open_to_us = [user for user in users if not user.unavailable]
        own = [user for user in open_to_us if user.address.casefold() == admin.casefold()]
        tried = [*own, *(user for user in open_to_us if user not in own)][:_MAILBOXES_TRIED]
        try:
            self._read_one(tried or [RemoteMailbox(admin, admin)])
        except NeedsReauth as error:
            if error.code != "scope_not_delegated":
                raise
            missing.append(MAIL_SCOPE)
        if missing:
            client_id = self._config.key["client_id"]
            raise NeedsReauth(
                f"Not delegated to the service account: {' and '.join(missing)}."
                f" {delegation_line(client_id)} and wait: it may take minutes, at times a day.",
                code="scope_not_delegated",
            )
        count = f"{len(open_to_us)}{' or more' if len(users) >= directory.PAGE_SIZE else ''}"
        return Identity(admin, f"{count} mailbox{'' if count == '1' else 'es'} of its domain")

    def _read_one(self, mailboxes: Sequence[RemoteMailbox]) -> None:
        """Read the profile of the first mailbox that has Gmail."""
        problem: Exception | None = None
        for mailbox in mailboxes:
            try:
                with self.open(mailbox) as session:
                    session.mailbox.profile()
                return
            except MailboxUnavailable as error:
                problem = error
        raise Fatal(f"No mailbox could be read. {problem}", code="no_mailbox")

    # -- notifications ---------------------------------------------------------------------------

    def watch(self, mailboxes: Sequence[RemoteMailbox]) -> Watch | None:
        if not self._config.notificationTopic:
            return None
        return Notifications(
            self._config, self._environment, self._stop, mailboxes, tell=self._tell
        )

    def _tell(self, mailbox: RemoteMailbox) -> None:
        with self.open(mailbox) as session:
            session.tell(self._config.notificationTopic)

    def _check_notifications(self, address: str) -> str:
        """Say what is wrong with them, in words; mail is archived without."""
        if not self._config.notificationTopic:
            return ""
        try:
            with Notifications(
                self._config, self._environment, self._stop, (), tell=self._tell
            ) as notifications:
                notifications.check()
            self._tell(RemoteMailbox(address.lower(), address))
        except MailboxUnavailable:  # the administrator may have no Gmail
            return ""
        except ConnectorError as error:
            return f"New mail is not listened for: {error}"
        return ""

    # -- mailboxes -------------------------------------------------------------------------------

    def mailboxes(self) -> Iterator[RemoteMailbox]:
        if not self._config.is_domain:
            yield RemoteMailbox(self._own_id, self._own_id)
            return
        for page in self._user_pages():
            yield from page

    @property
    def _own_id(self) -> str:
        """The id of the one account's mailbox."""
        return self._config.email.lower()

    def _user_pages(self) -> Iterator[list[RemoteMailbox]]:
        admin = self._config.impersonatedAdminEmail
        with contextlib.closing(Http(self._environment, one_large=threading.Lock())) as http:
            caller = Caller(
                http,
                access(self._config, self._environment, person=admin, scope=USERS_SCOPE),
                self._asker(admin, mailbox=False),
                Unpaced(),
                "admin",
                self._stop,
            )
            yield from directory.pages(caller, self._environment.endpoints["google.directory"])

    def open(self, mailbox: RemoteMailbox) -> "GmailSession":
        if not self._config.is_domain:
            require_own(mailbox, self._own_id)
        person = mailbox.address
        return GmailSession(
            GmailMailbox(
                self._environment,
                access(self._config, self._environment, person=person, scope=MAIL_SCOPE),
                self._asker(person, mailbox=self._config.is_domain),
                project=self._config.project,
                stop=self._stop,
            )
        )

    def _asker(self, person: str, *, mailbox: bool) -> Asker:
        """Say who asks. The administrator's own mailbox is one of many, like the others."""
        if not self._config.is_domain:
            return Asker(person, project=self._config.project.partition("-")[0])
        key = self._config.key
        return Asker(person, key["client_id"], key["project_id"], mailbox)


class GmailSession(MailboxSession):
    def __init__(self, mailbox: GmailMailbox) -> None:
        self.mailbox = mailbox
        self._wanted = Wanted()

    def close(self) -> None:
        self.mailbox.close()

    def tell(self, topic: str) -> None:
        with self._alone():
            self.mailbox.tell(topic)

    def prefer(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def folders(self) -> Sequence[RemoteFolder]:
        with self._alone():
            profile = self.mailbox.profile()
        return [
            RemoteFolder(
                ALL_MAIL,
                "All Mail",
                role="all",
                message_count=profile.get("messagesTotal", 0),
                state={"history": str(profile["historyId"])},
            )
        ]

    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        if folder.remote_id != ALL_MAIL:
            raise FolderGone("A Gmail mailbox has one folder, All Mail.")
        listing = Listing(self.mailbox, now=folder.state["history"], wanted=self._wanted)
        with self._alone():
            yield from listing.changes(since)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let what is not understood about one of a domain's mailboxes not stop the others."""
        try:
            yield
        except (Absent, BadRequest) as error:
            if not self.mailbox.is_one_of_many:
                raise
            raise MailboxUnavailable(f"Its Gmail can't be read. {error}") from None

    def fetch(
        self,
        folder: RemoteFolder,  # noqa: ARG002 - there is one
        refs: Sequence[MessageRef],
    ) -> Iterator[RawMessage | Missing]:
        return Download(self.mailbox, refs).answers()


def _consent(config: GoogleConfig, environment: Environment) -> GoogleConsent | None:
    return None if config.is_domain else GoogleConsent(config, environment)


CONNECTOR = GoogleConnector
CONSENT = _consent
