"""A mail server on a socket that keeps what it is sent, and refuses when it is told to."""

import dataclasses
import email
import email.policy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from tests.servers.stack import free_port

logging.getLogger("mail.log").setLevel(logging.CRITICAL)  # aiosmtpd's, which tells of each line


@dataclasses.dataclass
class Mailbox:
    """What came, and how it answers. `refuse`: a reply to RCPT, such as "550 Nobody here";
    `refused`: to whom, where not to everybody."""

    port: int
    came: list[EmailMessage] = dataclasses.field(default_factory=list)
    recipients: list[list[str]] = dataclasses.field(default_factory=list)
    refuse: str = ""
    refused: set[str] = dataclasses.field(default_factory=set)
    #: Called before a message is answered for: the moment at which a client may die.
    on_data: Any = None

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Be as at the beginning, for the next test."""
        self.came.clear()
        self.recipients.clear()
        self.refused.clear()
        self.refuse, self.on_data = "", None

    def texts(self) -> list[str]:
        """Return the plain text of each message."""
        return [text(message) for message in self.came]

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        if self.refuse and (not self.refused or address in self.refused):
            return self.refuse
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        content = envelope.content
        assert isinstance(content, bytes)
        message = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.recipients.append(list(envelope.rcpt_tos))
        self.came.append(message)
        if self.on_data is not None:
            self.on_data()
        return "250 OK"


def text(message: EmailMessage, kind: str = "plain") -> str:
    body = message.get_body((kind,))
    assert body is not None
    content: str = body.get_content()
    return content


def authenticator(name: str, password: str) -> Any:
    """Return what lets this one person in, for `running`."""

    def check(
        server: SMTP, session: Session, envelope: Envelope, way: str, given: Any
    ) -> AuthResult:
        right = (given.login, given.password) == (name.encode(), password.encode())
        return AuthResult(success=right, handled=False)

    return check


@contextmanager
def running(**options: Any) -> Iterator[Mailbox]:
    """Serve on loopback for the length of a test. `options`: aiosmtpd's, for TLS and logins."""
    mailbox = Mailbox(free_port())
    controller = Controller(mailbox, hostname="127.0.0.1", port=mailbox.port, **options)
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()


def use(settings: Any, mailbox: Mailbox) -> None:
    """Point the settings of this process there, as EMAIL_URL does."""
    settings.EMAIL_URL = mailbox.url
    settings.EMAIL_BACKEND = "ingestion.services.operations.alerting.mail.Backend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", mailbox.port
