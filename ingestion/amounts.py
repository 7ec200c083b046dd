"""Amounts and times, as people read them."""

import datetime as dt

from django.utils import timezone


def counted(number: int, noun: str) -> str:
    """Say "1 message", "2 messages", "1,000 mailboxes"."""
    plural = f"{noun}es" if noun.endswith("x") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def time_of(at: dt.datetime, now: dt.datetime) -> str:
    """Say a time in UTC, with its date where that is not today's."""
    at = at.astimezone(dt.UTC)
    form = "%H:%M UTC" if at.date() == now.astimezone(dt.UTC).date() else "%Y-%m-%d %H:%M UTC"
    return f"{at:{form}}"


def moment(at: dt.datetime) -> str:
    """Say a past time in UTC, and how long ago it is: "02:31 UTC (27 min ago)"."""
    now = timezone.now()
    seconds = max(0, (now - at).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (size == 60 and seconds >= size):
            return f"{time_of(at, now)} ({seconds / size:.0f} {unit} ago)"
    return f"{time_of(at, now)} (just now)"
