"""What was measured: samples, rows of them, and what a row had to reach."""

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping, Sequence


class BenchError(Exception):
    """What was to be measured did not happen; the text says what did."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One single measurement. None: this figure says nothing here, or can't be had."""

    seconds: float | None = None
    messages: int | None = None
    size: int | None = None
    cpu_seconds: float | None = None
    server_cpu_seconds: float | None = None
    database_cpu_seconds: float | None = None
    #: What each process of the service took, the database and the broker included.
    cpu_by_process: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rss_bytes: int | None = None
    commands: int | None = None
    database_milliseconds: float | None = None
    page_milliseconds: float | None = None
    page_cpu_milliseconds: float | None = None

    @property
    def messages_per_second(self) -> float | None:
        return self.messages / self.seconds if self.messages and self.seconds else None

    @property
    def megabytes_per_second(self) -> float | None:
        return self.size / 1e6 / self.seconds if self.size and self.seconds else None


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """A figure beside what it should be; `value` is None where it could not be measured."""

    label: str
    value: float | None
    target: float
    text: str
    margin: float | None
    """How many times better than the target; 1 is just reached, less is missed."""

    @property
    def reached(self) -> bool:
        return self.margin is not None and self.margin >= 1


@dataclasses.dataclass(slots=True)
class Row:
    """One contender in one scenario. `note` says in words what the figures leave out."""

    scenario: str
    contender: str
    samples: list[Sample] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    note: str = ""

    def median(self, figure: str) -> float | None:
        """Return the median of a figure of the samples, None where none has it."""
        values = [v for s in self.samples if (v := getattr(s, figure)) is not None]
        return statistics.median(values) if values else None


def ratio(ours: Row, theirs: Row, *, figure: str = "messages_per_second") -> float | None:
    """Return the median of the rounds' ratios: both ran one after the other in each round, so what
    else the machine was doing fell on both."""
    pairs = [
        (getattr(a, figure), getattr(b, figure))
        for a, b in zip(ours.samples, theirs.samples, strict=False)
    ]
    values = [a / b for a, b in pairs if a and b]
    return statistics.median(values) if values else None


def at_least(label: str, value: float | None, target: float) -> Check:
    shown = "not measured" if value is None else f"{value:.2f}"
    margin = None if value is None else value / target
    return Check(label, value, target, f"{label}: {shown} (≥ {target:g})", margin)


def at_most(
    label: str,
    value: float | None,
    target: float,
    *,
    show: Callable[[float], str] = "{:,.0f}".format,
) -> Check:
    shown = "not measured" if value is None else show(value)
    margin = target / value if value else None
    return Check(label, value, target, f"{label}: {shown} (≤ {show(target)})", margin)


def alternate(rounds: int, contenders: Sequence[tuple[Row, Callable[[], Sample]]]) -> list[Row]:
    """Let the contenders run in turn, `rounds` times; return their rows."""
    for _ in range(rounds):
        for row, run in contenders:
            os.sync()  # nobody pays for what another has left to be written
            row.samples.append(run())
    return [row for row, _ in contenders]
