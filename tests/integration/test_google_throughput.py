"""As fast as the quota allows, and no faster; within a bounded memory."""

import gc
import time
import tracemalloc

import pytest

from connectors import registry
from connectors.throttle import Local
from connectors.types import RawMessage, SpooledBody
from tests.servers import google_sources
from tests.servers.gmail import Gmail

#: A minute in four seconds: 15,000 units per minute of the old quota, and its cost of a get.
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
        for number in range(500):
            alice.deliver(b"%d" % number)
        config = google_sources.account(google, alice.address)
        environment = google_sources.environment(
            google, quotas={"google": QUOTA}, throttle=Local()
        )
        with registry.build("google", config, environment) as connector:
            with connector.open(next(connector.mailboxes())) as session:
                [folder] = session.folders()
                refs = [ref for page in session.changes(folder, None) for ref in page.added]
                got = sum(isinstance(a, RawMessage) for a in session.fetch(folder, refs))
        calls = [call for call in google.calls if call.method == "messages.get"]
        seconds = calls[-1].at - calls[0].at
        used = sum(5 for call in calls if call.status == 200) / (seconds * UNITS / WINDOW_SECONDS)
        refused = google.count("messages.get", status=429) / len(calls)
        print(f"{used:.1%} of the quota in {seconds:.1f} s, {refused:.2%} refused")
        assert got == 500
        assert used >= 0.95
        assert refused < 0.01
