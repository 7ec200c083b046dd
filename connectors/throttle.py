"""What a provider allows per time, kept by all workers together. Public: Budget, Throttle, Local.

The engine gives connectors a Throttle that all workers share (Environment.throttle); `Local` is
for one process. A connector reserves before each request and sleeps as long as it is told.
"""

import dataclasses
import threading
import time
from collections.abc import Sequence
from typing import Protocol


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


class Local:
    """A Throttle of one process: each budget is a schedule of when its next unit is free."""

    #: So many seconds' worth of an idle budget may be used at once.
    BURST_SECONDS = 1.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at: dict[str, float] = {}

    def reserve(self, costs: Sequence[tuple[Budget, float]]) -> float:
        now = time.monotonic()
        wait = 0.0
        with self._lock:
            for budget, cost in costs:
                at = max(self._free_at.get(budget.name, 0.0), now - self.BURST_SECONDS)
                self._free_at[budget.name] = at + cost * budget.per_seconds / budget.units
                wait = max(wait, at - now)
        return max(0.0, wait)

    def pause(self, budget: Budget, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._lock:
            self._free_at[budget.name] = max(self._free_at.get(budget.name, 0.0), until)
