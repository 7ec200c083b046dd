"""An HTTP answer that drips, each byte within the time of a read, is ended at both clouds."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from connectors import web
from connectors.config import Environment
from connectors.google.transport import Http

TIMEOUT_SECONDS = 0.5


@pytest.fixture(params=["headers", "body"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server whose headers or body of a hundred bytes take 20 s: five come in a second."""
    begun, end = {
        "headers": (b"X-Long: ", b"\r\nContent-Length: 0\r\n\r\n"),
        "body": (b"Content-Length: 100\r\n\r\n", b""),
    }[request.param]
    done = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        # The client hangs up: on a busy machine before it is read from, too.
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + begun)
            for _ in range(100):
                if done.wait(0.2):
                    return
                connection.sendall(b"x")
            connection.sendall(end)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        done.set()
        socket.create_connection(listener.getsockname()).close()  # where the client never came
        thread.join()


def _by_httpx(url: str, environment: Environment) -> None:
    with web.client(environment) as client:
        client.get(url)


def _by_httplib2(url: str, environment: Environment) -> None:
    Http(environment, one_large=threading.Lock()).request(url)


@pytest.mark.parametrize("ask", [_by_httpx, _by_httplib2])
def test_an_answer_that_drips_is_ended(url: str, ask: Callable[[str, Environment], None]) -> None:
    with pytest.raises((TimeoutError, httpx.TransportError)):  # and not the whole answer, late
        ask(url, Environment(timeout_seconds=TIMEOUT_SECONDS))


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("Fri, 31 Dec 2199 23:59:59 GMT", 3_600, 3_600),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("99999", 3_600, 3_600),
    ],
)
def test_retry_after_may_be_a_date(text: str, least: float, most: float) -> None:
    seconds = web.retry_after_seconds(text)
    assert seconds is not None
    assert least <= seconds <= most


@pytest.mark.parametrize("text", ["", "soon", "-1", "1e9", "٣"])
def test_what_is_no_retry_after_tells_nothing(text: str) -> None:
    assert web.retry_after_seconds(text) is None
