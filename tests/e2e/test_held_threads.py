"""Nobody takes the web process away from everybody else."""

import concurrent.futures
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.files.base import ContentFile
from django.test import Client
from rest_framework.exceptions import Throttled

from ingestion.api.places import Places

if TYPE_CHECKING:
    from tests.servers.stack import Service

_PROCESSES = 2


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        kept: list[socket.socket] = []

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


def test_one_user_gets_few_checks_at_a_time(
    service: "Service", owner: User, make_key: Callable[..., str], silent_port: int
) -> None:
    config = {"host": "127.0.0.1", "port": silent_port, "secure": False, "username": "u"}
    body = {"name": "n", "provider": "generic_imap", "providerConfig": {**config, "password": "p"}}
    headers = {"Authorization": f"Bearer {make_key(owner)}"}
    api = f"{service.url}/api/v1/ingestion"
    made = httpx.post(api, headers=headers, json=body, trust_env=False)

    def verify(_: int) -> httpx.Response:
        url = f"{api}/{made.json()['id']}/verify"
        return httpx.post(url, headers=headers, trust_env=False, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(40) as clients:
        answers = clients.map(verify, range(40))
        began = time.monotonic()
        httpx.get(f"{service.url}/healthz", trust_env=False, timeout=60)
        assert time.monotonic() - began < 5
        codes = []
        for answer in answers:
            codes.append(answer.status_code)
            if answer.status_code == 429:
                assert int(answer.headers["Retry-After"]) > 0
    assert codes.count(429) >= 40 - 2 * _PROCESSES * 2  # those that came when others had ended
    assert set(codes) <= {200, 429}


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


@pytest.mark.django_db
def test_a_file_that_nobody_asked_for_is_not_read(client: Client) -> None:
    file = ContentFile(b"x" * 5_000_000, name="x.bin")
    answer = client.post("/admin/login/", {"username": "a", "password": "b", "f": file})
    assert answer.status_code == 400
