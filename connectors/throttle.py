"""What a provider allows per time, kept by all workers together. Public: Budget, Throttle, Local.

The engine gives connectors a Throttle that all workers share (Environment.throttle); `Local` is
for one process. A connector reserves before each request and sleeps as long as it is told.

A budget is a schedule: when its next unit is free. Units are handed out evenly at the budget's
rate; a refusal (`pause`) also slows the rate, and that wears off again: so a quota that is smaller
than its setting, or shared with another program, is found by itself.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

#: So much of an idle budget's window may be used at once: one second of a minute.
BURST_SHARE = 1 / 60
#: A refusal makes a budget so much slower, at most SLOWEST times in all, half of it for this long.
SLOWER, SLOWEST, HALF_LIFE_SECONDS = 1.25, 8.0, 60.0
#: Requests that were under way together are refused together: they count as one.
ONE_REFUSAL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """`units` per `per_seconds`, spent evenly. `name` is the same in every worker: it says whose
    budget it is ("google:project:<id>", "microsoft:mailbox:<id>") and holds no secret."""

    name: str
    units: float
    per_seconds: float


class Throttle(Protocol):
    """Shared by threads, processes and machines. Never raises: without it, the provider's own
    refusals set the pace."""

    def reserve(self, costs: Sequence[tuple[Budget, float]]) -> float:
        """Take `cost` units from each budget; return how many seconds to wait before using them."""

    def pause(self, budget: Budget, seconds: float) -> None:
        """Let nobody use the budget for so long: the provider said so (Retry-After)."""


@dataclasses.dataclass(slots=True)
class _Schedule:
    free_at: float = 0.0
    slow: float = 1.0
    slowed_at: float = 0.0

    def slowness(self, now: float) -> float:
        return float(1 + (self.slow - 1) * 0.5 ** ((now - self.slowed_at) / HALF_LIFE_SECONDS))


class Local:
    """A Throttle of one process. `clock` counts seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._schedules: dict[str, _Schedule] = {}

    def reserve(self, costs: Sequence[tuple[Budget, float]]) -> float:
        now = self._clock()
        wait = 0.0
        with self._lock:
            for budget, cost in costs:
                schedule = self._schedules.setdefault(budget.name, _Schedule())
                at = max(schedule.free_at, now - budget.per_seconds * BURST_SHARE)
                seconds = cost * budget.per_seconds / budget.units
                schedule.free_at = at + seconds * schedule.slowness(now)
                wait = max(wait, at - now)
        return wait

    def pause(self, budget: Budget, seconds: float) -> None:
        now = self._clock()
        with self._lock:
            schedule = self._schedules.setdefault(budget.name, _Schedule())
            schedule.free_at = max(schedule.free_at, now + seconds)
            if now - schedule.slowed_at >= ONE_REFUSAL_SECONDS:
                schedule.slow = min(SLOWEST, schedule.slowness(now) * SLOWER)
                schedule.slowed_at = now
