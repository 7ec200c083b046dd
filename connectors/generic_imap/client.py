"""Connecting and logging in, and what the server's refusals mean."""

import dataclasses
import math
import re
import socket
import ssl
import time
from collections.abc import Callable

import imapclient

from connectors import net, oauth
from connectors.config import Environment
from connectors.errors import (
    ConnectorError,
    Fatal,
    FolderGone,
    MessageRefused,
    NeedsReauth,
    RateLimited,
    Retryable,
    Unavailable,
)
from connectors.generic_imap import wire
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.wire import Wire

#: RFC 5530 section 3 and RFC 9051 section 7.1: response code -> what the caller must do.
_CODES: dict[str, Callable[[str], ConnectorError]] = {
    "UNAVAILABLE": Unavailable,
    "INUSE": Unavailable,
    "SERVERBUG": Unavailable,
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
_BACKOFF = re.compile(r"Backoff Time:? (\d{1,9}) milliseconds", re.IGNORECASE)
_LONGEST_WAIT_SECONDS = 3600.0
#: Words of servers that send no code. Passing trouble must not look like a wrong password.
_PHRASES: tuple[tuple[re.Pattern[str], Callable[[str], ConnectorError]], ...] = tuple(
    (re.compile(phrase, re.IGNORECASE), make)
    for phrase, make in (
        (r"throttled|too many (simultaneous |concurrent )?(connections|requests)", RateLimited),
        (r"(connection|rate|bandwidth|command) limits? (was )?(exceeded|reached)", RateLimited),
        (r"authenticated but not connected", Unavailable),  # Outlook.com, passing
        (r"temporar|try again|try later|internal (server )?error|server (is )?busy", Unavailable),
        (r"system (error|problem)|timed? ?out", Unavailable),
    )
)


def refusal(
    text: str,
    *,
    otherwise: Callable[[str], ConnectorError],
    allowed: tuple[type[ConnectorError], ...] = (ConnectorError,),
) -> ConnectorError:
    """Return the error for a server's NO, BAD or BYE.

    `otherwise` makes it where no code and no phrase says what it is, or says what makes no sense
    there (not `allowed`: a folder's error at the login). `text` holds no secret (Wire.words).
    """
    error = _by_code_or_phrase(text)
    if error is None or not isinstance(error, allowed):
        return otherwise(f"The server says: {text}")
    return error


def _by_code_or_phrase(text: str) -> ConnectorError | None:
    message = f"The server says: {text}"
    if backoff := _BACKOFF.search(text):
        wait = min(int(backoff[1]) / 1000, _LONGEST_WAIT_SECONDS)
        return RateLimited(message, retry_after_seconds=wait)
    code = _CODE.search(text)
    if code and code[1].upper() in _CODES:
        return _CODES[code[1].upper()](message)
    for phrase, make in _PHRASES:
        if phrase.search(text):
            return make(message)
    return None


def must_wait(error: ConnectorError) -> bool:
    """Tell whether a refusal concerns the account and the moment, whatever it was said about.

    Not so "unavailable" and "server bug": servers say those of one message that they can't read.
    """
    return isinstance(error, RateLimited)


class _Client(imapclient.IMAPClient):  # type: ignore[misc] # untyped base
    """IMAPClient on a connection that is open already."""

    def __init__(self, connection: Wire) -> None:
        self._wire = connection
        super().__init__(connection.host, use_uid=True, ssl=False)
        connection.debug = 0  # IMAPClient sets 5: every reply would be repr()ed twice
        connection.limit_silence()  # IMAPClient takes the limit off: reads would wait for ever

    def _create_IMAP4(self) -> Wire:  # noqa: N802 - IMAPClient's name
        return self._wire


@dataclasses.dataclass(slots=True)
class Login:
    """A connection that is logged in, and what the server can do."""

    wire: Wire
    capabilities: frozenset[str]
    #: The folder that is open (its remote id) and its UIDVALIDITY.
    opened: tuple[str, int] | None = None
    #: How many messages it has (after EXISTS and EXPUNGE), and how many were expunged since.
    exists: int = 0
    expunged: int = 0

    def can(self, name: str) -> bool:
        return name in self.capabilities

    @property
    def has_stable_ids(self) -> bool:
        """Whether it names a message's bytes alike in all folders."""
        return self.can("X-GM-EXT-1") or self.can("OBJECTID")

    @property
    def alive(self) -> bool:
        return self.wire.alive

    def close(self) -> None:
        """Free the connection. Without LOGOUT: a round trip that nobody reads. Never raises."""
        self.wire.shutdown()


def login(
    config: ImapConfig,
    environment: Environment,
    *,
    until: float = math.inf,
    reached: Callable[[Wire], None] = lambda _: None,
) -> Login:
    """Connect, encrypt and log in. `until` (monotonic) ends the connection whatever it is doing;
    `reached` is told of it before the server says anything, so that another thread may end it.

    Raises Unavailable, RateLimited, Fatal (encryption, address, login disabled) or NeedsReauth.
    """
    if not config.refreshToken:
        return _login(config, environment, config.accessToken, until=until, reached=reached)
    tokens = oauth.RefreshedTokens(
        config.tokenUrl,
        refresh_token=config.refreshToken,
        client_id=config.clientId,
        client_secret=config.clientSecret,
        environment=environment,
    )
    if (kept := tokens.known()) is not None:
        try:
            return _login(config, environment, kept, until=until, reached=reached)
        except NeedsReauth:
            tokens.forget(kept)  # it may have been withdrawn since: a new one tells
    token = tokens.current()
    try:
        return _login(config, environment, token, until=until, reached=reached)
    except NeedsReauth:
        tokens.forget(token)
        raise


def _login(
    config: ImapConfig,
    environment: Environment,
    token: str,
    *,
    until: float,
    reached: Callable[[Wire], None],
) -> Login:
    connection = net.connect(
        config.host,
        config.port,
        timeout_seconds=max(0.1, min(environment.timeout_seconds, until - time.monotonic())),
        forbid_private_addresses=environment.forbid_private_addresses,
    )
    try:
        if config.secure:
            connection = _encrypted(connection, config, environment)
        secrets = (config.password, token, *_spoken(config, token))
        opened = _greet(
            connection, config, environment, secrets=secrets, until=until, reached=reached
        )
        capabilities = frozenset(opened.capabilities)
        if config.startTls:
            status, _ = opened.run(b"STARTTLS")
            _require_starttls(status, config)
            opened.use(_encrypted(connection, config, environment))
            capabilities = _capabilities(opened)  # what was said before TLS counts for nothing
        opened.response("CAPABILITY")  # forget those from before the login
        told = b""
        if opened.state != "AUTH":
            told = _authenticate(opened, config, token, capabilities)
        capabilities = _words(told) or _capabilities(opened)
        if "ID" in capabilities:  # NetEase opens no folder for a client without a name
            opened.command(b'ID ("name" "ingestion")')  # the answer is read with the next one
        return Login(opened, capabilities)
    except BaseException:
        connection.close()
        raise


def _encrypted(
    connection: socket.socket, config: ImapConfig, environment: Environment
) -> ssl.SSLSocket:
    context = net.tls_context(
        verify=not config.allowInsecureCert, extra_ca_file=environment.extra_ca_file
    )
    return net.start_tls(connection, config.host, context)


def _require_starttls(status: bytes, config: ImapConfig) -> None:
    """Never go on in the clear where encryption was asked for."""
    if not status.upper().startswith(b"OK"):
        raise Fatal(f"{config.host} refuses STARTTLS. Check startTls and port.", code="tls")


def _spoken(config: ImapConfig, token: str) -> tuple[str, ...]:
    """What a SASL dialogue says in base64, which a server may echo."""
    if token:
        return tuple(_bearer(m, config.username, token) for m in ("XOAUTH2", "OAUTHBEARER"))
    return (f"\0{config.username}\0{config.password}",)


def _greet(
    connection: object,
    config: ImapConfig,
    environment: Environment,
    *,
    secrets: tuple[str, ...],
    until: float,
    reached: Callable[[Wire], None],
) -> Wire:
    try:
        return Wire(
            connection,  # type: ignore[arg-type] # a socket, plain or TLS
            name=config.host,
            timeout_seconds=environment.timeout_seconds,
            secrets=secrets,
            until=until,
            reached=reached,
        )
    except Wire.error as error:
        said = _text(error).encode()
        if b"BYE" in said.upper():  # full, or under maintenance: no fault of the configuration
            raise refusal(
                wire.without(wire.spellings(secrets), said),
                otherwise=Unavailable,
                allowed=(Retryable,),
            ) from None
        raise Fatal(
            f"{config.host}:{config.port} does not speak IMAP. Check host and port.",
            code="not_imap",
        ) from None


def _authenticate(
    opened: Wire, config: ImapConfig, token: str, capabilities: frozenset[str]
) -> bytes:
    """Log in; return the capabilities that the server tells with its OK, b"" where it doesn't."""
    if token:
        mechanism = "XOAUTH2" if "AUTH=XOAUTH2" in capabilities else "OAUTHBEARER"
        if f"AUTH={mechanism}" not in capabilities:
            raise Fatal(f"{config.host} takes no OAuth token. Give a password.", code="no_oauth")
        _sasl(opened, mechanism, _bearer(mechanism, config.username, token))
    elif "AUTH=PLAIN" in capabilities:
        _sasl(opened, "PLAIN", f"\0{config.username}\0{config.password}")
    elif "LOGINDISABLED" in capabilities:
        raise Fatal(
            f"{config.host} takes no password on this connection. Turn on secure or startTls.",
            code="login_disabled",
        )
    else:  # not imaplib's: it quotes no user name and sends nothing but ASCII
        name, password = config.username.encode(), config.password.encode()
        status, _ = opened.run(b"LOGIN", wire.string(name), wire.string(password))
        if not status.upper().startswith(b"OK"):
            raise _login_refused(opened.words(status))
        found = re.search(rb"\[CAPABILITY ([^\]]*)\]", status, re.IGNORECASE)
        return found[1] if found else b""
    told = opened.response("CAPABILITY")[1]
    return told[-1] if told and isinstance(told[-1], bytes) else b""


def _bearer(mechanism: str, name: str, token: str) -> str:
    """XOAUTH2 as Google and Microsoft document it, or its standard form (RFC 7628)."""
    if mechanism == "XOAUTH2":
        return f"user={name}\1auth=Bearer {token}\1\1"
    return f"n,a={name.replace('=', '=3D').replace(',', '=2C')},\1auth=Bearer {token}\1\1"


def _sasl(opened: Wire, mechanism: str, response: str) -> None:
    """Answer the first challenge; any later one with an empty line, which is how a server gets to
    say NO after XOAUTH2's error document."""
    answers = [response]
    try:
        _Client(opened).sasl_login(mechanism, lambda _: answers.pop() if answers else b"")
    except Wire.abort:
        raise Unavailable(f"{opened.host} hung up during the login.") from None
    except (Wire.error, ValueError) as error:  # their causes may hold what the server echoed
        raise _login_refused(opened.words(_text(error).encode())) from None


def _login_refused(said: str) -> ConnectorError:
    error = refusal(said, otherwise=NeedsReauth, allowed=(NeedsReauth, Fatal, Retryable))
    if not isinstance(error, NeedsReauth):
        return error
    return NeedsReauth(
        f"{error} The login was refused: check user name and password (many providers want an app"
        " password)."
    )


def _capabilities(opened: Wire) -> frozenset[str]:
    _, untagged = opened.run(b"CAPABILITY")
    found: frozenset[str] = frozenset()
    for response in untagged:
        name, _, rest = response[0].partition(b" ")
        if name.upper() == b"CAPABILITY":
            found |= _words(rest)
    return found


def _words(text: bytes) -> frozenset[str]:
    return frozenset(wire.printable(word).upper() for word in text.split())


def _text(error: Exception) -> str:
    given = error.args[0] if error.args else ""
    return wire.printable(given if isinstance(given, bytes) else str(given).encode())
