"""Tells of a database that is gone, which says itself neither what is wrong nor who is told.

So `control` remembers the pings that it last read: in its memory, for who knows a URL can ping it.
"""

import datetime as dt
import time

import structlog
from django.core.cache import cache
from django.db import InterfaceError, OperationalError

from ingestion.models import AlertRule
from ingestion.services.operations.alerting import sending

log = structlog.get_logger(__name__)

#: One that is started anew is away for less.
_GONE_SECONDS = 30.0
_GONE_SINCE_KEY = "ingestion:database_gone_since"
_TOLD_KEY = "ingestion:database_gone_told"
#: Of this process; it looks every ten seconds.
_urls: list[str] = []


def look_at_database() -> None:
    """Read which pings there are; where the database is gone, ping them as `sending` does, each
    minute, that something is wrong. Network."""
    rules = AlertRule.objects.filter(enabled=True, way=AlertRule.Way.PING, owner__is_active=True)
    try:
        _urls[:] = rules.values_list("url", flat=True)
    except (OperationalError, InterfaceError) as error:
        log.warning("database_unavailable", error=type(error).__name__)
        _tell(cache.get_or_set(_GONE_SINCE_KEY, time.time, timeout=None) or time.time())
    else:
        cache.delete_many([_GONE_SINCE_KEY, _TOLD_KEY])


def _tell(since: float) -> None:
    lasts = time.time() - since >= _GONE_SECONDS
    # Of several processes of `control`, one.
    if not lasts or not _urls or not cache.add(_TOLD_KEY, True, sending.PING_EVERY.seconds - 5):
        return
    at = dt.datetime.fromtimestamp(since, dt.UTC)
    wrong = (
        f"The database has not answered since {at:%Y-%m-%d %H:%M UTC}: nothing is archived, and no"
        " page is shown. Nothing is lost, and all goes on when it is back. Look at PostgreSQL;"
        " manage.py doctor says what it answers."
    )
    for url in _urls:
        answer = sending.post_ping(url, wrong=wrong)
        log.warning("database_gone_told", ok=answer.ok)
