"""HTTP for Google's clients: httplib2 with our TLS, deadlines and a bound on what is in memory.

httplib2 is not thread-safe: a thread has an Http of its own. It uses no proxy and no cookies.
"""

import functools
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httplib2

from connectors import net
from connectors.config import Environment
from connectors.gunzip import Gunzip

#: A response beyond this is large. Of those, only one of a mailbox is read at a time.
LARGE_BYTES = 2_000_000
_CHUNK_BYTES = 1 << 18
#: As connectors.web: an answer that comes slower (bytes/second) for twice the timeout is none.
_MIN_RATE = 1_000


class ResponseTooLarge(Exception):
    """More came than the caller takes."""


class Http(httplib2.Http):  # type: ignore[misc] # untyped base
    """One thread's connections to Google. `one_large` is shared by the threads of a mailbox."""

    def __init__(self, environment: Environment, *, one_large: threading.Lock) -> None:
        super().__init__(timeout=environment.timeout_seconds, proxy_info=None)
        self.follow_redirects = False
        context = _context(environment.extra_ca_file)
        # A message is a third longer in base64.
        limit = environment.max_message_bytes * 4 // 3 + LARGE_BYTES
        self._bound = Bound(one_large, limit, patience_seconds=2 * environment.timeout_seconds)
        self._kinds = {
            "http": _plain(self._bound),
            "https": _encrypted(self._bound, context, environment.found),
        }

    def request(self, uri: str, *args: Any, **kwargs: Any) -> Any:
        """As httplib2's; the content is a bytearray where it is large. Raises ResponseTooLarge."""
        kwargs["connection_type"] = self._kinds[uri.partition(":")[0]]
        try:
            return super().request(uri, *args, **kwargs)
        except BaseException:
            self.close()  # in the middle of a response; the next request connects again
            raise

    def settle(self) -> None:
        """Say that the last response is used up, so that another thread may read a large one."""
        self._bound.release()

    def close(self) -> None:
        self.settle()
        super().close()


@functools.lru_cache(maxsize=4)
def _context(extra_ca_file: str) -> ssl.SSLContext:
    """Return the context of all connections: reading the system's authorities takes 20 ms."""
    return net.tls_context(verify=True, extra_ca_file=extra_ca_file)


class Bound:
    """How much one thread may read, and whether it has the right to a large response."""

    def __init__(
        self, one_large: threading.Lock, limit_bytes: int, *, patience_seconds: float
    ) -> None:
        self._one_large, self._limit, self._held = one_large, limit_bytes, False
        self.patience_seconds = patience_seconds

    def read(self, response: http.client.HTTPResponse) -> bytes | bytearray:
        """Read to the end and unpack on the way; one copy in memory, a bytearray where large.

        httplib2 would hold the packed bytes too, and refuse what packs better than 1 to 100.
        """
        whole = bytearray()
        for piece in _pieces(response):
            whole += piece
            if len(whole) > self._limit:
                raise ResponseTooLarge
            if len(whole) > LARGE_BYTES and not self._held:
                self._one_large.acquire()
                self._held = True
        return whole if self._held else bytes(whole)

    def release(self) -> None:
        if self._held:
            self._held = False
            self._one_large.release()


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what comes, unpacked, in pieces of bounded size."""
    packed = response.headers.get("content-encoding") == "gzip"
    del response.headers["content-encoding"]
    gunzip = Gunzip()
    some = False
    while chunk := response.read1(_CHUNK_BYTES):
        some = True
        yield from gunzip.pieces(chunk) if packed else (chunk,)
    response.close()  # read1() leaves it open at its end, and so the connection in use
    if response.length:  # announced and not come: read() in pieces is silent about it
        raise http.client.IncompleteRead(b"", response.length)
    if packed and some:
        yield gunzip.end()


class _Arriving(io.RawIOBase):
    """What comes of one answer, its headers too. Waiting uses the patience up, and what comes gives
    some back. Raises TimeoutError where it drips: a socket's own timeout is one read's."""

    def __init__(self, arriving: io.RawIOBase, patience_seconds: float) -> None:
        self._arriving = arriving
        self._most_seconds = self._left_seconds = patience_seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began = time.monotonic()
        count = self._arriving.readinto(buffer) or 0
        left = self._left_seconds - (time.monotonic() - began) + count / _MIN_RATE
        self._left_seconds = min(self._most_seconds, left)
        if self._left_seconds < 0:
            raise TimeoutError("The answer comes too slowly.")
        return count

    def close(self) -> None:
        self._arriving.close()
        super().close()


def _response_class(bound: Bound) -> type[http.client.HTTPResponse]:
    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp.close()
            arriving = _Arriving(sock.makefile("rb", buffering=0), bound.patience_seconds)
            self.fp = io.BufferedReader(arriving)

        def read(self, amt: int | None = None) -> Any:
            return bound.read(self) if amt is None else super().read(amt)

    return Response


def _plain(bound: Bound) -> type:
    class Plain(http.client.HTTPConnection):
        """For tests and gateways on this machine."""

        response_class = _response_class(bound)

        def __init__(
            self, host: str, port: int | None = None, timeout: Any = None, **_: Any
        ) -> None:
            super().__init__(host, port, timeout=timeout)

    return Plain


def _encrypted(bound: Bound, context: ssl.SSLContext, found: Callable[[str, str], None]) -> type:
    class Encrypted(http.client.HTTPSConnection):
        response_class = _response_class(bound)

        def __init__(
            self, host: str, port: int | None = None, timeout: Any = None, **_: Any
        ) -> None:
            super().__init__(host, port, timeout=timeout, context=context)

        def connect(self) -> None:
            super().connect()
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found("server", f"{self.host} answers on port {self.port}.")
            found("encryption", net.about_tls(self.sock))

    return Encrypted
