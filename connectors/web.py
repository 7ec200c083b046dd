"""HTTP for connectors: httpx on connections of `connectors.net`, with an end to every answer.

httpx limits the time of each read, so that a server which drips a byte a second is never done with.
Here the reads of one answer have a patience together, which only what arrives makes good again.
"""

import contextlib
import datetime as dt
import email.utils
import functools
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpcore
import httpx

from connectors import net
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, Unavailable

#: An answer that comes slower than this (bytes/second) for twice the timeout is none.
_MIN_RATE = 1_000
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 3_600.0  # all workers wait as long
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)


def client(
    environment: Environment, *, connections: int = 1, forbid_private_addresses: bool = False
) -> httpx.Client:
    """Return a client that asks the hosts it is given and no other: no proxy, no redirect. The
    caller closes it. Its requests raise httpx.TransportError, or Fatal at a forbidden address."""
    seconds = environment.timeout_seconds
    return httpx.Client(
        transport=_Transport(
            httpcore.ConnectionPool(
                ssl_context=_tls(environment.extra_ca_file),
                max_connections=connections,
                keepalive_expiry=5.0,
                network_backend=_Network(
                    forbid_private_addresses, patience_seconds=2 * seconds, found=environment.found
                ),
            )
        ),
        timeout=httpx.Timeout(seconds, connect=min(_CONNECT_SECONDS, seconds)),
        headers={"User-Agent": "ingestion", "Accept-Encoding": "gzip"},
        trust_env=False,
        follow_redirects=False,
    )


def problem(error: Exception, what: str) -> ConnectorError:
    """Return why no answer came. Only a certificate that is not to be trusted needs a person."""
    # httpx raises from httpcore's error, which has the one below it as its argument. The context of
    # these may be an error that is being handled, of a request before.
    for cause in (error, *getattr(error.__cause__, "args", ())):
        if isinstance(cause, ConnectorError):
            return cause  # of net.connect
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Fatal(
                f"The certificate of {what} can't be verified ({cause.verify_message}). Where a"
                " proxy decrypts what leaves your network, put its authority into EXTRA_CA_FILE.",
                code="certificate",
            )
    return Unavailable(f"The connection to {what} failed ({type(error).__name__}).")


def retry_after_seconds(text: str) -> float | None:
    """Read a Retry-After header: seconds, or the time at which to ask again (RFC 9110 section
    10.2.3). At most an hour; None where it says neither."""
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return min(_LONGEST_WAIT_SECONDS, float(text))
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    seconds = at.replace(tzinfo=at.tzinfo or dt.UTC) - dt.datetime.now(dt.UTC)
    return min(_LONGEST_WAIT_SECONDS, max(0.0, seconds.total_seconds()))


@functools.lru_cache(maxsize=8)
def _tls(extra_ca_file: str) -> ssl.SSLContext:
    """Reading the system's authorities costs more than a request: once for each process."""
    return net.tls_context(verify=True, extra_ca_file=extra_ca_file)


class _Transport(httpx.HTTPTransport):
    """httpx's transport on a pool of ours: it has no argument for httpcore's network backend."""

    def __init__(self, pool: httpcore.ConnectionPool) -> None:
        self._pool = pool


class _Network(httpcore.NetworkBackend):
    """Connects by the rules of `net.connect`: the address that was checked is connected to."""

    def __init__(
        self,
        forbid_private_addresses: bool,
        *,
        patience_seconds: float,
        found: Callable[[str, str], None],
    ) -> None:
        self._forbid_private_addresses = forbid_private_addresses
        self._patience_seconds = patience_seconds
        self._found = found

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - httpcore's
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - httpcore's
    ) -> httpcore.NetworkStream:
        try:
            connection = net.connect(
                host,
                port,
                timeout_seconds=self._patience_seconds if timeout is None else timeout,
                forbid_private_addresses=self._forbid_private_addresses,
                found=self._found,
            )
        except Unavailable as error:
            raise httpcore.ConnectError(error) from error
        return _Stream(connection, self._patience_seconds, self._found)


class _Stream(httpcore.NetworkStream):
    """One connection. Each request that is sent begins with all the patience there is; reads use it
    up, and what comes gives some back: only waiting counts, not what the caller does between."""

    def __init__(
        self,
        connection: socket.socket,
        patience_seconds: float,
        found: Callable[[str, str], None],
    ) -> None:
        self._connection, self._found = connection, found
        self._most_seconds = self._left_seconds = patience_seconds

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        limit = self._left_seconds if timeout is None else min(timeout, self._left_seconds)
        began = time.monotonic()
        with _as_httpcore(timed_out=httpcore.ReadTimeout, failed=httpcore.ReadError):
            self._connection.settimeout(max(0.001, limit))
            data = self._connection.recv(max_bytes)
        waited = time.monotonic() - began
        left = self._left_seconds - waited + len(data) / _MIN_RATE
        self._left_seconds = min(self._most_seconds, left)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._left_seconds = self._most_seconds
        with _as_httpcore(timed_out=httpcore.WriteTimeout, failed=httpcore.WriteError):
            self._connection.settimeout(self._most_seconds if timeout is None else timeout)
            self._connection.sendall(buffer)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        with _as_httpcore(timed_out=httpcore.ConnectTimeout, failed=httpcore.ConnectError):
            try:
                self._connection.settimeout(self._most_seconds if timeout is None else timeout)
                encrypted = ssl_context.wrap_socket(
                    self._connection, server_hostname=server_hostname
                )
            except BaseException:
                self.close()
                raise
        self._found("encryption", net.about_tls(encrypted))
        return _Stream(encrypted, self._most_seconds, self._found)

    def close(self) -> None:
        self._connection.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # httpcore: an idle connection that is has ended
            poll = select.poll()
            poll.register(self._connection, select.POLLIN)
            return bool(poll.poll(0))
        return None


@contextlib.contextmanager
def _as_httpcore(*, timed_out: type[Exception], failed: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timed_out(error) from error
    except OSError as error:
        raise failed(error) from error
