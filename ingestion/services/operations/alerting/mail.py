"""Mail that the service itself sends: by EMAIL_URL, and what came of it in words for people.

Subjects and bodies are made of names that strangers chose: no character of them is more than text.
"""

import dataclasses
import smtplib
import ssl
import uuid
from collections.abc import Sequence
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend
from django.template.loader import render_to_string

from connectors import net
from connectors.errors import ConnectorError

_PREFIX = "[Email ingestion] "
_SUBJECT_CHARS = 150
_NAME_CHARS = 100
NOT_SET_UP = "No mail server is set up: set EMAIL_URL, and restart all processes."


@dataclasses.dataclass(frozen=True, slots=True)
class Mail:
    """What is to be sent: `template` names a pair, plain text and HTML, which get `about`. The same
    `key` makes the same Message-ID, by which a reader knows one that came twice."""

    subject: str
    template: str
    about: dict[str, Any]
    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """What came of sending, in words. `partly`: some took it, so that it must not be sent again,
    and some did not, whom the text names."""

    ok: bool
    text: str
    partly: bool = False


class _SomeRefused(smtplib.SMTPRecipientsRefused):
    """The server took a mail, but not for these recipients."""


class _SMTP(smtplib.SMTP):
    """Raises what smtplib returns, for Django looks at no answer: which recipients were refused,
    where others were not."""

    def sendmail(self, *args: Any, **options: Any) -> dict[str, tuple[int, bytes]]:
        if refused := super().sendmail(*args, **options):
            raise _SomeRefused(refused)
        return refused


class _SMTPOverTLS(_SMTP, smtplib.SMTP_SSL):
    """The same, by TLS from the first byte."""


class Backend(EmailBackend):
    """Django's, which believes the authorities of EXTRA_CA_FILE too, and raises where the server
    refuses some of the recipients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.use_tls or self.use_ssl:  # read before there is a connection, which it would leave
            self.ssl_context = net.tls_context(verify=True, extra_ca_file=settings.EXTRA_CA_FILE)

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _SMTPOverTLS if self.use_ssl else _SMTP


def one_line(text: str, characters: int = _NAME_CHARS) -> str:
    """Return a text as it may stand in a line: without controls, and not longer than that."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= characters else f"{shown[: characters - 1]}…"


def written(mail: Mail, recipients: Sequence[str]) -> EmailMultiAlternatives:
    """Write it, as plain text and as HTML."""
    title = one_line(mail.subject, _SUBJECT_CHARS)
    subject = _PREFIX + title
    about = {**mail.about, "title": title, "subject": subject, "public_url": settings.PUBLIC_URL}
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"
    message = EmailMultiAlternatives(
        subject,
        render_to_string(f"mail/{mail.template}.txt", about),
        to=list(recipients),
        headers={
            "Message-ID": f"<{uuid.uuid5(uuid.NAMESPACE_URL, mail.key)}@{domain}>",
            # RFC 3834 section 5: nobody's holiday answers it.
            "Auto-Submitted": "auto-generated",
        },
    )
    message.attach_alternative(render_to_string(f"mail/{mail.template}.html", about), "text/html")
    return message


def send(mail: Mail, recipients: Sequence[str]) -> Sent:
    """Send it to all recipients at once. Network, within seconds."""
    if not settings.EMAIL_URL:
        return Sent(ok=False, text=NOT_SET_UP)
    number = len(recipients)
    addresses = f"{number} {'address' if number == 1 else 'addresses'}"
    try:
        written(mail, recipients).send()
    except _SomeRefused as error:
        text = f"Sent to {number - len(error.recipients)} of {addresses}. {_words(error)}"
        return Sent(ok=False, text=text, partly=True)
    except (smtplib.SMTPException, OSError, ConnectorError) as error:
        return Sent(ok=False, text=_words(error))
    return Sent(ok=True, text=f"Sent to {addresses}.")


def _words(error: Exception) -> str:
    """Say why it was not taken, and what to do."""
    server = f"{settings.EMAIL_HOST}:{settings.EMAIL_PORT}"
    match error:
        case smtplib.SMTPAuthenticationError():
            return f"{server} refused the user name or password of EMAIL_URL ({error.smtp_code})."
        case smtplib.SMTPRecipientsRefused():
            told = [
                f"{one_line(address)} ({code} {one_line(_text(words))})"
                for address, (code, words) in error.recipients.items()
            ]
            return f"{server} takes no mail for {', '.join(told)}."
        case smtplib.SMTPSenderRefused():
            sender = one_line(settings.DEFAULT_FROM_EMAIL)
            return f"{server} takes no mail from {sender} ({error.smtp_code}): DEFAULT_FROM_EMAIL."
        case smtplib.SMTPResponseException():
            said = one_line(_text(error.smtp_error))
            return f"{server} did not take it ({error.smtp_code} {said})."
        case smtplib.SMTPException():
            return f"{server} did not take it ({one_line(str(error))})."
        case ssl.SSLCertVerificationError():
            why = f"can't be verified ({error.verify_message})"
            return f"The certificate of {server} {why}. Its authority may go into EXTRA_CA_FILE."
        case TimeoutError():
            return f"{server} did not answer in time."
    why = one_line(getattr(error, "strerror", None) or str(error))
    return f"Can't send by {server} ({why}). Check EMAIL_URL and the mail server."


def _text(words: bytes | str) -> str:
    return words.decode(errors="replace") if isinstance(words, bytes) else words
