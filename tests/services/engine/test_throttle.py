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


def test_two_workers_share_one_budget(budget: Budget) -> None:
    one, other = Shared(settings.REDIS_URL), Shared(settings.REDIS_URL)
    waits = [worker.reserve([(budget, 10)]) for worker in (one, other) * 3]
    assert waits[0] == waits[1] == 0  # one second of an idle budget at once
    assert [round(wait) for wait in waits[2:]] == [1, 2, 3, 4]


def test_a_pause_of_one_worker_holds_for_the_other(budget: Budget) -> None:
    one, other = Shared(settings.REDIS_URL), Shared(settings.REDIS_URL)
    one.pause(budget, 30)
    assert 29 < other.reserve([(budget, 1)]) <= 30


def test_refusals_slow_the_shared_budget(budget: Budget) -> None:
    shared = Shared(settings.REDIS_URL)
    shared.pause(budget, 1)
    first, second = (shared.reserve([(budget, 100)]) for _ in range(2))
    assert 12.3 < second - first <= 12.5  # ten seconds, and a quarter more


def test_a_budget_that_nobody_uses_leaves_nothing_behind(budget: Budget) -> None:
    Shared(settings.REDIS_URL).reserve([(budget, 1)])
    left = redis.Redis.from_url(settings.REDIS_URL).pttl(f"throttle:{budget.name}")
    assert isinstance(left, int)
    assert 0 < left <= 610_000


def test_without_redis_a_worker_goes_on_by_itself(budget: Budget) -> None:
    away = Shared("redis://127.0.0.1:1/0")
    began = time.monotonic()
    waits = [away.reserve([(budget, 10)]) for _ in range(4)]
    away.pause(budget, 30)
    assert time.monotonic() - began < 25
    assert [round(wait) for wait in waits] == [0, 0, 1, 2]
    assert away.reserve([(budget, 1)]) > 29
