"""A small HTTP/1.1 server for scripted providers: a thread for each connection, keep-alive, TLS.

Faster than http.server, whose header parser alone costs more than most answers here.
"""

import dataclasses
import socket
import socketserver
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def path(self) -> str:
        return urllib.parse.unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, list[str]]:
        return urllib.parse.parse_qs(self.target.partition("?")[2], keep_blank_values=True)


@dataclasses.dataclass(slots=True)
class Response:
    """`cut`: send only half of it and break the connection."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut: bool = False

    def wire(self) -> bytes:
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} Scripted\r\n{lines}\r\n".encode() + self.body


class _Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    rbufsize = 1 << 16
    server: "HttpServer"

    def handle(self) -> None:
        try:
            while (request := self._read()) is not None:
                response = self.server.application(request)
                wire = response.wire()
                if response.cut:
                    self.request.sendall(wire[: len(wire) - len(response.body) // 2 - 1])
                    return
                self.request.sendall(wire)
        except (ConnectionError, ssl.SSLError, TimeoutError, ValueError):
            return  # the client left: ValueError where its socket is closed under us

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            return
        finally:
            self.server.connections.discard(self.request)

    def _read(self) -> Request | None:
        line = self.rfile.readline(65_536)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := self.rfile.readline(65_536)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", "0")))
        return Request(method, target, headers, body)


class HttpServer(socketserver.ThreadingTCPServer):
    """Serve `application` on a free port of the loopback until `stop`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(
        self, application: Callable[[Request], Response], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.application, self._tls = application, tls
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Connection)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls:
            connection = self._tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self.connections.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a bug of the server be seen: pytest turns it into a failure."""
        raise  # noqa: PLE0704 - called by socketserver inside its except block

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.drop_all()

    def drop_all(self) -> None:
        """Break every connection that is open."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
