"""The throttle in a real Redis: one schedule for all processes; without Redis, each its own."""

import time
import uuid

import pytest
import redis
from django.conf import settings

from connectors.throttle import Budget
from ingestion.services.engine.throttle import Shared


@pytest.fixture
def budget() -> Budget:
    return Budget(f"test:{uuid.uuid4()}", units=600, per_seconds=60)


def _assert_from(began: float, waits: list[float], seconds: list[int]) -> None:
    """Compare with what the schedule says at its begin: what has passed since is waited for no more."""
    passed = time.monotonic() - began
    for wait, exact in zip(waits, seconds, strict=True):
        assert exact - passed - 0.01 <= wait <= exact + 0.01


def test_two_workers_share_one_budget(budget: Budget) -> None:
    began = time.monotonic()
    one, other = Shared(settings.REDIS_URL), Shared(settings.REDIS_URL)
    waits = [worker.reserve([(budget, 10)]) for worker in (one, other) * 3]
    assert waits[0] == waits[1] == 0  # one second of an idle budget at once
    _assert_from(began, waits[2:], [1, 2, 3, 4])


def test_a_pause_of_one_worker_holds_for_the_other(budget: Budget) -> None:
    one, other = Shared(settings.REDIS_URL), Shared(settings.REDIS_URL)
    began = time.monotonic()
    one.pause(budget, 30)
    _assert_from(began, [other.reserve([(budget, 1)])], [30])


def test_where_redis_clock_is_set_back_nobody_waits_for_as_long(budget: Budget) -> None:
    shared = Shared(settings.REDIS_URL)
    began = time.monotonic()
    shared.pause(budget, 30)
    stored = redis.Redis.from_url(settings.REDIS_URL)
    for name in ("free_at", "slowed_at", "written_at"):
        stored.hincrbyfloat(f"throttle:{budget.name}", name, 3600)
    _assert_from(began, [shared.reserve([(budget, 1)])], [30])


def test_refusals_slow_the_shared_budget(budget: Budget) -> None:
    shared = Shared(settings.REDIS_URL)
    began = time.monotonic()
    shared.pause(budget, 1)
    first, second = (shared.reserve([(budget, 100)]) for _ in range(2))
    passed = time.monotonic() - began
    assert 12.49 - 2 * passed <= second - first <= 12.5  # ten seconds, and a quarter more


def test_a_budget_that_nobody_uses_leaves_nothing_behind(budget: Budget) -> None:
    Shared(settings.REDIS_URL).reserve([(budget, 1)])
    left = redis.Redis.from_url(settings.REDIS_URL).pttl(f"throttle:{budget.name}")
    assert isinstance(left, int)
    assert 0 < left <= 610_000


def test_without_redis_a_worker_goes_on_by_itself(budget: Budget) -> None:
    away = Shared("redis://127.0.0.1:1/0")
    began = time.monotonic()
    waits = [away.reserve([(budget, 10)]) for _ in range(4)]
    _assert_from(began, waits, [0, 0, 1, 2])
    began = time.monotonic()
    away.pause(budget, 30)
    _assert_from(began, [away.reserve([(budget, 1)])], [30])
