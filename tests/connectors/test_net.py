"""Connecting: addresses that don't answer, and HTTP answers that never end."""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from connectors import net, web
from connectors.config import Environment
from connectors.errors import Fatal, Unavailable
from tests.servers.graph import http


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    """Give a port of 127.0.0.2 that swallows packets, as a firewall does: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.2", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_an_address_that_swallows_packets_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _black_hole() as port, socket.create_server(("127.0.0.1", port)):
        answers = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.2", "127.0.0.1")
        ]
        # The resolver is the system's; two addresses of one name need no DNS of our own here.
        monkeypatch.setattr(socket, "getaddrinfo", _resolving("mail.example.com", answers))
        connection = net.connect(
            "mail.example.com", port, timeout_seconds=4, forbid_private_addresses=False
        )
        connection.close()


def _resolving(name: str, answers: Any) -> Callable[..., Any]:
    system: Callable[..., Any] = socket.getaddrinfo
    return lambda host, *args, **named: answers if host == name else system(host, *args, **named)


@contextlib.contextmanager
def _http(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Give the URL of a server that reads one request and then does what `serve` does."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # else it would wait on for a request
    thread.join(10)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_an_answer_that_drips_is_ended(start: bytes) -> None:
    ended = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(start or b"HTTP/1.1 200 OK\r\nX: ")
        while not ended.wait(0.1):
            connection.sendall(b"x")

    with _http(drip) as url, web.client(Environment(timeout_seconds=0.5)) as client:
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.get(url)
        assert time.monotonic() - began > 0.5
        ended.set()


def test_a_slow_reader_of_a_steady_answer_is_not_cut_off() -> None:
    size = 20_000_000  # more than sockets hold: the server waits for the reader

    def steady(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(b"x" * size)

    with (
        _http(steady) as url,
        web.client(Environment(timeout_seconds=1)) as client,
        client.stream("GET", url) as response,
    ):
        came = 0
        for index, part in enumerate(response.iter_raw()):
            came += len(part)
            if index == 0:
                # What the reader does with a part is not the server's time.
                threading.Event().wait(2)
    assert came == size


def test_http_goes_to_no_private_address_where_that_is_forbidden() -> None:
    with (
        _http(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) as url,
        web.client(Environment(timeout_seconds=1), forbid_private_addresses=True) as client,
        pytest.raises(Fatal) as caught,
    ):
        client.get(url)
    assert caught.value.code == "forbidden_address"


def test_a_host_that_cannot_be_reached_is_a_failed_connection_with_its_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        web.client(Environment(timeout_seconds=1)) as client,
        pytest.raises(httpx.ConnectError, match="Connection refused") as caught,
    ):
        client.get(f"http://127.0.0.1:{port}/")
    assert isinstance(web.problem(caught.value, "the server"), Unavailable)


def test_authorities_are_read_again_once_their_file_changed(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"

    def context() -> ssl.SSLContext:
        return net.shared_tls_context(verify=True, extra_ca_file=str(file))

    file.write_bytes(Path(http.ca_file()).read_bytes())
    before = context()
    assert context() is before
    os.utime(file, ns=(1, 1))
    assert context() is not before
