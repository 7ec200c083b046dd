"""The throttle that all workers share: one schedule for each budget, in Redis.

Redis only makes it shared. Where it is away, each process goes on by its own schedule, and the
provider's refusals set the pace; nothing stops and nothing is lost.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import structlog
from django.conf import settings

from connectors import throttle
from connectors.throttle import Budget, Local

log = structlog.get_logger(__name__)

_TIMEOUT_SECONDS = 1.0
#: So long Redis is not asked again after it failed.
_AWAY_SECONDS = 5.0
_KEPT_MS = 600_000

#: The same arithmetic as connectors.throttle.Local, by Redis's clock. Times are seconds as text:
#: Lua's numbers would reach Redis as integers. Where that clock was set back, all that was written
#: before goes back as far: else everybody would wait for as long.
_SCHEDULE = f"""
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local function read(key)
  local v = redis.call('HMGET', key, 'free_at', 'slow', 'slowed_at', 'written_at')
  local set_back = math.max(0, tonumber(v[4] or '0') - now)
  return tonumber(v[1] or '0') - set_back, tonumber(v[2] or '1'), tonumber(v[3] or '0') - set_back
end
local function slowness(slow, slowed_at)
  return 1 + (slow - 1) * 0.5 ^ ((now - slowed_at) / {throttle.HALF_LIFE_SECONDS})
end
local function write(key, free_at, slow, slowed_at)
  redis.call('HSET', key, 'free_at', string.format('%.6f', free_at),
             'slow', string.format('%.6f', slow), 'slowed_at', string.format('%.6f', slowed_at),
             'written_at', string.format('%.6f', now))
  redis.call('PEXPIRE', key, {_KEPT_MS} + math.max(0, math.ceil((free_at - now) * 1000)))
end
"""

#: ARGV for each key: how long its units take, how far back an idle budget reaches (seconds).
_RESERVE = (
    _SCHEDULE
    + """
local wait = 0
for i, key in ipairs(KEYS) do
  local free_at, slow, slowed_at = read(key)
  local at = math.max(free_at, now - tonumber(ARGV[2 * i]))
  write(key, at + tonumber(ARGV[2 * i - 1]) * slowness(slow, slowed_at), slow, slowed_at)
  wait = math.max(wait, at - now)
end
return string.format('%.6f', wait)
"""
)

_PAUSE = (
    _SCHEDULE
    + f"""
local free_at, slow, slowed_at = read(KEYS[1])
if now - slowed_at >= {throttle.ONE_REFUSAL_SECONDS} then
  slow = math.min({throttle.SLOWEST}, slowness(slow, slowed_at) * {throttle.SLOWER})
  slowed_at = now
end
write(KEYS[1], math.max(free_at, now + tonumber(ARGV[1])), slow, slowed_at)
return '0'
"""
)


class Shared:
    """A Throttle in Redis, with one of this process for when Redis is away. Thread-safe."""

    def __init__(self, url: str) -> None:
        # Half of what a command would load that then asks no provider.
        from redis import Redis, RedisError  # noqa: PLC0415 - see above

        client: Any = Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._reserve = client.register_script(_RESERVE)
        self._pause = client.register_script(_PAUSE)
        self._failure = RedisError
        self._own = Local()
        self._away_until = 0.0

    def reserve(self, costs: Sequence[tuple[Budget, float]]) -> float:
        times: list[float] = []
        for budget, cost in costs:
            times += [
                cost * budget.per_seconds / budget.units,
                budget.per_seconds * throttle.BURST_SHARE,
            ]
        wait = self._ask(self._reserve, [budget for budget, _ in costs], times)
        return self._own.reserve(costs) if wait is None else wait

    def pause(self, budget: Budget, seconds: float) -> None:
        if self._ask(self._pause, [budget], [seconds]) is None:
            self._own.pause(budget, seconds)

    def _ask(self, script: Any, budgets: Sequence[Budget], arguments: list[float]) -> float | None:
        """Run a script; None where Redis is away."""
        if not budgets or time.monotonic() < self._away_until:
            return None
        keys = [f"throttle:{budget.name}" for budget in budgets]
        try:
            return float(script(keys=keys, args=arguments))
        except self._failure as error:
            self._away_until = time.monotonic() + _AWAY_SECONDS
            log.warning("throttle_unavailable", error=type(error).__name__)
            return None


@functools.cache
def shared() -> Shared:
    """Return this process's way to the throttle that all workers share."""
    return Shared(settings.REDIS_URL)
