"""Alerts: open one for a trouble, close it when that is over, owe both to who wants to be told.

    found -> open: told once -> looks well -> stays so for a while -> over: told
               ^-- worse: told again   |
               +------- comes back ----+

Written from every room. What can be seen in the rows is found again and again by
`operations.alerting.watch`, so that no alert is lost with a worker; what can't is begun by who met
it, in its transaction. A trouble that comes and goes is damped: each time that it is back within a
day, it has to stay away twice as long before it counts as over.
"""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence

from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from ingestion import queries
from ingestion.models import Alert, AlertKind, AlertNotice, AlertRule, IngestionSource
from ingestion.models.webhook import Event
from ingestion.services.events import Happening, announce_all, held

Change = AlertNotice.Change

#: How long a trouble is away before it is over; twice as long each time that it came back.
_CALM = dt.timedelta(minutes=1)
_MOST_CALM = dt.timedelta(hours=6)
_BACK_WITHIN = dt.timedelta(days=1)
_MOST_RELAPSES = 100

_Key = tuple[str, uuid.UUID | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong now. `stage`: how bad; who was told of a lower one is told again."""

    kind: AlertKind
    source: IngestionSource | None
    message: str
    stage: int = 0

    @property
    def key(self) -> _Key:
        return self.kind, self.source.pk if self.source else None


@dataclasses.dataclass(frozen=True, slots=True)
class _News:
    kind: str
    change: Change
    source: IngestionSource | None
    message: str
    alert: Alert | None = None

    @property
    def source_id(self) -> uuid.UUID | None:
        return self.source.pk if self.source else None


def begin(troubles: Iterable[Trouble]) -> None:
    """Open an alert of each trouble that has none. Idempotent. Call inside a transaction."""
    _one_at_a_time()
    _begin({trouble.key: trouble for trouble in troubles}, _open())


def end(kind: AlertKind, sources: Collection[uuid.UUID | None], message: str) -> None:
    """End the open alerts of a kind, of these sources (None: of the service). Idempotent. Call
    inside a transaction."""
    _one_at_a_time()
    found = [alert for key, alert in _open().items() if key[0] == kind and key[1] in sources]
    _end([(alert, message) for alert in found])


def end_all(source: uuid.UUID, message: str) -> None:
    """End all open alerts of a source. Idempotent. Call inside a transaction, before rows of the
    source are locked."""
    _one_at_a_time()
    _end([(alert, message) for key, alert in _open().items() if key[1] == source])


def happened(kind: AlertKind, source: IngestionSource, message: str) -> None:
    """Owe something that has no duration to who wants to be told. Call inside the transaction that
    does it."""
    _tell([_News(kind, Change.HAPPENED, source, message)])


def settle(
    found: Iterable[Trouble],
    *,
    watched: Collection[AlertKind],
    over: Callable[[Alert], str],
) -> None:
    """Make the open alerts of the kinds `watched` those of all troubles that were found. `over`
    says what is told of one that is over. Idempotent. Call inside a transaction."""
    _one_at_a_time()
    troubles, opened = {trouble.key: trouble for trouble in found}, _open()
    _begin(troubles, opened)
    now = timezone.now()
    gone = [a for key, a in opened.items() if a.kind in watched and key not in troubles]
    fresh = [alert.pk for alert in gone if alert.well_since is None]
    if fresh:
        Alert.objects.filter(pk__in=fresh).update(well_since=now)
    _end(
        [
            (alert, over(alert))
            for alert in gone
            if alert.well_since is not None and now - alert.well_since >= _calm(alert)
        ]
    )


def _calm(alert: Alert) -> dt.timedelta:
    times: int = 2 ** min(alert.relapses, 16)
    return min(_CALM * times, _MOST_CALM)


def _one_at_a_time() -> None:
    """Wait for others that open or end alerts, until the end of the transaction: they are few."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('alerts'))")


def _open() -> dict[_Key, Alert]:
    rows = Alert.objects.filter(ended_at=None).select_related("source")
    return {(alert.kind, alert.source_id): alert for alert in rows}


def _begin(troubles: dict[_Key, Trouble], opened: dict[_Key, Alert]) -> None:
    before = _ended_of_late()
    new, news, changed = [], [], []
    for key, trouble in troubles.items():
        alert = opened.get(key)
        if alert is None:
            relapses = min(before.get(key, -1) + 1, _MOST_RELAPSES)
            alert = Alert(
                kind=trouble.kind,
                source=trouble.source,
                message=trouble.message,
                stage=trouble.stage,
                relapses=relapses,
                began_at=timezone.now(),
            )
            new.append(alert)
        elif trouble.stage <= alert.stage:
            if alert.message != trouble.message or alert.well_since is not None:
                alert.message, alert.well_since = trouble.message, None
                changed.append(alert)
            continue
        else:
            alert.message, alert.stage, alert.well_since = trouble.message, trouble.stage, None
            changed.append(alert)
        news.append(_News(alert.kind, Change.BEGAN, trouble.source, trouble.message, alert))
    Alert.objects.bulk_create(new)
    Alert.objects.bulk_update(changed, ["message", "stage", "well_since"])
    _tell(news)


def _ended_of_late() -> dict[_Key, int]:
    """Return how often what was over within a day had come back until then."""
    rows = Alert.objects.filter(ended_at__gt=Now() - _BACK_WITHIN).order_by("ended_at")
    return {(a.kind, a.source_id): a.relapses for a in rows.only("kind", "source", "relapses")}


def _end(over: Sequence[tuple[Alert, str]]) -> None:
    if not over:
        return
    Alert.objects.filter(pk__in=[alert.pk for alert, _ in over]).update(ended_at=timezone.now())
    _tell([_News(a.kind, Change.ENDED, a.source, message, a) for a, message in over])


def _tell(news: Sequence[_News]) -> None:
    """Owe it to each rule that wants it, with the rights of the rule's owner, and to webhooks."""
    if not news:
        return
    rules = AlertRule.objects.filter(enabled=True, owner__is_active=True)
    rules = rules.exclude(way=AlertRule.Way.PING).select_related("owner")
    may_hear = queries.Hearers(one.source_id for one in news)
    owed = [
        AlertNotice(
            rule=rule,
            alert=one.alert,
            kind=one.kind,
            change=one.change,
            source=one.source,
            message=one.message,
        )
        for rule in rules
        for one in news
        if _wants(rule, one) and may_hear(rule.owner, one.source_id)
    ]
    there = held("alertrule", {one.rule_id for one in owed})
    AlertNotice.objects.bulk_create([one for one in owed if one.rule_id in there])
    announce_all([_event(one, one.alert) for one in news if one.alert is not None])


def _wants(rule: AlertRule, one: _News) -> bool:
    return one.kind in rule.kinds and (rule.sources is None or one.source_id in rule.sources)


def _event(one: _News, alert: Alert) -> Happening:
    event = Event.ALERT_BEGAN if one.change == Change.BEGAN else Event.ALERT_ENDED
    about = {"alert": str(alert.pk), "kind": one.kind, "message": one.message}
    return Happening(event, one.source, about | {"since": alert.began_at.isoformat()})
