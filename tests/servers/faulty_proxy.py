"""A proxy in front of an S3 server that does to some requests what networks and servers do.

Speaks HTTP/1.1 on a socket and passes everything on as it is, the signed Host too. A fault is for
the next requests of a method, once or as often as it is said; without one all goes through.
"""

import contextlib
import dataclasses
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self

Kind = Literal[
    "nothing",
    "answer",
    "lose the answer",
    "cut the body",
    "alter the request",
    "wait",
    "hold the request",
    "hold the answer",
]


@dataclasses.dataclass
class Fault:
    kind: Kind
    method: str
    times: int
    status: int = 0
    code: str = ""
    seconds: float = 0.0


class FaultyProxy:
    """`with` it runs; `endpoint` is where. `seen`: the method and path of each request."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.removeprefix("http://")
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.seen: list[tuple[str, str]] = []
        self.bytes_in = self.bytes_out = 0
        self._now = self.most_at_once = 0
        self.holding = threading.Event()
        self._released = threading.Event()

    def fault(
        self,
        kind: Kind,
        method: str,
        *,
        times: int = 1,
        status: int = 0,
        code: str = "",
        seconds: float = 0.0,
    ) -> None:
        self._faults.append(Fault(kind, method, times, status, code, seconds))

    def let_go(self) -> None:
        """Hang up on those who are held."""
        self._released.set()

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self.seen.clear()
            self.bytes_in = self.bytes_out = 0

    def count(self, method: str) -> int:
        return sum(1 for seen, _ in self.seen if seen == method)

    def __enter__(self) -> Self:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do  # noqa: N815 - http.server's names

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for fault in self._faults:
                if fault.method == method and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self._answer(request)
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._next(request.command, request.path)
        kind = fault.kind if fault else None
        if fault and kind == "answer":
            self._refuse(request, fault)
            return
        if kind == "hold the request":
            self._hold(request)
            return
        if fault and kind == "wait":
            time.sleep(fault.seconds)
        if kind == "alter the request" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        status, headers, answer = self._forward(request, body)
        self.bytes_in, self.bytes_out = self.bytes_in + len(body), self.bytes_out + len(answer)
        if kind == "hold the answer":
            self._hold(request)
            return
        if kind == "lose the answer":
            self._hang_up(request)
            return
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        if "content-length" not in {name.lower() for name, _ in headers}:
            request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        if kind == "cut the body":
            request.wfile.write(answer[: len(answer) // 2])
            self._hang_up(request)
        else:
            request.wfile.write(answer)

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            upstream.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in ("expect", "connection"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            return answer.status, list(_kept(answer)), answer.read()
        finally:
            upstream.close()

    @staticmethod
    def _refuse(request: BaseHTTPRequestHandler, fault: Fault) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code></Error>".encode()
        text = text if fault.code else b""  # it is no error
        request.send_response_only(fault.status)
        request.send_header("Content-Type", "application/xml")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _hold(self, request: BaseHTTPRequestHandler) -> None:
        self.holding.set()
        self._released.wait()
        self._hang_up(request)

    @staticmethod
    def _hang_up(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):  # whoever asked may be dead
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)


def _kept(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    for name, value in answer.getheaders():
        if name.lower() not in ("transfer-encoding", "connection"):
            yield name, value
