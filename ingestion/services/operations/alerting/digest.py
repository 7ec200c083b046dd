"""The digest: once a day or a week, how the sources that a rule's owner may see are doing."""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum
from django.urls import reverse
from django.utils import timezone

from ingestion import expiry, explaining, freshness, queries
from ingestion.amounts import counted, moment
from ingestion.models import AlertRule, ArchivedDay, IngestionSource, Pack
from ingestion.services.operations import capacity
from ingestion.services.operations.alerting.mail import Mail, one_line

#: UTC.
_HOUR = 6
#: Of how many whole days it tells, and what these are called.
_SPANS = {AlertRule.Digest.DAILY: (1, "yesterday"), AlertRule.Digest.WEEKLY: (7, "last week")}
#: So many sources are listed: those that need somebody first, then who archived most.
_LISTED = 50
_EXPIRES_DAYS = 30


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A source. `messages` and `size`: of the days that are told of."""

    name: str
    up_to: str
    messages: int
    size: str
    failures: int
    needs: list[str]
    path: str

    @property
    def came(self) -> str:
        return f"{self.messages:,}"

    @property
    def failed(self) -> str:
        return f"{self.failures:,}"


def next_at(which: str, after: dt.datetime) -> dt.datetime | None:
    """Return when the next digest is due after that: in the morning, of a week on Monday; None for
    none."""
    if not which:
        return None
    days = _SPANS[AlertRule.Digest(which)][0]
    morning = after.astimezone(dt.UTC).replace(hour=_HOUR, minute=0, second=0, microsecond=0)
    if which == AlertRule.Digest.WEEKLY:
        morning -= dt.timedelta(days=morning.weekday())
    return morning if morning > after else morning + dt.timedelta(days=days)


def of(rule: AlertRule) -> Mail:
    """Write it, with the rights of the rule's owner."""
    days, span = _SPANS[AlertRule.Digest(rule.digest)]
    today = timezone.now().date()
    told_of = (today - dt.timedelta(days=days), today - dt.timedelta(days=1))
    sources = queries.visible_sources(rule.owner)
    if rule.sources is not None:
        sources = sources.filter(pk__in=rule.sources)
    found = freshness.verdicts(sources)
    named = {one.pk for one in found if freshness.needs_somebody(one)}
    judged = freshness.judged_before(found, named.union(explaining.named_by_summary(found)))
    rows = _rows(sources, found, judged, told_of)
    needing = [row for row in rows if row.needs]
    messages = sum(row.messages for row in rows)
    sentence = explaining.summed_up(found, judged)
    number = len(needing)
    need = f"{number:,} {'source needs' if number == 1 else 'sources need'} somebody"
    archived = counted(messages, "message")
    return Mail(
        subject=f"{archived} archived {span}; {need if needing else 'all is well'}",
        template="digest",
        about={
            "rule": rule.name,
            "span": span,
            "freshness": sentence.text,
            "needing": needing[:_LISTED],
            "rows": rows[:_LISTED],
            "needing_more": f"{number - _LISTED:,}" if number > _LISTED else "",
            "more": f"{len(rows) - _LISTED:,}" if len(rows) > _LISTED else "",
            "messages": archived,
            "failures": counted(sum(row.failures for row in rows), "message"),
            "storage": _storage(sources, rule),
        },
        key=f"{rule.pk} digest {rule.digest_at}",
    )


def _rows(
    sources: QuerySet[IngestionSource],
    found: list[freshness.Verdict],
    judged: Mapping[uuid.UUID, Any],
    days: tuple[dt.date, dt.date],
) -> list[Row]:
    """Write a row for each source, those that need somebody first. `judged`: at least these."""
    counted = ArchivedDay.objects.filter(source__in=sources.values("pk"), day__range=days)
    new = {
        pk: (messages, size)
        for pk, messages, size in counted.order_by()
        .values_list("source")
        .annotate(n=Sum("messages"), size=Sum("size_bytes"))
    }
    up_to = {one.pk: moment(one.archived_up_to) for one in found if one.archived_up_to}
    rows = []
    for source in queries.with_counts(sources):
        messages, size = new.get(source.pk, (0, 0))
        row = Row(
            name=one_line(source.name),
            up_to=up_to.get(source.pk, ""),
            messages=messages,
            size=_size(size),
            failures=source.failed_message_count,
            needs=[one_line(text, 500) for text in _needs(source, judged.get(source.pk))],
            path=reverse("admin:ingestion_ingestionsource_change", args=[source.pk]),
        )
        rows.append(row)
    return sorted(rows, key=lambda row: (not row.needs, -row.messages, row.name))


def _needs(source: IngestionSource, judged: Any) -> list[str]:
    told = [str(reason) for reason in explaining.reasons(judged)] if judged else []
    day = expiry.of(source)
    if day is not None and expiry.days_left(day) <= _EXPIRES_DAYS:
        told.append(f"The credentials expire on {day}.")
    return told


def _storage(sources: QuerySet[IngestionSource], rule: AlertRule) -> str:
    """Say what the packs take; who sees the whole service is told of the disk as well."""
    ours = Q(source__in=sources.values("pk"))
    packs = Pack.objects.filter(ours).aggregate(n=Count("pk"), size=Sum("size_bytes"))
    text = f"{_size(packs['size'] or 0)} in {counted(packs['n'], 'pack')}."
    if not queries.sees_service(rule.owner):
        return text
    text = f"{text} The archive grows by {_size(int(capacity.per_day()))} a day."
    try:
        room = capacity.room()
    except OSError:
        return f"{text} Its disk can't be read."
    if room is None:
        return text
    days = room.days_left
    lasts = f", enough for {days:,.0f} days" if days is not None and days < 3_650 else ""
    return f"{text} Of its disk {_size(room.free)} are free{lasts}."


def _size(size_bytes: int) -> str:
    amount, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
