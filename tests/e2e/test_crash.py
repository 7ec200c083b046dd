"""Killing processes at any moment loses and doubles nothing, and the import goes on by itself."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ingestion.models import Message, Placement
from tests.servers.dovecot import Dovecot

if TYPE_CHECKING:
    from tests.servers.stack import Service


@pytest.mark.timeout(300)
def test_an_import_survives_the_death_of_every_process(
    service: "Service", api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    name, password = dovecot.user()
    bodies = [
        b"Subject: %d\r\n\r\n" % n + chance.randbytes(9_000).hex().encode() for n in range(1500)
    ]
    dovecot.append(name, "INBOX", *bodies)
    config = {
        "host": dovecot.host, "port": dovecot.port, "secure": False,
        "username": name, "password": password,
    }  # fmt: skip
    body = {
        "name": "Crash",
        "provider": "generic_imap",
        "providerConfig": config,
        "autoImport": True,
    }
    url = f"/ingestion/{api.post('/ingestion', json=body).json()['id']}"
    wait_for(lambda: Message.objects.exists() or api.get(url).json()["status"] == "active", 60)
    for victim in ("worker", "control", "beat", "worker"):
        service.kill(victim)
    wait_for(lambda: api.get(url).json()["status"] == "active", 90)
    assert Message.objects.count() == Placement.objects.count() == 1500
    held = dovecot.contents(name)
    placed = Placement.objects.values_list("remote_id", "message__size_bytes")
    assert dict(placed) == {remote_id: len(content) for (_, remote_id), content in held.items()}
