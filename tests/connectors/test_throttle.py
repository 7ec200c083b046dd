"""A budget is spent evenly, never faster than it allows, and slower for a while after a refusal."""

from connectors.throttle import Budget, Local

MINUTE = Budget("a", units=600, per_seconds=60)  # ten a second


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def spent(throttle: Local, clock: Clock, seconds: float, budget: Budget = MINUTE) -> int:
    """Use as much as is allowed, one unit at a time; return how much that was."""
    end, count = clock.now + seconds, 0
    while True:
        wait = throttle.reserve([(budget, 1)])
        if clock.now + wait > end:
            clock.now = end
            return count
        clock.now += wait
        count += 1


def test_a_budget_is_used_up_and_not_exceeded() -> None:
    clock = Clock()
    assert 600 <= spent(Local(clock=clock), clock, 60) <= 611  # one second of it at once


def test_an_idle_budget_is_no_savings_account() -> None:
    clock = Clock()
    throttle = Local(clock=clock)
    clock.now += 3_600
    assert spent(throttle, clock, 10) <= 111


def test_the_scarcest_budget_decides() -> None:
    clock = Clock()
    throttle = Local(clock=clock)
    small = Budget("b", units=60, per_seconds=60)
    waits = [throttle.reserve([(MINUTE, 1), (small, 1)]) for _ in range(5)]
    assert [round(wait) for wait in waits] == [0, 0, 1, 2, 3]


def test_a_pause_holds_for_everybody() -> None:
    clock = Clock()
    throttle = Local(clock=clock)
    throttle.pause(MINUTE, 30)
    assert throttle.reserve([(MINUTE, 1)]) >= 30
    assert throttle.reserve([(Budget("c", 600, 60), 1)]) == 0


def test_refusals_slow_a_budget_down_and_are_forgotten() -> None:
    clock = Clock()
    throttle = Local(clock=clock)
    usual = spent(throttle, clock, 10)
    for _ in range(3):
        clock.now += 2
        throttle.pause(MINUTE, 0)
    assert spent(throttle, clock, 10) < 0.65 * usual
    clock.now += 1_200
    assert spent(throttle, clock, 10) >= usual


def test_requests_refused_together_count_as_one() -> None:
    clock = Clock()
    throttle = Local(clock=clock)
    usual = spent(throttle, clock, 10)
    for _ in range(10):
        throttle.pause(MINUTE, 0)
    assert spent(throttle, clock, 10) > 0.7 * usual


def test_a_quota_that_is_half_its_setting_is_found_without_many_refusals() -> None:
    clock, asked = Clock(), 0
    throttle = Local(clock=clock)
    granted: list[float] = []
    refused = 0
    while clock.now < 1_000 + 1_800:
        clock.now += throttle.reserve([(MINUTE, 1)])
        asked += 1
        recent = sum(at > clock.now - 60 for at in granted[-400:])
        if recent < MINUTE.units / 2:
            granted.append(clock.now)
        else:
            refused += 1
            throttle.pause(MINUTE, 1)
    assert refused / asked < 0.05
    assert len(granted) > 0.9 * (MINUTE.units / 2) * 30
