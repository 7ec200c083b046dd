"""Connecting to an IMAP server, encrypting, logging in, and learning what it can do."""

import dataclasses
import math
import socket
import ssl
import time
from collections.abc import Callable

from connectors import net, oauth
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, NeedsReauth, Retryable, Unavailable
from connectors.generic_imap import authentication, syntax, wire
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.refusals import refusal
from connectors.generic_imap.uids import MAX_UID, Uids
from connectors.generic_imap.wire import Wire

#: Alert and handshake of TLS, any version.
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
#: (host, port) of servers that lost what came before they had answered -> until when (monotonic)
#: they are asked one thing at a time. Not for ever: it costs round trips, and may have been chance.
_ONE_AT_A_TIME: dict[tuple[str, int], float] = {}
_REMEMBERED_SECONDS = 3_600.0
_IN_THE_CLEAR = "Not encrypted: turn on TLS wherever the server has it."


@dataclasses.dataclass(slots=True)
class Login:
    """A connection that is logged in, and what the server can do."""

    wire: Wire
    capabilities: frozenset[str]
    #: The folder that is open (its remote id) and its UIDVALIDITY.
    opened: tuple[str, int] | None = None
    #: How many messages it has (after EXISTS and EXPUNGE; None where the server did not tell), how
    #: many went since, and which of them, where VANISHED told it.
    exists: int | None = None
    expunged: int = 0
    vanished: Uids = dataclasses.field(default_factory=lambda: Uids([]))

    def can(self, name: str) -> bool:
        return name in self.capabilities

    @property
    def has_stable_ids(self) -> bool:
        """Whether it names a message's bytes alike in all folders."""
        return self.can("X-GM-EXT-1") or self.can("OBJECTID")

    @property
    def has_condstore(self) -> bool:
        """Whether it answers by mod-sequences (RFC 7162). Some tell one, and do not (Yahoo did)."""
        return self.can("CONDSTORE") or self.can("QRESYNC")

    @property
    def message_limit(self) -> int:
        """For how many messages it answers at once (RFC 9738 section 3)."""
        told = (name[13:] for name in self.capabilities if name.startswith("MESSAGELIMIT="))
        return min((int(n) for n in told if n.isdecimal() and int(n)), default=MAX_UID)

    @property
    def alive(self) -> bool:
        return self.wire.alive

    def count_anew(self) -> None:
        """Forget those of whom EXPUNGE did not say who went: nobody who is told from here on is
        one of them."""
        self.expunged = len(self.vanished)

    def lacking(self, told: Uids, *, otherwise: int = 0) -> int:
        """Return how many messages may be there that were not `told` since `count_anew`, of those
        that the server counts. Who went may have been told before, and stands for nobody whom the
        server does not show: but VANISHED says who it was. `otherwise`: the count without EXISTS.
        """
        there = otherwise if self.exists is None else self.exists
        return max(0, there + self.expunged - len(told.and_those_of(self.vanished)))

    def close(self) -> None:
        """Free the connection. Without LOGOUT: a round trip that nobody reads. Never raises."""
        self.wire.close()


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
        found=environment.found,
    )
    opened: Wire | None = None
    try:
        if config.secure:
            connection = _encrypted(connection, config, environment)
        elif not config.startTls:
            environment.found("encryption", _IN_THE_CLEAR)
        opened = Wire(
            connection,
            name=config.host,
            timeout_seconds=environment.timeout_seconds,
            secrets=(config.password, token, *authentication.spoken(config, token)),
            until=until,
        )
        reached(opened)
        greeting = _greeted(opened, config)
        capabilities = syntax.capabilities([greeting]) or _capabilities(opened)
        if config.startTls:
            status, _ = opened.run(b"STARTTLS")
            _require_starttls(status, config)
            opened.use(_encrypted(opened.sock, config, environment))
            capabilities = _capabilities(opened)  # what was said before TLS counts for nothing
        if not greeting.upper().startswith(b"* PREAUTH"):
            _know(opened, capabilities)
            told = authentication.authenticate(opened, config, token, capabilities)
            capabilities = told or _capabilities(opened)
            environment.found("login", f"Signed in as {config.username}.")
        _know(opened, capabilities)
        opened.one_at_a_time = _takes_one_at_a_time(config)
        if "ID" in capabilities:  # NetEase opens no folder for a client without a name
            opened.command_ahead(b'ID ("name" "ingestion")')
        return Login(opened, capabilities)
    except BaseException:
        (opened or connection).close()
        raise


def enable(login: Login) -> None:
    """Have the server tell what went, and show all that is there: Yahoo shows whoever counts in
    sequence numbers no more of a folder than its limit of messages."""
    wanted = [b"QRESYNC"] if login.can("QRESYNC") else []
    if login.can("UIDONLY") and login.message_limit < MAX_UID:
        wanted.append(b"UIDONLY")
    if wanted:
        login.wire.command_ahead(b"ENABLE", *wanted)


def ask_one_at_a_time(config: ImapConfig) -> None:
    """Send this server no command before the last is answered, for an hour. Some lose or refuse
    what comes together (twisted ticket 9282)."""
    _ONE_AT_A_TIME[config.host, config.port] = time.monotonic() + _REMEMBERED_SECONDS


def _takes_one_at_a_time(config: ImapConfig) -> bool:
    return _ONE_AT_A_TIME.get((config.host, config.port), 0.0) > time.monotonic()


def _encrypted(
    connection: socket.socket, config: ImapConfig, environment: Environment
) -> ssl.SSLSocket:
    context = net.shared_tls_context(
        verify=not config.allowInsecureCert, extra_ca_file=environment.extra_ca_file
    )
    encrypted = net.start_tls(connection, config.host, context)
    environment.found("encryption", net.about_tls(encrypted))
    return encrypted


def _require_starttls(status: bytes, config: ImapConfig) -> None:
    """Never go on in the clear where encryption was asked for."""
    if not status.upper().startswith(b"OK"):
        raise Fatal(f"{config.host} refuses STARTTLS. Check startTls and port.", code="tls")


def _greeted(opened: Wire, config: ImapConfig) -> bytes:
    """Return the greeting. Raises Retryable, or Fatal where what answers is no IMAP server."""
    try:
        greeting = opened.greeting()
    except Unavailable as error:
        if isinstance(error.__cause__, TimeoutError) and not opened.has_buffered:
            raise _silence(opened, config, error) from None
        raise
    start = greeting[:9].upper()
    if start.startswith((b"* OK", b"* PREAUTH")):
        return greeting
    if start.startswith(b"* BYE"):  # full, or under maintenance: no fault of the configuration
        said = opened.words(greeting[2:].strip())
        raise refusal(said, otherwise=Unavailable, allowed=(Retryable,))
    raise _not_imap(config, greeting)


def _silence(opened: Wire, config: ImapConfig, error: Unavailable) -> ConnectorError:
    """Return what it means that no greeting came: those that wait to be spoken to are no IMAP
    servers, and give themselves away when they are."""
    heard = opened.overheard()
    if heard and not heard.startswith(b"*"):
        return _not_imap(config, heard)
    if config.secure:
        return error
    return Unavailable(
        f"{error} A port for TLS (993 mostly) is as silent when TLS is off: check the port, and"
        " TLS (secure, startTls)."
    )


def _not_imap(config: ImapConfig, heard: bytes) -> Fatal:
    where = f"{config.host}:{config.port}"
    if heard.startswith(_TLS_RECORDS):
        return Fatal(f"{where} speaks TLS from the first byte. Turn on TLS (secure).", code="tls")
    if heard.startswith(b"HTTP/"):
        text = f"{where} is a web server's. Check host and port: IMAP has 993 (TLS) or 143."
        return Fatal(text, code="not_imap")
    return Fatal(f"{where} does not speak IMAP. Check host and port.", code="not_imap")


def _know(opened: Wire, capabilities: frozenset[str]) -> None:
    """Tell the wire which literals need not be asked for (RFC 7888)."""
    if "LITERAL+" in capabilities:
        opened.unasked_literal_bytes = wire.MAX_SMALL_LITERAL_BYTES
    elif "LITERAL-" in capabilities:
        opened.unasked_literal_bytes = wire.SHORT_LITERAL_BYTES


def _capabilities(opened: Wire) -> frozenset[str]:
    _, untagged = opened.run(b"CAPABILITY")
    return syntax.capabilities(response[0] for response in untagged)
