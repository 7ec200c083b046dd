"""A server that webhooks are sent to: answers as it is told, and keeps what came."""

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from standardwebhooks import Webhook


@dataclasses.dataclass(frozen=True)
class Came:
    """One request. `verified` proves its signature, and returns what the body says."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    def verified(self, secret: str) -> Any:
        return Webhook(secret).verify(self.body, dict(self.headers))

    @property
    def event(self) -> str:
        return str(json.loads(self.body)["type"])


@dataclasses.dataclass
class Receiver:
    url: str
    came: list[Came] = dataclasses.field(default_factory=list)
    status: int = 204
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    #: What it answers besides; "endless": a body that does not end.
    body: bytes = b""
    endless: bool = False


@contextmanager
def running() -> Iterator[Receiver]:
    """Serve on loopback for the length of a test."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.came.append(Came(self.path, dict(self.headers), body))
            self.send_response(receiver.status)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            if receiver.endless:
                self.end_headers()
                while True:
                    self.wfile.write(b"x" * 65536)
            self.send_header("Content-Length", str(len(receiver.body)))
            self.end_headers()
            self.wfile.write(receiver.body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
            """Say nothing."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Who hangs up is no error."""

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
