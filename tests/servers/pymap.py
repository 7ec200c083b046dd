"""pymap, an IMAP server with OBJECTID (RFC 8474) that nobody here wrote, behind a relay that listens.

Owns starting it and what a client said to it. Mail is in its memory and ends with it.
"""

import contextlib
import imaplib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers.stack import free_port, wait_for

USER, PASSWORD = "objectid", "only-for-the-tests"


class Pymap:
    """One account. `port` is the relay's; `said` is every byte that clients sent through it."""

    host = "127.0.0.1"

    def __enter__(self) -> Self:
        self._own_port = free_port()
        program = Path(sys.executable).with_name("pymap")
        self._process = subprocess.Popen(
            [
                *(program, "--host", self.host, "--port", str(self._own_port)),
                *("--no-tls", "--no-service", "admin"),
                *("dict", "--demo-user", USER, "--demo-password", PASSWORD),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers)
        self.said = bytearray()
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._process.terminate()
        self._process.wait(10)  # and with it end its connections
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def connect(self) -> imaplib.IMAP4:
        """Return a logged-in client that does not go through the relay."""
        client = imaplib.IMAP4(self.host, self._own_port, timeout=20)
        client.login(USER, PASSWORD)
        return client

    def _answers(self) -> bool:
        assert self._process.poll() is None, "pymap ended."
        with contextlib.suppress(OSError):
            socket.create_connection((self.host, self._own_port), timeout=1).close()
            return True
        return False

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # shut down: the end
            while True:
                client, _ = self._listener.accept()
                self._start(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection((self.host, self._own_port)) as server:
            back = threading.Thread(target=_copy, args=(server, client, bytearray()))
            back.start()
            _copy(client, server, self.said)
            back.join()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        thread.start()
        self._threads.append(thread)


def _copy(one: socket.socket, other: socket.socket, kept: bytearray) -> None:
    """Pass on what one says until it, or the other, has gone; then both are told so."""
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            kept += data
            other.sendall(data)
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
