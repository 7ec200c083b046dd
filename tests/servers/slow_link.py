"""A TCP link of chosen speed before a server, as a slow line is: for tests that need time to act."""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

_PIECE_BYTES = 16_384


class SlowLink:
    """Connect to `host`, `port`. All connections together get `bytes_per_second` (None: all there
    is) of what the server sends; `passed` is how much that was."""

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, *, bytes_per_second: float | None) -> None:
        self.bytes_per_second = bytes_per_second
        self.passed = 0
        self._target = (host, port)
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="slow-link", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._open):
            _cut(end)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return
            # Little is under way at a time: what was sent is soon what was received.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE_BYTES)
            self._open |= {client, server}
            for pump in (self._up, self._down):
                threading.Thread(
                    target=pump, args=(client, server), name="slow-link", daemon=True
                ).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := client.recv(_PIECE_BYTES):
                server.sendall(piece)
        _cut(server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(_PIECE_BYTES):
                time.sleep(self._wait_for(len(piece)))
                client.sendall(piece)
                self.passed += len(piece)
        for end in (client, server):
            _cut(end)
            self._open.discard(end)
            end.close()

    def _wait_for(self, size: int) -> float:
        with self._lock:
            if self.bytes_per_second is None:
                return 0.0
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self.bytes_per_second
            return start - now


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
