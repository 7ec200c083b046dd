"""Is the deployment sound? Asks every part that the service stands on, and says what to do.

Each check is independent of the others and bounded in time. Changes nothing; writes one small file
into the archive and removes it again.
"""

import dataclasses
import datetime as dt
import itertools
import math
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from django.conf import settings
from django.contrib.auth.models import User
from django.core import checks as system_checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Q, Sum
from django.utils import timezone

from ingestion import explaining, freshness, index_health
from ingestion.amounts import moment
from ingestion.errors import ArchiveUnavailable, WrongArchive
from ingestion.models import AlertRule, ArchivedDay, IngestionSource, Pack, WebhookEndpoint
from ingestion.packs.store import PackStore, store
from ingestion.services.archive import housekeeping, storage
from ingestion.services.engine import heartbeat
from ingestion.services.operations import capacity, credential_keys, webhooks, workers
from ingestion.services.operations.alerting import sending

State = Literal["ok", "warning", "problem"]

#: Work is handed out every 3 s (ingestion_project.celery).
_HEARTBEAT_SECONDS = 30.0
#: Leases are 20 s by the database's clock; schedules are made by the application's.
_MAX_SKEW_SECONDS = 5.0
_SLOW_WRITE_SECONDS = 1.0
_LATE_INDEX = dt.timedelta(hours=1)
#: Of packs that were merged into others: seconds, unless it is refused.
_REMOVED_WITHIN = dt.timedelta(hours=1)
#: What charts and reports tell of.
_DAYS_SHOWN = dt.timedelta(days=30)
_NAMED = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: what is so, and what to do where it is not well."""

    name: str
    state: State
    message: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Yield the findings one by one, what others stand on first. Takes a few seconds at most."""
    database = _database()
    yield database
    if database.state != "problem":
        yield _clock()
        yield _keys()
        yield _sources()
        yield _index()
        yield _days()
        yield _webhooks()
        yield _alerts()
    broker = _broker()
    yield broker
    if broker.state != "problem":
        yield from _workers()
        yield from _workers_clocks()
        yield _beat()
    yield _storage(database)
    yield _exposure(database)
    yield _settings()


def _database() -> Finding:
    try:
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
        with connection.cursor() as cursor:
            cursor.execute("SHOW server_version")
            version = cursor.fetchone()[0].split()[0]
    except DatabaseError as error:
        return Finding(
            "database",
            "problem",
            f"PostgreSQL does not answer: {_first_line(error)}",
            "Start it (make run brings its own), or correct DATABASE_URL.",
        )
    if waiting:
        return Finding(
            "database",
            "problem",
            f"PostgreSQL {version} answers, but {len(waiting)} migrations are not applied.",
            "Run manage.py migrate.",
        )
    return Finding("database", "ok", f"PostgreSQL {version} answers and is migrated.")


def _clock() -> Finding:
    before = time.time()
    with connection.cursor() as cursor:
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())")
        at_database = float(cursor.fetchone()[0])
    skew = abs(at_database - (before + time.time()) / 2)
    if skew > _MAX_SKEW_SECONDS:
        return Finding(
            "clock",
            "problem",
            f"This machine's clock and the database's differ by {skew:.1f} s.",
            "Run NTP on both: schedules and retry times would be off by as much.",
        )
    return Finding("clock", "ok", f"This clock and the database's agree within {skew:.1f} s.")


def _keys() -> Finding:
    if not settings.ENCRYPTION_KEYS:
        return Finding(
            "keys",
            "problem",
            "ENCRYPTION_KEYS is empty: credentials can be neither read nor stored.",
            "Set the keys that the service had before; on a new installation make one.",
        )
    found = credential_keys.survey()
    if found.unreadable:
        ids = ", ".join(str(pk) for pk in found.unreadable[:5])
        return Finding(
            "keys",
            "problem",
            f"No encryption key reads the credentials of {len(found.unreadable)} of "
            f"{found.all}: {ids}.",
            "Put the key they were stored with back into ENCRYPTION_KEYS, or set these sources' "
            "credentials anew, give these webhooks new secrets, and reset these second steps "
            "(manage.py reset_second_step).",
        )
    if credential_keys.unknown_to_the_service(settings.ENCRYPTION_KEYS[0]):
        return Finding(
            "keys",
            "warning",
            "The service runs without the first of the ENCRYPTION_KEYS that this command has.",
            "Restart all of its processes, or run this with the service's own environment.",
        )
    if found.reencrypted:
        return Finding(
            "keys",
            "warning",
            f"{found.reencrypted} of {found.all} are encrypted with an older key.",
            "Run manage.py rotate_credentials_key before you take that key away.",
        )
    return Finding("keys", "ok", f"The newest key reads the credentials of all {found.all}.")


def _sources() -> Finding:
    """Whether mail arrives in the archive, which is what all the rest is for."""
    sources = IngestionSource.objects.filter(deleted_at=None)
    found = freshness.verdicts(sources)
    told = explaining.summary(found)
    needing = filter(freshness.needs_somebody, found)
    names = [one.name for one in itertools.islice(needing, _NAMED + 1)]
    if not names:
        return Finding("sources", "ok", told.text)
    more = " and others" if len(names) > _NAMED else ""
    return Finding(
        "sources",
        "problem",
        f"{told.text} Needs attention: {', '.join(names[:_NAMED])}{more}.",
        "manage.py source_status says why, and what is left out.",
    )


def _webhooks() -> Finding:
    """Whether who wants to be told of events is told."""
    disabled = WebhookEndpoint.objects.filter(enabled=False).count()
    lost = webhooks.given_up(dt.timedelta(days=1))
    if lost:
        return Finding(
            "webhooks",
            "warning",
            f"{lost:,} deliveries were given up within a day, after all their tries.",
            "Look at what their servers answer, at Webhooks in the admin.",
        )
    off = f" {disabled:,} are disabled." if disabled else ""
    return Finding("webhooks", "ok", f"No delivery was given up within a day.{off}")


def _alerts() -> Finding:
    """Whether who is to be told of alerts is told."""
    failing = list(sending.failing().order_by("name")[:_NAMED])
    if failing:
        told = "; ".join(f"{rule.name}: {rule.last_result}" for rule in failing)
        advice = "Correct EMAIL_URL or the rule (Alert rules in the admin), and send a test."
        return Finding("alerts", "warning", f"Not all is sent. {told}", advice)
    rules = AlertRule.objects.filter(enabled=True).count()
    if not rules:
        return Finding("alerts", "ok", "There is no rule: nobody is told when something is wrong.")
    return Finding("alerts", "ok", f"{rules:,} {'rule tells' if rules == 1 else 'rules tell'}.")


def _index() -> Finding:
    """Whether search knows of what is archived."""
    sources = IngestionSource.objects.filter(deleted_at=None)
    health, since = index_health.in_all(sources), index_health.waiting_since(sources)
    if health.unreadable_packs:
        return Finding(
            "index",
            "problem",
            f"For search: {health}.",
            "Mount the archive, or restore the packs from a backup: manage.py verify_archive names "
            "them. They are tried again by themselves, and at once by manage.py reindex.",
        )
    if since is not None and timezone.now() - since > _LATE_INDEX:
        return Finding(
            "index",
            "warning",
            f"For search: {health}. The rest waits since {moment(since)}.",
            "After a large import it takes a while. Start more of the Procfile's entry 'index', or "
            "see its log if none seems to work.",
        )
    return Finding("index", "ok", f"For search: {health}.")


def _days() -> Finding:
    """Whether what pages tell of each day's archiving can be so."""
    since = timezone.now().date() - _DAYS_SHOWN
    wrong = ArchivedDay.objects.filter(Q(messages__lt=0) | Q(size_bytes__lt=0), day__gte=since)
    sources = IngestionSource.objects.filter(pk__in=wrong.values("source"), deleted_at=None)
    names = list(sources.order_by("name").values_list("name", flat=True)[: _NAMED + 1])
    if not names:
        return Finding("days", "ok", "What was archived on each day is plausible.")
    more = " and others" if len(names) > _NAMED else ""
    return Finding(
        "days",
        "warning",
        "Some days count fewer than no messages, so that charts and reports are wrong: "
        f"{', '.join(names[:_NAMED])}{more}.",
        "Run manage.py rebuild_archive_index for each: it counts anew what is archived.",
    )


def _broker() -> Finding:
    from redis import Redis, RedisError  # noqa: PLC0415 - a --help does not ask it

    try:
        with Redis.from_url(
            settings.REDIS_URL,
            socket_timeout=workers.PING_SECONDS,
            socket_connect_timeout=workers.PING_SECONDS,
            retry=None,
        ) as client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        return Finding(
            "broker",
            "problem",
            f"Redis does not answer: {_first_line(error)}",
            "Start it (make run brings its own), or correct REDIS_URL. Nothing is lost: what is "
            "due stands in the database. Workers and beat can't be asked without it.",
        )
    return Finding("broker", "ok", "Redis answers.")


def _workers() -> Iterator[Finding]:
    served = workers.serving()
    states = workers.states(served)
    for queue, names in served.items():
        if names:
            yield Finding(f"queue {queue}", "ok", f"Served by {', '.join(names)}.")
        elif states[queue] != "gone":
            yield Finding(
                f"queue {queue}",
                "warning",
                "No worker answers for it just now: it may be starting, or the machine is busy.",
                f"Ask again in {workers.STARTING_SECONDS / 60:.0f} minutes.",
            )
        else:
            yield Finding(
                f"queue {queue}",
                "problem",
                "No worker serves it, so its work waits.",
                workers.advice(queue),
            )


def _workers_clocks() -> Iterator[Finding]:
    """Tell of workers whose clock is off: Celery throws tasks away by it."""
    before = time.time()
    replies = workers.ask(
        lambda asked: asked.broadcast("wall_clock", reply=True, timeout=workers.PING_SECONDS)
    )
    for name, told in sorted(item for reply in replies or [] for item in reply.items()):
        skew = told - before if isinstance(told, float) else 0.0
        if not -_MAX_SKEW_SECONDS <= skew <= _MAX_SKEW_SECONDS + workers.PING_SECONDS:
            yield Finding(
                f"clock of {name}",
                "problem",
                f"The clock of {name} and this machine's differ by about {abs(skew):.0f} s.",
                "Run NTP on all machines: where it is minutes, tasks are thrown away.",
            )


def _beat() -> Finding:
    age = heartbeat.last().seconds
    if age is None or age > _HEARTBEAT_SECONDS:
        last = "has not been seen" if age is None else f"was last seen {age:.0f} s ago"
        return Finding(
            "beat",
            "problem",
            f"The dispatcher {last}: scheduled syncs don't start.",
            "Start the Procfile's entries 'beat' and 'control'; see their logs if they run.",
        )
    return Finding("beat", "ok", f"The dispatcher ran {age:.0f} s ago.")


def _storage(database: Finding) -> Finding:
    trouble = _archive() if database.state == "ok" else _no_archive()
    return trouble or _disk()  # nothing is written beneath a mount point


def _no_archive() -> Finding | None:
    """Whether nobody's archive is there at all, while the database can't say whose it should be."""
    archive = store()
    try:
        if archive.mark() is not None:
            return None
    except OSError as error:
        return _unwritable(archive, error)
    return Finding(
        "storage",
        "problem",
        f"{archive.name} has no mark of an installation.",
        f"Mount it, or correct {archive.setting}: nothing is written there meanwhile.",
    )


def _archive() -> Finding | None:
    """Whether the archive is the one that the database knows; None where it is."""
    archive = store()
    try:
        storage.require()
    except WrongArchive as error:
        advice = f"Mount it, or correct {archive.setting}: until then no mail is archived."
        return Finding("storage", "problem", str(error), advice)
    except OSError as error:
        return _unwritable(archive, error)
    if lost := _lost_pack():
        return Finding(
            "storage",
            "problem",
            f"{archive.name} does not hold the pack {lost}.",
            "Restore it from a backup. manage.py verify_archive tells what else is missing.",
        )
    if unknown := _unknown_pack():
        return Finding(
            "storage",
            "problem",
            f"{archive.name} holds mail that the database does not know, in the pack {unknown}.",
            "Was the database restored from an older backup? manage.py rebuild_archive_index"
            " takes in what it lacks.",
        )
    if waiting := _not_removed():
        return Finding(
            "storage",
            "warning",
            f"{waiting:,} bytes of packs that were merged into others are not removed.",
            f"Let the service's user remove files of {archive.name}: its log says what is refused"
            " (compaction_put_off).",
        )
    return None


def _not_removed() -> int:
    """Return how many bytes are taken twice for longer than it takes to remove them."""
    since = timezone.now() - _REMOVED_WITHIN
    waiting = Pack.objects.filter(replaced_at__lt=since)
    return waiting.aggregate(size=Sum("size_bytes"))["size"] or 0


def _disk() -> Finding:
    archive = store()
    try:
        seconds, room = archive.try_out(), archive.room()
    except OSError as error:
        return _unwritable(archive, error)
    free, total = room or (math.inf, 0)
    left = f"{free / 1e9:,.1f} GB free of {total / 1e9:,.1f} GB" if room else "no limit is known"
    if free < capacity.MIN_FREE_BYTES:
        text = f"{archive.name}: {left}."
        return Finding("storage", "problem", text, "Make room: imports stop soon.")
    if free < total * capacity.LOW_FREE_SHARE:
        return Finding(
            "storage", "warning", f"{archive.name}: {left}.", "Make room before it is full."
        )
    if seconds > _SLOW_WRITE_SECONDS:
        text = f"{archive.name}: a durable write took {seconds:.1f} s; {left}."
        return Finding("storage", "warning", text, "Use faster storage: every commit waits for it.")
    text = f"{archive.name}: durable write in {seconds * 1e3:.0f} ms, {left}."
    return Finding("storage", "ok", text)


def _unwritable(archive: PackStore, error: OSError) -> Finding:
    if isinstance(error, ArchiveUnavailable):
        return Finding("storage", "problem", str(error), "No mail is archived or read until then.")
    return Finding(
        "storage",
        "problem",
        f"{archive.name} can't be written: {error.strerror}.",
        f"Make it writable for the service's user, mount it, or correct {archive.setting}.",
    )


def _lost_pack() -> uuid.UUID | None:
    """Return a pack that should be there and is not, of the newest and the oldest of some sources:
    a database older than the archive, or newer, has both kinds of age."""
    for source in IngestionSource.objects.filter(deleted_at=None).order_by("-updated_at")[:_NAMED]:
        packs = Pack.objects.filter(source=source, replaced_at=None).order_by("created_at")
        for pack in (packs.last(), packs.first()):
            if pack is not None and not store().holds(source.pk, pack.pk):
                return pack.pk
    return None


def _unknown_pack() -> uuid.UUID | None:
    for source in IngestionSource.objects.filter(deleted_at=None).order_by("-updated_at")[:_NAMED]:
        if unknown := housekeeping.unknown_pack(source.pk):
            return unknown
    return None


def _exposure(database: Finding) -> Finding:
    """What strangers could reach: mail through the file system, hosts through a source."""
    for directory in (settings.VAR_DIR, settings.ARCHIVE_DIR):
        if _others_may_enter(directory):
            return Finding(
                "exposure",
                "problem",
                f"Other users of this machine may look into {directory}, which holds mail.",
                f"chmod 700 {directory}",
            )
    if settings.DEBUG and not set(settings.ALLOWED_HOSTS) <= {"localhost", "127.0.0.1", "[::1]"}:
        return Finding(
            "exposure",
            "problem",
            "DEBUG is on, and ALLOWED_HOSTS lets others in: its pages show code and settings.",
            "Unset DEBUG.",
        )
    users = User.objects.filter(is_active=True).count() if database.state == "ok" else 0
    if users > 1 and not settings.FORBID_PRIVATE_ADDRESSES:
        return Finding(
            "exposure",
            "warning",
            f"Any of {users} users can have this machine connect to any private address.",
            "Set FORBID_PRIVATE_ADDRESSES=1, unless all of them may know this network.",
        )
    return Finding("exposure", "ok", "Mail and network are closed to strangers.")


def _others_may_enter(directory: Path) -> bool:
    """Whether it and all above it let group or others pass; False where it does not exist."""
    if not directory.is_dir():
        return False
    return all(place.stat().st_mode & 0o011 for place in (directory, *directory.parents))


def _settings() -> Finding:
    """Run the system checks, our own among them, without those for a public deployment."""
    found = system_checks.run_checks()
    serious = [message for message in found if message.is_serious()]
    if not found:
        return Finding("settings", "ok", "Django's checks and ours find nothing.")
    worst = serious or found
    hints = " ".join(str(message.hint) for message in worst if message.hint)
    return Finding(
        "settings",
        "problem" if serious else "warning",
        " ".join(str(message.msg) for message in worst),
        hints or "See manage.py check.",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
