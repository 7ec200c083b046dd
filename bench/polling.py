"""What it costs to follow thousands of IMAP mailboxes, and who waits how long.

All accounts are one and the same account of a scripted server, as far as the server knows: what is
measured is what a poll takes here, of which process, and not what a server keeps of each.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from bench import processes
from bench.results import BenchError, Row, Sample, at_least, at_most
from bench.service import Service
from bench.stage import Stage
from tests.servers.imap_script import Box, ImapScript
from tests.servers.stack import ROOT

USER, PASSWORD = "me@example.com", "s3cret-canary"
FOLDERS = ("INBOX", *(f"Folder {number}" for number in range(1, 8)))
#: In each of them.
MESSAGES = 3

_INTERVAL_SECONDS = 300
#: What one core is to follow.
_MAILBOXES = 5_000
_PROGRAMS = ("worker", "control", "beat", "postgres", "redis")
#: Of how many something new is fetched, at most: what that costs needs no more, and a machine of
#: two cores is at it for minutes.
_BUSY = 500
_PATIENCE_SECONDS = 180.0
#: For so long it is looked what all this costs while nothing is due.
_REST_SECONDS = 20.0

#: Each had its turn within the first interval of an hour in which nobody was there.
_MAKE_DUE = """UPDATE ingestion_ingestionsource
                  SET next_sync_at = now() - interval '1 hour' + random() * interval '5 minutes'
                WHERE name LIKE %s"""
#: They come back spread over an interval, in which others are measured.
_LET_REST = """UPDATE ingestion_ingestionsource SET next_sync_at = now() + interval '1 day'
                WHERE next_sync_at IS NOT NULL"""
_POLLED = """SELECT m.id, extract(epoch FROM m.last_synced_at)::float FROM ingestion_mailbox m
               JOIN ingestion_ingestionsource s ON s.id = m.source_id
              WHERE s.name LIKE %s AND m.last_synced_at > to_timestamp(%s)"""


class Crowd(ImapScript):
    """Takes any number of connections, and counts none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.password = USER, PASSWORD
        self.boxes = {name.encode(): Box() for name in FOLDERS}
        for box in self.boxes.values():
            for number in range(MESSAGES):
                box.deliver(b"Subject: %d\r\n\r\nOld\r\n" % number)

    @property
    def open_connections(self) -> int:
        return 0


def polls(stage: Stage) -> Iterator[Row]:
    """An hour's outage is over: all mailboxes are due at once."""
    accounts = stage.plan.accounts
    some = min(accounts // 10, _BUSY)
    name = f"{accounts:,} mailboxes of {len(FOLDERS)} folders, after an hour's outage"
    rest, quiet = Row(name, "nothing due"), Row(name, "nothing new")
    busy = Row(f"{some:,} of them", "one new message each")
    with Crowd() as still, Crowd() as moving, stage.another_service() as service:
        stage.say(f"Making {accounts:,} accounts")
        _make(service, accounts, still.port, "quiet")
        _make(service, some, moving.port, "busy")
        rest.samples.append(_rest(rest, service))
        for _ in range(stage.plan.rounds):
            stage.say("Polling all of them")
            quiet.samples.append(_poll(quiet, service, "quiet", accounts))
            moving.boxes[b"INBOX"].deliver(b"Subject: new\r\n\r\n%d\r\n" % time.monotonic_ns())
            try:
                busy.samples.append(_poll(busy, service, "busy", some))
            except BenchError as error:
                busy.note = str(error)
                break
    followed = [_followed_by_a_core(sample) for sample in quiet.samples]
    quiet.checks.insert(
        0, at_least("mailboxes a core follows at 5 min", statistics.median(followed), _MAILBOXES)
    )
    yield from (rest, quiet, busy)


def _followed_by_a_core(sample: Sample) -> float:
    used = (sample.cpu_seconds or 0) + (sample.database_cpu_seconds or 0)
    return _INTERVAL_SECONDS * (sample.messages or 0) / used


def _make(service: Service, accounts: int, port: int, name: str) -> None:
    words = [sys.executable, "-m", "bench.crowd", str(accounts), str(port), name]
    done = subprocess.run(
        words, cwd=ROOT, env=service.env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(f"The accounts could not be made: {done.stderr[-2000:]}")


def _cpu(service: Service) -> dict[str, float]:
    programs = service.supervised.children()
    return {name: processes.cpu_seconds(programs[name]) for name in _PROGRAMS if name in programs}


def _rest(row: Row, service: Service) -> Sample:
    """Return what it takes by the second that all these accounts are there."""
    time.sleep(_REST_SECONDS)  # what was written is analyzed, and caches are filled
    before = _cpu(service)
    time.sleep(_REST_SECONDS)
    used = {name: after - before[name] for name, after in _cpu(service).items()}
    each = ", ".join(f"{name} {1000 * s / _REST_SECONDS:.0f}" for name, s in used.items())
    row.note = f"CPU ms a second: {each}"
    return Sample(
        seconds=_REST_SECONDS,
        cpu_seconds=sum(used.values()) - used["postgres"],
        database_cpu_seconds=used["postgres"],
    )


def _poll(row: Row, service: Service, name: str, accounts: int) -> Sample:
    """Let all be due now; return what it took until each was followed to its end."""
    service.ask(_LET_REST)
    before, server = _cpu(service), time.process_time()
    [(began,)] = service.ask("SELECT extract(epoch FROM clock_timestamp())::float")
    service.ask(_MAKE_DUE, [f"{name} %"])
    # By mailbox: when it was first. The first come back in their turn before the last were polled.
    polled: dict[str, float] = {}
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while len(polled) < accounts:
        if time.monotonic() > deadline:
            seconds, left = f"{_PATIENCE_SECONDS:.0f} s", accounts - len(polled)
            raise BenchError(f"{left:,} of {accounts:,} not polled after {seconds}.")
        time.sleep(1)
        for mailbox, when in service.ask(_POLLED, [f"{name} %", began]):
            polled.setdefault(mailbox, when)
    used = {name: after - before[name] for name, after in _cpu(service).items()}
    waits = [when - began for when in polled.values()]
    each = ", ".join(f"{name} {1000 * seconds / accounts:.1f}" for name, seconds in used.items())
    row.note = f"CPU s of 1,000 polls: {each}"
    median, longest = statistics.median(waits), max(waits)
    row.checks = [at_most("longest wait, of the median", longest / median, 3, show="{:.1f}".format)]
    return Sample(
        seconds=longest,
        messages=accounts,
        cpu_seconds=sum(used.values()) - used["postgres"],
        server_cpu_seconds=time.process_time() - server,
        database_cpu_seconds=used["postgres"],
    )
