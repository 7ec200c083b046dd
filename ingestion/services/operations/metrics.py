"""What a monitoring system is told: Prometheus metrics of the rows, made anew for each scrape.

One collector over the database, so that any process answers for the whole service, and a restart
resets nothing. A constant number of queries; labels are sources and codes, never mailboxes, for of
those there may be ten thousand. docs/monitoring.md has the list, a dashboard and alert rules.
"""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from django.db import InterfaceError, OperationalError
from django.db.models import Count, Sum
from django.db.models.functions import Now
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingestion import expiry, explaining, freshness
from ingestion.models import Alert, FailedMessage, IngestionSource, Mailbox, Pack, Run
from ingestion.packs.store import store
from ingestion.services.archive import compaction
from ingestion.services.engine import due_work, heartbeat
from ingestion.services.operations.alerting import sending

_SOURCE = ("source", "name")


class Rows(Collector):
    """Collects from the rows, all of them, whoever owns them."""

    def collect(self) -> Iterator[Metric]:
        try:
            found, answers = list(_rows()), 1
        except (OperationalError, InterfaceError):
            found, answers = [], 0
        yield GaugeMetricFamily("ingestion_database_up", "1 where the database answers.", answers)
        yield from found
        yield from _dispatcher()


def _rows() -> Iterator[Metric]:
    sources = freshness.read(freshness.judged(IngestionSource.objects.filter(deleted_at=None)))
    yield from _sources(sources)
    yield from _failures(sources)
    yield from _mailboxes()
    yield from _work()
    yield from _archive()
    yield from _alerts()


def _sources(sources: list[Any]) -> Iterator[Metric]:
    status = GaugeMetricFamily(
        "ingestion_source_status", "1 for the status a source has.", labels=(*_SOURCE, "status")
    )
    attention = GaugeMetricFamily(
        "ingestion_source_needs_attention",
        "1 for each reason why a source needs somebody.",
        labels=(*_SOURCE, "code"),
    )
    up_to = GaugeMetricFamily(
        "ingestion_source_archived_up_to_timestamp_seconds",
        "Up to when all followed mailboxes of a source are archived; absent before the first time.",
        labels=_SOURCE,
    )
    messages = CounterMetricFamily(
        "ingestion_source_messages", "Messages archived of a source.", labels=_SOURCE
    )
    size = CounterMetricFamily(
        "ingestion_source_archived_bytes",
        "Bytes archived of a source, unpacked.",
        labels=_SOURCE,
    )
    expire = GaugeMetricFamily(
        "ingestion_source_credentials_expire_timestamp_seconds",
        "When a source's credentials expire; absent where nobody knows.",
        labels=_SOURCE,
    )
    for source in sources:
        names = (str(source.pk), source.name)
        if (day := expiry.of(source)) is not None:
            midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
            expire.add_metric(names, midnight.timestamp())
        status.add_metric((*names, source.status), 1)
        for reason in explaining.reasons(source):
            attention.add_metric((*names, reason.code), 1)
        if source.archived_up_to is not None:
            up_to.add_metric(names, source.archived_up_to.timestamp())
        messages.add_metric(names, source.message_count)
        size.add_metric(names, source.archived_bytes)
    yield from (status, attention, up_to, messages, size, expire)


def _failures(sources: list[Any]) -> Iterator[Metric]:
    failed = GaugeMetricFamily(
        "ingestion_failed_messages",
        "Messages that could not be had, and are tried again.",
        labels=(*_SOURCE, "code"),
    )
    names = {source.pk: source.name for source in sources}
    rows = FailedMessage.objects.order_by().values_list("mailbox__source", "code")
    for source_id, code, number in rows.annotate(n=Count("pk")):
        if source_id in names:
            failed.add_metric((str(source_id), names[source_id], code), number)
    yield failed


def _mailboxes() -> Iterator[Metric]:
    states = GaugeMetricFamily("ingestion_mailboxes", "Mailboxes by state.", labels=("state",))
    waiting = GaugeMetricFamily(
        "ingestion_mailboxes_waiting",
        "Mailboxes that wait to be tried again, by why: what providers refuse, and ask to wait.",
        labels=("code",),
    )
    mailboxes = Mailbox.objects.filter(source__deleted_at=None).order_by()
    for state, number in mailboxes.values_list("state").annotate(n=Count("pk")):
        states.add_metric((state,), number)
    held = mailboxes.filter(run__isnull=False, attempts__gt=0, not_before__gt=Now())
    for code, number in held.values_list("last_error_code").annotate(n=Count("pk")):
        waiting.add_metric((code,), number)
    yield from (states, waiting)


def _work() -> Iterator[Metric]:
    due = GaugeMetricFamily(
        "ingestion_due_work", "Rows that are due, by the kind of work.", labels=("kind",)
    )
    age = GaugeMetricFamily(
        "ingestion_due_work_oldest_seconds",
        "How long the row has waited that waits longest.",
        labels=("kind",),
    )
    for name, number, seconds in due_work.backlog():
        due.add_metric((name,), number)
        age.add_metric((name,), seconds)
    yield from (due, age)
    running = GaugeMetricFamily(
        "ingestion_running", "Imports and syncs under way, by kind.", labels=("kind",)
    )
    rows = Run.objects.filter(finished_at=None).order_by().values_list("kind")
    for kind_name, number in rows.annotate(n=Count("pk")):
        running.add_metric((kind_name,), number)
    yield running
    yield GaugeMetricFamily(
        "ingestion_leases",
        "Mailboxes that a worker holds now.",
        Mailbox.objects.filter(lease_expires_at__gt=Now()).count(),
    )


def _archive() -> Iterator[Metric]:
    packs = Pack.objects.aggregate(n=Count("pk"), size=Sum("size_bytes"))
    yield GaugeMetricFamily("ingestion_packs", "Packs in the archive.", packs["n"])
    yield GaugeMetricFamily(
        "ingestion_stored_bytes", "Bytes that the packs take.", packs["size"] or 0
    )
    yield GaugeMetricFamily(
        "ingestion_small_packs",
        "Packs that are merged once there are enough.",
        compaction.small_packs().count(),
    )
    replaced = Pack.objects.filter(replaced_at__isnull=False).aggregate(size=Sum("size_bytes"))
    yield GaugeMetricFamily(
        "ingestion_replaced_bytes",
        "Bytes of packs that were merged into others and are to be removed.",
        replaced["size"] or 0,
    )
    try:
        room = store().room()
        if room is None or store().mark() is None:  # what is beneath the mount point is another's
            return
    except OSError:
        return
    yield GaugeMetricFamily(
        "ingestion_archive_free_bytes", "Bytes that are free where the archive is.", room[0]
    )


def _alerts() -> Iterator[Metric]:
    opened = GaugeMetricFamily("ingestion_alerts", "Alerts that are open.", labels=("kind",))
    rows = Alert.objects.filter(ended_at=None).order_by().values_list("kind")
    for kind, number in rows.annotate(n=Count("pk")):
        opened.add_metric((kind,), number)
    yield opened
    yield GaugeMetricFamily(
        "ingestion_alert_rules_failing",
        "Rules whose last mail or ping did not get through.",
        sending.failing().count(),
    )


def _dispatcher() -> Iterator[Metric]:
    seconds = heartbeat.last().seconds
    if seconds is not None:
        yield GaugeMetricFamily(
            "ingestion_dispatcher_age_seconds", "Since work was last handed out.", seconds
        )
