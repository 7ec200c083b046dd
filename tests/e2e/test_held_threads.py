"""Nobody takes the web process away from everybody else."""

import concurrent.futures
import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.test import Client
from rest_framework.exceptions import Throttled

from ingestion.api import events
from ingestion.places import MAX_HELD, Places

if TYPE_CHECKING:
    from tests.servers.stack import Service

_PROCESSES = 2


class SilentServer:
    """Takes connections and says nothing; `most` is how many it had at a time. Who has hung up is
    missed before the next one is counted, whichever thread has its turn."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.most = 0
        self._open: list[socket.socket] = []

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._open = [one for one in self._open if not _hung_up(one)] + [connection]
                self.most = max(self.most, len(self._open))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()


def _hung_up(connection: socket.socket) -> bool:
    """Close it, where the other end is."""
    with contextlib.suppress(BlockingIOError):
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1000, socket.MSG_DONTWAIT):
                pass
        connection.close()
        return True
    return False


@pytest.fixture
def silent() -> Iterator[SilentServer]:
    server = SilentServer()
    threading.Thread(target=server.serve, daemon=True).start()
    yield server
    server.close()


def test_one_user_gets_few_checks_at_a_time(
    service: "Service", owner: User, make_key: Callable[..., str], silent: SilentServer
) -> None:
    config = {"host": "127.0.0.1", "port": silent.port, "secure": False, "username": "u"}
    body = {"name": "n", "provider": "generic_imap", "providerConfig": {**config, "password": "p"}}
    headers = {"Authorization": f"Bearer {make_key(owner)}"}
    api = f"{service.url}/api/v1/ingestion"
    made = httpx.post(api, headers=headers, json=body, trust_env=False, verify=False, timeout=60)

    def verify(_: int) -> httpx.Response:
        url = f"{api}/{made.json()['id']}/verify"
        return httpx.post(url, headers=headers, trust_env=False, verify=False, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(verify, range(40)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 429}
    assert silent.most <= 2 * _PROCESSES + 1, "and the check that a new source gets by itself"


def test_one_user_takes_no_place_of_others() -> None:
    places = Places(total=3, per_user=2, retry_seconds=5)
    places.take(1)
    places.take(1)
    with pytest.raises(Throttled), places.place(1):
        pass
    with places.place(2), pytest.raises(Throttled):
        places.take(3)
    places.give_back(1)
    with places.place(1), places.place(3):
        pass
    places.give_back(1)


def test_all_kinds_of_places_together_leave_threads_to_everybody_else() -> None:
    kinds = [Places(total=16, per_user=6, retry_seconds=5) for _ in range(3)]
    with contextlib.ExitStack() as held:
        for number in range(MAX_HELD):
            held.enter_context(kinds[number % 3].place(number))
        for kind in kinds:
            with pytest.raises(Throttled):
                kind.take(MAX_HELD)
    with kinds[0].place(1), kinds[1].place(1):
        pass


def test_one_user_leaves_event_streams_to_others() -> None:
    one, other = User(pk=1), User(pk=2)
    streams = [events.Progress(uuid.uuid4(), one) for _ in range(events.MAX_OF_A_USER)]
    with pytest.raises(Throttled):
        events.Progress(uuid.uuid4(), one)
    streams.append(events.Progress(uuid.uuid4(), other))
    streams[0].close()
    streams[0].close()  # gives its one place back, and no other's
    streams.append(events.Progress(uuid.uuid4(), one))
    with pytest.raises(Throttled):
        events.Progress(uuid.uuid4(), one)
    for stream in streams:
        stream.close()


@pytest.mark.django_db
def test_a_file_that_nobody_asked_for_is_not_read(client: Client) -> None:
    file = ContentFile(b"x" * 5_000_000, name="x.bin")
    answer = client.post("/admin/login/", {"username": "a", "password": "b", "f": file})
    assert answer.status_code == 400
