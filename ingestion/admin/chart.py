"""What was archived a day, as a picture: bars drawn here, so that a page needs no script for them.

The bars stretch with the page; words stand beside them as text, so they do not.
"""

import dataclasses
import datetime as dt
from typing import Any

from django.db.models import QuerySet, Sum
from django.utils import timezone
from django.utils.safestring import SafeString

from ingestion.admin import display
from ingestion.amounts import counted
from ingestion.models import ArchivedDay

DAYS = 30
#: The picture's own units: a day is so wide, the tallest bar so high.
_STEP, _BAR, _HEIGHT = 10, 7, 100
_LEAST = 1.5  # a day with little is no day with nothing


@dataclasses.dataclass(frozen=True, slots=True)
class Day:
    day: dt.date
    messages: int
    size_bytes: int

    def __str__(self) -> str:
        messages = counted(self.messages, "message")
        return f"{self.day:%a %d %b}: {messages}, {display.size(self.size_bytes)}"


def days(counted: QuerySet[ArchivedDay]) -> list[Day]:
    """Return the last DAYS days, today last, also those on which nothing came. One query."""
    today = timezone.now().date()
    first = today - dt.timedelta(days=DAYS - 1)
    sums = counted.filter(day__gte=first).order_by().values("day")
    sums = sums.annotate(number=Sum("messages"), size=Sum("size_bytes"))
    found = {
        row["day"]: Day(row["day"], max(0, row["number"]), max(0, row["size"])) for row in sums
    }
    all_days = (first + dt.timedelta(days=number) for number in range(DAYS))
    return [found.get(day, Day(day, 0, 0)) for day in all_days]


def context(shown: list[Day]) -> dict[str, Any]:
    """Return the context of `admin/ingestion/chart.html`."""
    top = _round_above(max(day.messages for day in shown))
    total = sum(day.messages for day in shown)
    size = display.size(sum(day.size_bytes for day in shown))
    return {
        "bars": _bars(shown, top) if total else "",
        "top": f"{top:,}",
        "middle": f"{top // 2:,}" if top > 1 else "",
        "dates": [f"{shown[at].day:%d %b}" for at in (0, len(shown) // 2)],
        "today": counted(shown[-1].messages, "message"),
        "said": f"{counted(total, 'message')} in {len(shown)} days, {size}",
        "days": [day for day in reversed(shown) if day.messages],
    }


def _round_above(number: int) -> int:
    """Return the next 1, 2 or 5 with noughts: what a scale ends with."""
    size = int("1" + "0" * (len(str(max(number, 1))) - 1))
    return next(size * step for step in (1, 2, 5, 10) if size * step >= number)


def _bars(shown: list[Day], top: int) -> SafeString:
    bars = []
    for at, day in enumerate(shown):
        height = max(_LEAST, day.messages * _HEIGHT / top) if day.messages else 0
        # The second rectangle is what the pointer meets: the whole column.
        x = at * _STEP
        bars.append((x + (_STEP - _BAR) / 2, _HEIGHT - height, _BAR, height, x, _STEP, str(day)))
    drawn = display.joined(
        '<g><rect class="ing-bar" x="{}" y="{}" width="{}" height="{}"></rect>'
        '<rect class="ing-bar-column" x="{}" y="0" width="{}" height="100"><title>{}</title></rect>'
        "</g>",
        bars,
    )
    return display.html(
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" aria-hidden="true">{}</svg>',
        len(shown) * _STEP,
        _HEIGHT,
        drawn,
    )
