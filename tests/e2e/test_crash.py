"""Killing processes at any moment loses and doubles nothing, and the import goes on by itself.

An import of 2,500 messages from a Dovecot over a slow line, so that it lasts; meanwhile web, worker
(its main process, or the ones that copy), control, index and beat die by SIGKILL.
"""

import collections
import contextlib
import datetime as dt
import os
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from connectors.types import SpooledBody
from ingestion.models import (
    INDEX_VERSION,
    Document,
    IngestionSource,
    Message,
    Pack,
    Placement,
    Run,
)
from ingestion.packs.store import store
from ingestion.services.archive import housekeeping, indexing, reading
from ingestion.services.engine import capture
from ingestion.states import RunStatus
from tests.servers import imap_source
from tests.servers.dovecot import Account, Dovecot
from tests.servers.slow_link import SlowLink
from tests.servers.stack import descendants

if TYPE_CHECKING:
    from tests.servers.stack import Service

MESSAGES, KILLS = 2_500, 30
#: The line's speed while there is killing: 80 s for the whole import.
BYTES_PER_SECOND = 125_000
#: From when the supervisor, whose pauses grow to 10 s, has started again whom it lost.
RESUMED_WITHIN_SECONDS = 240
#: How likely each is to be next. The copying processes hold what can be lost.
_VICTIMS = {"copying": 4, "worker": 1, "control": 2, "index": 2, "beat": 2, "web": 2}


class Watch:
    """Counts what is archived. Fails as soon as it becomes less."""

    def __init__(self) -> None:
        self.count = 0

    def look(self) -> int:
        count = Message.objects.count()
        assert count >= self.count, "archived messages are gone"
        self.count = count
        return count

    def for_seconds(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.look() and (left := until - time.monotonic()) > 0:
            time.sleep(min(0.1, left))


@pytest.mark.timeout(1_800)
@pytest.mark.long(seconds=150)
def test_an_import_survives_the_death_of_every_process_thirty_times(
    service: "Service", api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    account = dovecot.account()
    fill(dovecot, account.name, chance)
    watch = Watch()
    with SlowLink(dovecot.host, dovecot.port, bytes_per_second=BYTES_PER_SECOND) as link:
        source = start_import(api, link, account)
        wait_for(watch.look)
        killed = kill_at_random(service, chance, watch)
        assert watch.look() < MESSAGES, "there was nothing left to interrupt"
        link.bytes_per_second = None
        wait_until_active(service, source, watch)
    assert set(killed) == set(_VICTIMS)
    assert Run.objects.get().status == RunStatus.COMPLETED
    assert_same(dovecot.contents(account.name))
    # Each death repeats at most what had arrived since the last commit.
    size = sum(Message.objects.values_list("size_bytes", flat=True))
    deaths = killed.count("copying") + killed.count("worker")
    repeated = deaths * 2 * capture.COMMIT_SECONDS * BYTES_PER_SECOND
    assert link.passed < size * 1.1 + repeated
    print(collections.Counter(killed), f"{link.passed / size:.2f} times the bytes")
    indexing.index_now(on_progress=lambda _: None)  # what its process, which gives way, has left
    assert Document.objects.filter(version=INDEX_VERSION, defects=[]).count() == MESSAGES
    housekeeping.collect_orphans(older_than=dt.timedelta(seconds=-5))
    packs = list(store().packs(source))
    assert not [pack for pack in packs if pack.partial]
    assert {pack.pack_id for pack in packs} == set(Pack.objects.values_list("pk", flat=True))


def wait_until_active(service: "Service", source: Any, watch: Watch) -> None:
    """See the import to its end. Fails where nothing is archived for RESUMED_WITHIN_SECONDS."""
    went_on, had = time.monotonic(), watch.look()
    while IngestionSource.objects.get(pk=source).status != "active":
        watch.for_seconds(0.2)
        if watch.count > had:
            went_on, had = time.monotonic(), watch.count
        assert time.monotonic() - went_on < RESUMED_WITHIN_SECONDS, service.output()


def fill(dovecot: Dovecot, name: str, chance: random.Random) -> None:
    """Lay 2,500 messages into the account's Maildir, as a delivery agent would: 4 kB each."""
    dovecot.append(name, "INBOX", b"Subject: first\r\n\r\nIt makes the Maildir.\r\n")
    folder = dovecot.maildir(name) / "cur"
    owner = folder.stat()
    for number in range(1, MESSAGES):
        body = b"Subject: %d\r\n\r\n%s\r\n" % (number, chance.randbytes(2_000).hex().encode())
        path = folder / f"1700000000.M{number}.test,S={len(body)},W={len(body)}:2,"
        path.write_bytes(body)
        os.chown(path, owner.st_uid, owner.st_gid)


def start_import(api: httpx.Client, link: SlowLink, account: Account) -> Any:
    config = imap_source.config(account, host=link.host, port=link.port)
    body = {"name": "Crash", "provider": "generic_imap", "providerConfig": config}
    answer = api.post("/ingestion", json={**body, "autoImport": True})
    return IngestionSource.objects.get(pk=answer.json()["id"]).pk


def kill_at_random(service: "Service", chance: random.Random, watch: Watch) -> list[str]:
    """Kill four or five at random moments, then see the import go on, and again; return whom.

    Who has not died yet is sooner next, so that each of them dies, whatever chance says. Fails
    where it does not go on within RESUMED_WITHIN_SECONDS of all being back.
    """
    killed: list[str] = []
    while len(killed) < KILLS:
        watch.for_seconds(chance.uniform(0, capture.COMMIT_SECONDS / 2))
        alive = processes(service)
        likely = {name: chance.random() ** (1 / _VICTIMS[name]) for name in sorted(alive)}
        names = sorted(likely, key=lambda name: (name not in killed, likely[name]))
        victims = names[-chance.randint(4, 5) :]
        for victim in victims:
            for pid in alive[victim]:
                with contextlib.suppress(ProcessLookupError):  # went with its parent
                    os.kill(pid, signal.SIGKILL)
            watch.for_seconds(chance.uniform(0, 0.5))
        killed += victims
        at = back = time.monotonic()
        had = watch.look()
        while watch.look() == had:
            watch.for_seconds(0.1)
            if processes(service).keys() != set(_VICTIMS):
                back = time.monotonic()
            assert time.monotonic() - back < RESUMED_WITHIN_SECONDS, (victims, service.output())
        print(f"{', '.join(victims)} killed at {had}, went on in {time.monotonic() - at:.1f} s")
    return killed


def processes(service: "Service") -> dict[str, list[int]]:
    """Return the pids of those of the victims that are alive."""
    found = {name: [pid] for name, pid in service.supervised.children().items() if name in _VICTIMS}
    if copying := descendants(found["worker"][0]) if "worker" in found else []:
        found["copying"] = copying
    return found


def assert_same(held: dict[tuple[str, str], bytes]) -> None:
    """Compare the archive, read back through the verified path, with the server."""
    placements = Placement.objects.select_related("message__mailbox", "folder")
    found: dict[tuple[str, str], bytes] = {}
    for placement in placements.filter(removed_at=None):
        message = placement.message
        body = reading.opened(message)
        assert not isinstance(body, SpooledBody)
        found[(placement.folder.remote_id, placement.remote_id)] = body
    assert found == held
    assert Message.objects.count() == Placement.objects.count() == len(held) == MESSAGES
