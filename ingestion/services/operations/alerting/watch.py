"""Finds what is wrong, again and again: an alert is lost with nobody who died.

What a source is in need of is `ingestion.freshness`, as on every page. Damage is not looked for
here: who reads or verifies mail begins that alert, and a verification that finds none ends it.
"""

import datetime as dt
import time
from collections.abc import Collection, Iterator

from django.conf import settings
from django.core.cache import cache
from django.db.models import Max, Min, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from ingestion import expiry, explaining, freshness, index_health
from ingestion.errors import ArchiveUnavailable, WrongArchive
from ingestion.models import Alert, AlertKind, IngestionSource, Message, Pack
from ingestion.packs.store import store
from ingestion.services import alerts
from ingestion.services.alerts import Trouble
from ingestion.services.archive import storage
from ingestion.services.operations import capacity, workers
from ingestion.services.transactions import in_transaction
from ingestion.states import SourceStatus

Kind = AlertKind

#: What is archived all the same, but for these; any other reason means that nothing is.
_FAILURES = frozenset({"mailboxes_unavailable", "folders_failing", "messages_failing"})
#: It is told at so many days before, and when it is over.
_EXPIRES_DAYS = (30, 7, 1, 0)
_FILLS_DAYS = 7.0
_FILLS_SOON_DAYS = 1.0
#: An index that makes no progress for so long, while packs wait, is stuck.
_STUCK = dt.timedelta(hours=1)
_PROGRESS_KEY = "ingestion:index_progress"
#: By queue. Of `control` nobody else tells: it is who looks.
_WAITING = {"sync": "nothing is imported or synced", "index": "search does not find new mail"}


@in_transaction
def look_at_sources() -> None:
    """Open and end the alerts of sources. Idempotent. Opens its own transaction."""
    watched = (Kind.SOURCE_ATTENTION, Kind.SOURCE_FAILURES, Kind.SECRET_EXPIRES)
    _settle([*_needs(), *_expiring()], watched)


def look_at_service() -> None:
    """Open and end the alerts of the whole service. Idempotent. An object store is asked outside,
    its own transaction inside."""
    watched = (Kind.ARCHIVE_STORAGE, Kind.ARCHIVE_IDLE, Kind.INDEX_STUCK)
    _settle([*_storage(), *_idle(), *_index()], watched)


def look_at_workers() -> None:
    """Open and end the alert that a queue has no worker. Idempotent. Waits for workers to answer
    outside, its own transaction inside. While one may be starting, nothing is over."""
    served = workers.serving()
    workers.remember(served)
    states = {queue: state for queue, state in workers.states(served).items() if queue in _WAITING}
    gone = [queue for queue, state in states.items() if state == "gone"]
    if gone or "starting" not in states.values():
        found = [Trouble(Kind.WORKERS_SILENT, None, _without_workers(gone))] if gone else []
        _settle(found, (Kind.WORKERS_SILENT,))


@in_transaction
def _settle(found: list[Trouble], watched: Collection[AlertKind]) -> None:
    alerts.settle(found, watched=watched, over=_over)


def _over(alert: Alert) -> str:
    if alert.source is not None and alert.source.status == SourceStatus.PAUSED:
        return "It is paused."
    return {
        Kind.SECRET_EXPIRES: "The credentials are good for longer.",
        Kind.ARCHIVE_STORAGE: "There is room again.",
        Kind.ARCHIVE_IDLE: "Mail is archived again.",
        Kind.INDEX_STUCK: "Search catches up again.",
        Kind.WORKERS_SILENT: "Workers are at work again.",
    }.get(Kind(alert.kind), "It is well again.")


# -- sources -----------------------------------------------------------------------------------


def _sources() -> QuerySet[IngestionSource]:
    return IngestionSource.objects.filter(deleted_at=None)


def _needs() -> Iterator[Trouble]:
    needing = freshness.needing(_sources())
    sources = IngestionSource.objects.filter(pk__in=needing)
    for source in freshness.read(freshness.judged(sources)):
        found = explaining.reasons(source)
        attention = [reason.text for reason in found if reason.code not in _FAILURES]
        failures = [reason.text for reason in found if reason.code in _FAILURES]
        if attention:
            yield Trouble(Kind.SOURCE_ATTENTION, source, " ".join(attention))
        if failures:
            yield Trouble(Kind.SOURCE_FAILURES, source, " ".join(failures))


def _expiring() -> Iterator[Trouble]:
    for source, day in expiry.known(_sources().exclude(status=SourceStatus.PAUSED)):
        left = expiry.days_left(day)
        stage = sum(left <= days for days in _EXPIRES_DAYS)
        if stage:
            yield Trouble(Kind.SECRET_EXPIRES, source, _expires(day, left), stage)


def _expires(day: dt.date, left: int) -> str:
    if left <= 0:
        return f"The credentials expired on {day}. Store new ones, and when those expire."
    days = "tomorrow" if left == 1 else f"in {left} days"
    return f"The credentials expire {days}, on {day}. Store new ones, and when those expire."


# -- the service -------------------------------------------------------------------------------


def _storage() -> Iterator[Trouble]:
    if not Pack.objects.exists():
        return
    try:
        storage.require()
        room = capacity.room()
    except (WrongArchive, ArchiveUnavailable) as error:
        yield Trouble(Kind.ARCHIVE_STORAGE, None, str(error), stage=3)
        return
    except OSError as error:
        text = f"{store().name} can't be read ({error.strerror}): no mail is archived."
        yield Trouble(Kind.ARCHIVE_STORAGE, None, text, stage=3)
        return
    if room is None:
        return
    days = room.days_left
    free = f"{room.free / 1e9:,.1f} GB are free of {room.total / 1e9:,.1f} GB"
    growth = f"the archive grows by {room.per_day / 1e9:,.2f} GB a day"
    if room.is_low or (days is not None and days <= _FILLS_SOON_DAYS):
        state = "full, and no mail is archived" if room.is_full else "nearly full"
        text = f"The archive's disk is {state}: {free}, {growth}. Make room now."
        yield Trouble(Kind.ARCHIVE_STORAGE, None, text, stage=3 if room.is_full else 2)
    elif days is not None and days <= _FILLS_DAYS:
        text = f"The archive's disk is full in {days:.0f} days: {free}, {growth}. Make room."
        yield Trouble(Kind.ARCHIVE_STORAGE, None, text, stage=1)


def _idle() -> Iterator[Trouble]:
    """Sources look well, and nothing comes: of an empty mailbox that is so, of all it is odd."""
    hours = settings.ALERT_IDLE_HOURS
    since = _sources().filter(status=SourceStatus.ACTIVE).aggregate(at=Min("imported_at"))["at"]
    if not hours or since is None:
        return
    until_now = Message.objects.filter(archived_at__lte=Now())  # by a clock that was ahead
    last = until_now.aggregate(at=Max("archived_at"))["at"] or since
    last = max(last, since)
    if timezone.now() - last > dt.timedelta(hours=hours):
        when = f"{last.astimezone(dt.UTC):%Y-%m-%d %H:%M UTC}"
        text = f"Nothing was archived from any source since {when}. Is mail still delivered there?"
        yield Trouble(Kind.ARCHIVE_IDLE, None, text)


def _index() -> Iterator[Trouble]:
    health, since = index_health.in_all(_sources()), index_health.waiting_since(_sources())
    if health.unreadable_packs:
        text = f"For search: {health}. Mount the archive, or restore it: manage.py verify_archive."
        yield Trouble(Kind.INDEX_STUCK, None, text, stage=1)
    elif (
        since is not None
        and timezone.now() - since > _STUCK
        and _without_progress_seconds(health.indexed) > _STUCK.total_seconds()
    ):
        text = f"For search: {health}, and no more within an hour. See the log of index."
        yield Trouble(Kind.INDEX_STUCK, None, text)


def _without_workers(queues: list[str]) -> str:
    return " ".join(
        f"No worker serves the queue {queue}: {_WAITING[queue]}. {workers.advice(queue)}"
        for queue in queues
    )


def _without_progress_seconds(indexed: int) -> float:
    """Remember how far it was, and since when: lost with the cache, it begins anew."""
    before, since = cache.get(_PROGRESS_KEY) or (None, 0.0)
    now = time.time()
    if before != indexed or since > now:  # the clock was set back
        cache.set(_PROGRESS_KEY, (indexed, now), timeout=None)
        return 0.0
    return now - since
