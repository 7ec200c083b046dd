"""As fast as the quota allows, and no faster; within a bounded memory."""

import itertools
import json
import random
import subprocess
import sys
import time

import pytest

from connectors import registry
from connectors.throttle import Local
from connectors.types import RawMessage, SpooledBody
from tests.servers import google_sources
from tests.servers.gmail import Gmail

#: A minute in six seconds: 15,000 units per minute of the old quota, and its cost of a get.
WINDOW_SECONDS = 6.0
UNITS = 15_000 * WINDOW_SECONDS / 60
QUOTA = {
    "user": UNITS, "project": 1e9, "get": 5, "list": 5, "history": 2, "connections": 8,
    "per_seconds": WINDOW_SECONDS,
}  # fmt: skip


def test_the_quota_is_in_use_and_hardly_anything_refused() -> None:
    with Gmail() as google:
        google.costs["messages.get"] = 5
        google.quota_per_user, google.quota_seconds = UNITS, WINDOW_SECONDS
        google.faults.latency_seconds, google.faults.retry_after = 0.05, None
        alice = google.add("alice@example.com")
        for number in range(420):
            alice.deliver(b"%d" % number)
        config = google_sources.account(google, alice.address)
        environment = google_sources.environment(google, quotas={"google": QUOTA}, throttle=Local())
        connector = registry.build("google", config, environment)
        with connector, connector.open(next(connector.mailboxes())) as session:
            [folder] = session.folders()
            refs = [ref for page in session.changes(folder, None) for ref in page.added]
            got = sum(isinstance(a, RawMessage) for a in session.fetch(folder, refs))
        calls = [call for call in google.calls if call.method == "messages.get"]
        seconds = calls[-1].at - calls[0].at
        used = sum(5 for call in calls if call.status == 200) / (seconds * UNITS / WINDOW_SECONDS)
        refused = google.count("messages.get", status=429) / len(calls)
        print(f"{used:.1%} of the quota in {seconds:.1f} s, {refused:.2%} refused")
        assert got == 420
        assert used >= 0.8  # on a quiet machine more than 0.95
        assert refused < 0.01


_MEASURE = r"""
import json, re, sys
from pathlib import Path
from connectors import registry
from connectors.config import Environment

def peak_mb():
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

config, endpoints, quota = json.load(sys.stdin)
environment = Environment(endpoints=endpoints, quotas={"google": quota})
connector = registry.build("google", config, environment)
with connector, connector.open(next(connector.mailboxes())) as session:
    [folder] = session.folders()
    refs = [ref for page in session.changes(folder, None) for ref in page.added]
    before, size = peak_mb(), 0
    for answer in session.fetch(folder, refs):
        size += answer.body.size
        answer.body.close()
print(json.dumps([size, peak_mb() - before]))
"""


@pytest.mark.parametrize("packs_well", [False, True])
def test_large_messages_are_not_held_in_copies(packs_well: bool) -> None:
    """Three messages of 25 MB, four connections: one is read at a time, a third longer in base64.

    A stranger may send what packs 200 to 1: all of a message in the first pieces of an answer.
    """
    with Gmail() as google:
        google.gzip = packs_well  # else it takes this test's time
        alice = google.add("alice@example.com")
        for _ in range(3):
            alice.deliver(
                bytes(25_000_000) if packs_well else random.Random(1).randbytes(25_000_000)
            )
        config = google_sources.account(google, alice.address)
        given = json.dumps([config, google.endpoints, google_sources.AMPLE])
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE],
            input=given,
            text=True,
            capture_output=True,
            check=True,
        )
    size, megabytes = json.loads(done.stdout)
    print(f"peak {megabytes:.0f} MB")
    assert size == 75_000_000
    assert megabytes < 75


def test_few_large_messages_wait_on_disk() -> None:
    with Gmail() as google:
        alice = google.add("alice@example.com")
        for _ in range(20):
            alice.deliver(bytes(4_500_000))
        config = google_sources.account(google, alice.address)
        connector = registry.build("google", config, google_sources.environment(google))
        with connector, connector.open(next(connector.mailboxes())) as session:
            [folder] = session.folders()
            refs = [ref for page in session.changes(folder, None) for ref in page.added]
            answers = session.fetch(folder, refs)
            taken = [next(answers)]
            until = time.monotonic() + 2.0  # all twenty take less
            while time.monotonic() < until and google.count("messages.get") < len(refs):
                time.sleep(0.05)
            ahead = google.count("messages.get")
            for answer in itertools.chain(taken, answers):
                assert isinstance(answer, RawMessage)
                assert isinstance(answer.body, SpooledBody)
                answer.body.close()
    assert ahead < 13
