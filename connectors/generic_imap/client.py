"""Connecting and logging in, and what the server's refusals mean."""

import dataclasses
import re
from collections.abc import Callable

import imapclient
from imapclient.exceptions import IMAPClientError

from connectors import net
from connectors.config import Environment
from connectors.errors import (
    ConnectorError,
    Fatal,
    FolderGone,
    MessageRefused,
    NeedsReauth,
    RateLimited,
    Unavailable,
)
from connectors.generic_imap import wire
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.wire import Wire

#: RFC 5530 section 3 and RFC 9051 section 7.1: response code -> what the caller must do.
_CODES: dict[str, Callable[[str], ConnectorError]] = {
    "UNAVAILABLE": lambda text: Unavailable(text, code="server_unavailable"),
    "INUSE": lambda text: Unavailable(text, code="in_use"),
    "SERVERBUG": lambda text: Unavailable(text, code="server_bug"),
    "LIMIT": lambda text: RateLimited(text, retry_after_seconds=60),
    "OVERQUOTA": lambda text: RateLimited(text, retry_after_seconds=300),
    "THROTTLED": lambda text: RateLimited(text, retry_after_seconds=60),
    "AUTHENTICATIONFAILED": NeedsReauth,
    "AUTHORIZATIONFAILED": NeedsReauth,
    "EXPIRED": NeedsReauth,
    "PRIVACYREQUIRED": Fatal,
    "CONTACTADMIN": Fatal,
    "NONEXISTENT": FolderGone,
    "NOPERM": FolderGone,
    "CORRUPTION": MessageRefused,
}
_CODE = re.compile(r"\[([A-Za-z0-9-]+)[^\]]*\]")
#: Exchange Online: "Request is throttled. Suggested Backoff Time: 299961 milliseconds".
_BACKOFF = re.compile(r"Backoff Time:? (\d+) milliseconds", re.IGNORECASE)


def refusal(
    text: str, *, otherwise: Callable[[str], ConnectorError], secrets: tuple[str, ...] = ()
) -> ConnectorError:
    """Return the error for a server's NO or BAD; `otherwise` makes it where it has no code."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = text[:300]
    if backoff := _BACKOFF.search(text):
        return RateLimited(f"The server says: {text}", retry_after_seconds=int(backoff[1]) / 1000)
    if "authenticated but not connected" in text:  # Outlook.com, passing
        return Unavailable(f"The server says: {text}", code="not_connected")
    code = _CODE.search(text)
    make = _CODES.get(code[1].upper(), otherwise) if code else otherwise
    return make(f"The server says: {text}")


class _Client(imapclient.IMAPClient):  # type: ignore[misc] # untyped base
    """IMAPClient on a connection that is open already."""

    def __init__(self, connection: Wire) -> None:
        self._wire = connection
        super().__init__(connection.host, use_uid=True, ssl=False)
        connection.debug = 0  # IMAPClient sets 5: every reply would be repr()ed twice

    def _create_IMAP4(self) -> Wire:  # noqa: N802 - IMAPClient's name
        return self._wire


@dataclasses.dataclass(slots=True)
class Login:
    """A connection that is logged in, and what the server can do."""

    wire: Wire
    capabilities: frozenset[str]
    #: The folder that is open (its remote id) and its UIDVALIDITY.
    opened: tuple[str, int] | None = None

    def can(self, name: str) -> bool:
        return name in self.capabilities

    def close(self) -> None:
        self.wire.shutdown()


def login(config: ImapConfig, environment: Environment) -> Login:
    """Connect, encrypt and log in.

    Raises Unavailable, Fatal (encryption, address, login disabled) or NeedsReauth.
    """
    context = net.tls_context(
        verify=not config.allowInsecureCert, extra_ca_file=environment.extra_ca_file
    )
    connection = net.connect(
        config.host,
        config.port,
        timeout_seconds=environment.timeout_seconds,
        forbid_private_addresses=environment.forbid_private_addresses,
    )
    try:
        if config.secure:
            connection = net.start_tls(connection, config.host, context)
        opened = _greet(connection, config, environment)
        if config.startTls:
            status, _ = opened.run(b"STARTTLS")
            if not status.upper().startswith(b"OK"):
                raise Fatal(  # noqa: TRY301 - closes the connection on the way out
                    f"{config.host} refuses STARTTLS. Check startTls and port.", code="tls"
                )
            opened.use(net.start_tls(connection, config.host, context))
            _authenticate(opened, config, _capabilities(opened))
        else:
            _authenticate(opened, config, frozenset(opened.capabilities))
        return Login(opened, _capabilities(opened))
    except BaseException:
        connection.close()
        raise


def _greet(connection: object, config: ImapConfig, environment: Environment) -> Wire:
    try:
        return Wire(
            connection,  # type: ignore[arg-type] # a socket, plain or TLS
            name=config.host,
            timeout_seconds=environment.timeout_seconds,
        )
    except Wire.abort as error:
        raise Unavailable(f"{config.host} hung up: {_text(error)}", code="bye") from error
    except Wire.error as error:
        raise Fatal(
            f"{config.host}:{config.port} does not speak IMAP. Check host and port.",
            code="not_imap",
        ) from error


def _authenticate(opened: Wire, config: ImapConfig, capabilities: frozenset[str]) -> None:
    secrets = (config.password, config.accessToken)
    client = _Client(opened)
    plain_allowed = "LOGINDISABLED" not in capabilities
    try:
        if config.accessToken:
            client.oauth2_login(config.username, config.accessToken)
        elif "AUTH=PLAIN" in capabilities:
            client.plain_login(config.username, config.password)
        elif plain_allowed:
            client.login(config.username, config.password)
        else:
            raise Fatal(
                f"{config.host} takes no password on this connection. Turn on secure or startTls.",
                code="login_disabled",
            )
    except (IMAPClientError, Wire.error) as error:
        if isinstance(error, Wire.abort):
            raise Unavailable(f"{config.host} hung up during the login.", code="bye") from None
        raise refusal(
            f"{_text(error)} The login was refused: check user name and password (many providers "
            "want an app password).",
            otherwise=NeedsReauth,
            secrets=secrets,
        ) from None  # the cause's text may hold what the server echoed
    except UnicodeError:
        raise Fatal(
            f"{config.host} offers no login that carries this password's characters. "
            "Choose a password of ASCII characters.",
            code="password_characters",
        ) from None


def _capabilities(opened: Wire) -> frozenset[str]:
    _, untagged = opened.run(b"CAPABILITY")
    words: set[str] = set()
    for response in untagged:
        name, _, rest = response[0].partition(b" ")
        if name.upper() == b"CAPABILITY":
            words.update(wire.printable(word).upper() for word in rest.split())
    return frozenset(words)


def _text(error: Exception) -> str:
    given = error.args[0] if error.args else ""
    return wire.printable(given if isinstance(given, bytes) else str(given).encode())
