"""Several machines import into one archive in an object store, each with a disk of its own; processes
and whole machines die, and every message is there exactly once.

MACHINES_KILLS=30 MACHINES_MEGABYTES=150 make it long, and let there be four machines too.
"""

import collections
import contextlib
import dataclasses
import os
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ingestion.services.engine import capture
from ingestion_project.demo.object_store import ObjectStoreServer
from tests.servers.dovecot import Account, Dovecot
from tests.servers.machine import Machine
from tests.servers.own_stack import OwnStack
from tests.servers.slow_link import SlowLink
from tests.servers.stack import packing_processes, wait_for

_KILLS = int(os.environ.get("MACHINES_KILLS", "2"))
_BYTES = int(os.environ.get("MACHINES_MEGABYTES", "8")) * 1_000_000
#: What is killed, in turns: with two machines it begins with the second, with four with the last.
_VICTIMS = ("own worker", "machine", "packing process", "worker")
_ACCOUNTS = 6
_LARGE_BYTES = 4_500_000  # more than is held in memory
_SMALL_BYTES = 4_000
#: Bytes a second around each death, so that something is left in the end; and while it is waited
#: for whoever is to die, which takes its time on a busy machine.
_AROUND_A_DEATH, _MEANWHILE = _BYTES / (6 * _KILLS), 30_000.0
_LARGE_AFTER_SECONDS, _FOR_LARGE = 30.0, 200_000.0
_PATIENCE_SECONDS = 200

pytestmark = [pytest.mark.timeout(1_200 + 60 * _KILLS), pytest.mark.long(seconds=60)]


@pytest.fixture(scope="module")
def stack(object_store: ObjectStoreServer) -> Iterator[OwnStack]:
    environ = {**os.environ, **object_store.env, "ARCHIVE_URL": object_store.url("archive", "many")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.env.items():  # this process reads it too
            patch.setenv(name, value)
        with OwnStack.started(environ) as running:
            yield running


@pytest.mark.parametrize("count", [2, 4] if "MACHINES_KILLS" in os.environ else [2])
def test_machines_that_die_lose_and_double_nothing(
    stack: OwnStack, dovecot: Dovecot, tmp_path: Path, count: int
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    accounts = [an_account(dovecot, chance, large=number == 0) for number in range(_ACCOUNTS)]
    with contextlib.ExitStack() as started:
        link = started.enter_context(
            SlowLink(dovecot.host, dovecot.port, bytes_per_second=_MEANWHILE)
        )
        # One is the service's own, whose supervisor starts its worker again.
        machines = [
            started.enter_context(Machine(tmp_path / f"machine-{number}", stack.shared))
            for number in range(1, count)
        ]
        wait_for(lambda: all(len(machine.processes()) > 1 for machine in machines))
        sources = {
            stack.import_from(dataclasses.replace(account, port=link.port)): account
            for account in accounts
        }
        wait_for(lambda: all(packing(machine.processes()) for machine in machines))
        died = kill_at_random(stack, machines, link, chance)
        assert unfinished(stack, sources), "there was nothing left to interrupt"
        link.bytes_per_second = None
        see_to_the_end(stack, sources)
        print(count, "machines:", dict(died), f"{link.passed / _BYTES:.2f} times the bytes")
    for source, account in sources.items():
        held = dovecot.contents(account.name)
        assert stack.archived(source) == held
        assert stack.message_count(source) == len(set(held.values()))
        # Each pack that a row names is there; what else is there no transaction came to name.
        packs = {row["id"] for row in stack.rows(_PACKS, source)}
        assert packs <= {pack.pack_id for pack in stack.archive.packs(uuid.UUID(source))}


_PACKS = "SELECT id FROM ingestion_pack WHERE source_id = %s"
_WAITING = """
SELECT attempts, worker_deaths, last_error_code, not_before - now() AS waits,
       lease_expires_at - now() AS held, now() - handed_out_at AS handed_out
  FROM ingestion_mailbox WHERE NOT (not_before IS NULL)"""
_UNFINISHED = """
SELECT r.status, r.message FROM ingestion_ingestionsource s
  LEFT JOIN ingestion_run r ON r.source_id = s.id
 WHERE s.id::text = ANY(%s) AND (s.status <> 'active' OR r.finished_at IS NULL)"""


def unfinished(stack: OwnStack, sources: Iterable[str]) -> list[dict[str, Any]]:
    return stack.rows(_UNFINISHED, list(sources))


def see_to_the_end(stack: OwnStack, sources: Iterable[str]) -> None:
    """Fails where nothing is archived for so long; what died often waits before it is tried."""
    went_on, had = time.monotonic(), archived(stack)
    while left := unfinished(stack, sources):
        time.sleep(0.2)
        if archived(stack) > had:
            went_on, had = time.monotonic(), archived(stack)
        if time.monotonic() - went_on > _PATIENCE_SECONDS:
            raise AssertionError(
                f"{had} are archived, and that is all: {left}, {stack.rows(_WAITING)}"
            )


def an_account(dovecot: Dovecot, chance: random.Random, *, large: bool) -> Account:
    """Two folders of mail, of which some lies in both."""
    size = _BYTES // _ACCOUNTS - (_LARGE_BYTES if large else 0)
    mails = [mail(chance, _SMALL_BYTES) for _ in range(max(10, size // _SMALL_BYTES))]
    if large:
        mails.insert(len(mails) // 2, mail(chance, _LARGE_BYTES))
    account = dovecot.account()
    dovecot.preload(account.name, "INBOX", mails)
    dovecot.preload(account.name, "Copies", mails[:5])
    return account


def mail(chance: random.Random, size: int) -> bytes:
    text = chance.randbytes(size // 2).hex().encode()
    return b"Subject: %d\r\n\r\n%s\r\n" % (chance.getrandbits(32), text)


def packing(pids: Iterable[int]) -> list[int]:
    return [found for pid in pids for found in packing_processes(pid)]


def until_some_pack(machines: Sequence[Machine], link: SlowLink) -> list[Machine]:
    """Return the machines that are packing. One that has the large message next does so only once
    that is there, which would take minutes."""
    began = time.monotonic()

    def busy() -> list[Machine]:
        if time.monotonic() - began > _LARGE_AFTER_SECONDS:
            link.bytes_per_second = _FOR_LARGE
        return [machine for machine in machines if packing(machine.processes())]

    return wait_for(busy, _PATIENCE_SECONDS)


def kill_at_random(
    stack: OwnStack, machines: Sequence[Machine], link: SlowLink, chance: random.Random
) -> collections.Counter[str]:
    """Kill a process or a machine in the middle of a mailbox, at random moments and all kinds in
    turns, and see the import go on each time; return how often."""
    died = collections.Counter[str]()
    for number in range(_KILLS):
        busy = until_some_pack(machines, link)
        link.bytes_per_second = _AROUND_A_DEATH
        time.sleep(chance.uniform(0, capture.COMMIT_SECONDS / 2))
        victim = _VICTIMS[(number + len(machines)) % len(_VICTIMS)]
        machine = chance.choice(busy)
        if victim == "machine":
            machine.lose()
            machine.start()
        elif victim == "own worker":
            stack.kill("worker")
        else:
            pids = machine.processes()
            machine.kill(*(packing(pids)[:1] if victim == "packing process" else pids[1:]))
        died[victim] += 1
        had = archived(stack)
        wait_for(lambda had=had: archived(stack) > had, _PATIENCE_SECONDS)  # type: ignore[misc] # bound now
        link.bytes_per_second = _MEANWHILE
        print(number, victim, had)
    return died


def archived(stack: OwnStack) -> int:
    return sum(row["n"] for row in stack.rows("SELECT count(*) AS n FROM ingestion_message"))
