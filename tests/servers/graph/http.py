"""HTTP/1.1 over TLS on a loopback socket, one thread per connection. Knows nothing of Graph.

Its certificate comes from an authority made for this process: `ca_file()` is what to trust.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import ipaddress
import json
import socket
import ssl
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 410: "Gone", 429: "Too Many Requests", 500: "Internal Server Error",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
_CHUNK_BYTES = 64_000


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """`path` is as sent, still quoted; `query` and `headers` are decoded, headers in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def segments(self) -> list[str]:
        return [urllib.parse.unquote(part) for part in self.path.split("/") if part]

    def form(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(self.body.decode(), keep_blank_values=True))


@dataclasses.dataclass(slots=True)
class Response:
    """`cut_after`: drop the connection after so many bytes of the body. `chunked`: without a
    Content-Length, as Graph sends a message's bytes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    chunked: bool = False
    cut_after: int | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Self:
        kind = {"Content-Type": "application/json; charset=utf-8"}
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), kind | named)


class TlsServer:
    """Answers with what `handle` returns. A context manager; `origin` is "https://127.0.0.1:port"."""

    def __init__(self, handle: Callable[[Request], Response]) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.origin = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, name="graph", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            open_now = list(self._connections)
        for connection in open_now:
            _hang_up(connection)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            connection = _server_context().wrap_socket(plain, server_side=True)
        except OSError:  # a client that does not trust us
            plain.close()
            return
        with self._lock:
            self._connections.add(connection)
        try:
            with connection, connection.makefile("rb") as incoming:
                while (request := _read(incoming)) is not None:
                    if not _write(connection, self._handle(request)):
                        return
        except (OSError, ValueError):
            return  # the client went away
        finally:
            with self._lock:
                self._connections.discard(connection)


def _read(incoming: Any) -> Request | None:
    line = incoming.readline(65_536)
    if not line.strip():
        return None
    method, target, _ = line.decode("ascii").split(" ", 2)
    headers: dict[str, str] = {}
    while (line := incoming.readline(65_536)) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    body = incoming.read(int(headers.get("content-length", "0")))
    path, _, query = target.partition("?")
    asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    return Request(method, path, asked, headers, body)


def _write(connection: ssl.SSLSocket, response: Response) -> bool:
    """Send a response; tell whether the connection goes on."""
    reason = _REASONS.get(response.status, "Unknown")
    head = [f"HTTP/1.1 {response.status} {reason}"]
    head += [f"{name}: {value}" for name, value in response.headers.items()]
    framing = "Transfer-Encoding: chunked" if response.chunked else None
    head.append(framing or f"Content-Length: {len(response.body)}")
    start = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
    if response.cut_after is not None:
        part = response.body[: response.cut_after]
        size = f"{len(response.body):x}\r\n".encode() if response.chunked else b""
        connection.sendall(start + size + part)
        _hang_up(connection)
        return False
    if not response.chunked:
        connection.sendall(start + response.body)
        return True
    out = bytearray(start)
    for at in range(0, len(response.body), _CHUNK_BYTES):
        piece = response.body[at : at + _CHUNK_BYTES]
        out += f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        if len(out) > 4 * _CHUNK_BYTES:
            connection.sendall(out)
            out.clear()
    connection.sendall(out + b"0\r\n\r\n")
    return True


def _hang_up(connection: socket.socket) -> None:
    """End the TCP connection without TLS's goodbye, as a broken line does."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


# -- certificates --------------------------------------------------------------------------------


def ca_file() -> str:
    """Return the path of the PEM file of the authority."""
    return str(_certificates() / "ca.pem")


@functools.cache
def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificates() / "server.pem")
    return context


@functools.cache
def _certificates() -> Path:
    where = Path(tempfile.mkdtemp(prefix="graph-ca-"))
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Graph of the tests")])
    own_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    here = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    key_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        _unsigned(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)
    own = (
        _unsigned(own_name, ca_name, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName(here), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server_key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (where / "ca.pem").write_bytes(ca.public_bytes(pem))
    (where / "server.pem").write_bytes(key + own.public_bytes(pem))
    return where


def _unsigned(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
    )
