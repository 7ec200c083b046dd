"""Up to when sources are archived, and which of them need somebody: one definition for all pages.

Fresh is who was synced, not who was tried. A source is archived up to when the oldest successful
sync of the mailboxes it follows began: of what came while it went on nobody knows. It is late when
one of these is: its turn (`ingestion.pace`) two intervals ago, and its last success 15 minutes. It
fails, which is told sooner, when each try of half a minute did, or each to list its mailboxes
(`_fails`). What can't be had by itself (a suspended mailbox, a folder, a message) does not hold
that back: it is told beside it.

Each of them costs a constant number of queries.
"""

import collections
import datetime as dt
import functools
import itertools
import operator
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet
from django.db import DEFAULT_DB_ALIAS, connection
from django.db.models import (
    BooleanField,
    Case,
    Count,
    Exists,
    ExpressionWrapper,
    F,
    Max,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    When,
    Window,
)
from django.db.models.expressions import Combinable, RawSQL
from django.db.models.functions import Coalesce, Greatest, Now, RowNumber
from django.db.models.lookups import Exact, GreaterThan

from ingestion import pace
from ingestion.models import FailedMessage, Folder, IngestionSource, Mailbox, Run
from ingestion.states import MailboxState, SourceStatus

#: Of what is left out, so much is told of each source and kind, one by one.
MAX_LEFT_OUT = 20
#: A check of credentials that is so far away waits for a person, not for time.
_AWAITED = dt.timedelta(hours=1)
#: Stands for ids in a query that is written once.
_IDS: Any = object()
#: What fails for less may be a hiccup.
_FAILS = dt.timedelta(seconds=30)


class _Ordered(NamedTuple):
    """Rows that sources bring along, or their mailboxes: the first ones of each in this order."""

    rows: QuerySet[Any]
    order: tuple[Any, ...]
    of_each: str


class Verdict(NamedTuple):
    """How a source is, in short: the conditions are those that `judged` annotates, too.
    `archived_up_to`: None also where it was not asked for."""

    pk: uuid.UUID
    name: str
    status: str
    fails: bool
    is_late: bool
    check_fails: bool
    awaits_sign_in: bool
    lacks_mailboxes: bool
    lacks_folders: bool
    lacks_messages: bool
    archived_up_to: dt.datetime | None = None

    def age(self) -> tuple[bool, dt.datetime | None, str]:
        """Sorts what was never archived in whole first, then what was longest ago."""
        return self.archived_up_to is not None, self.archived_up_to, self.name


# -- the definition ----------------------------------------------------------------------------

_FAILING_FOLDER = Q(
    failing_since__isnull=False, removed_at=None, mailbox__state=MailboxState.ACTIVE
)
_FAILING_LISTING = Q(finished_at=None, discovered_at=None, failing_since__lte=Now() - _FAILS)
#: What `judged` annotates, worst first.
_CONDITIONS = (
    *("fails", "is_late", "check_fails", "awaits_sign_in"),
    *("lacks_mailboxes", "lacks_folders", "lacks_messages"),
)
_conditions_of = operator.attrgetter(*_CONDITIONS)


def judged(sources: QuerySet[IngestionSource]) -> QuerySet[Any]:
    """Annotate `archived_up_to` (null until all mailboxes were synced once), and the conditions
    that `explaining` puts into words, of rows that `read` reads. Each source is asked for alone:
    `verdicts` is for all."""
    return sources.annotate(**_as_sql(all_at_once=False))


def verdicts(sources: QuerySet[IngestionSource], *, dated: bool = True) -> list[Verdict]:
    """Return of each source, by name, the least that says how it is: what is asked is found of all
    that there are at once, however few are wanted. Without `archived_up_to` it takes half as long.
    """
    asked = _as_sql(all_at_once=True)
    rows = sources.order_by().annotate(**{name: asked[name] for name in _CONDITIONS})
    found = rows.values_list("pk", "name", "status", *_CONDITIONS).query
    try:
        sql, params = found.sql_with_params()
    except EmptyResultSet:
        return []
    told, join = "one.*", ""
    if dated:  # Django joins no query to another, and asks of each source by itself
        up_to, more = _all_up_to()
        told, join = "one.*, up_to.at", f"LEFT JOIN ({up_to}) up_to ON up_to.source = one.pk"
        params = (*params, *more)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {told} FROM ({sql}) one {join} ORDER BY name, pk",  # noqa: S608 - Django's own
            params,
        )
        return list(itertools.starmap(Verdict, cursor.fetchall()))


def archived_up_to() -> Subquery:
    """Return what `judged` annotates by this name, for lists in its order."""
    return Subquery(_archived_up_to(_followed().filter(source=OuterRef("pk"))).values_list("at"))


def needing(sources: QuerySet[IngestionSource]) -> list[uuid.UUID]:
    """Return the ids of those that need somebody, by name."""
    return [one.pk for one in verdicts(sources, dated=False) if needs_somebody(one)]


def is_unreached(source: Any) -> bool:
    """Tell whether a Verdict, or a source that came through `judged`, says that nothing comes."""
    return bool(source.fails or source.is_late)


def needs_somebody(source: Any) -> bool:
    """Tell whether a Verdict, or a source that came through `judged`, says that it does."""
    if source.status in {SourceStatus.PAUSED, SourceStatus.ERROR}:
        return bool(source.status == SourceStatus.ERROR)
    return any(_conditions_of(source))


def judged_before(found: Iterable[Verdict], ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Any]:
    """Return the sources of these ids as `judged` does, for a page that has the verdicts of all:
    all that it names at once, and none is judged twice."""
    wanted = set(ids)
    rows: dict[uuid.UUID, Any] = IngestionSource.objects.in_bulk(wanted)
    for verdict in found:
        if verdict.pk in rows:
            vars(rows[verdict.pk]).update(
                {name: getattr(verdict, name) for name in ("archived_up_to", *_CONDITIONS)}
            )
    read(rows.values())
    return rows


@functools.cache
def _as_sql(*, all_at_once: bool) -> Mapping[str, RawSQL]:
    """Write what is annotated once: each time it took Django as long as PostgreSQL takes to answer
    it. It names the table as a query does that is no part of another one."""
    query = _conditions(IngestionSource.objects.order_by(), all_at_once=all_at_once).query
    compiler, written = query.get_compiler(DEFAULT_DB_ALIAS), {}
    for name, condition in query.annotations.items():
        sql, params = compiler.compile(condition)
        written[name] = RawSQL(sql, params, condition.output_field)  # noqa: S611 - Django wrote it
    return written


@functools.cache
def _all_up_to() -> tuple[str, Sequence[Any]]:
    """Write once, too, up to when each source is archived."""
    return _archived_up_to(_followed()).query.sql_with_params()


def _conditions(sources: QuerySet[IngestionSource], *, all_at_once: bool) -> QuerySet[Any]:
    followed = _followed().filter(source=OuterRef("pk"))
    # A first copy may take days: it is late only where it fails.
    copied_first = Q(last_synced_at=None, run__isnull=False, attempts=0)
    late = followed.exclude(copied_first).alias(at=Coalesce("last_synced_at", "created_at"))
    # By the source's options as a join has them, so that of all sources all are found at once;
    # which most mailboxes need not be asked for.
    before = pace.late_before() if all_at_once else pace.late_before(OuterRef("options"))
    late = late.filter(at__lt=Now() - pace.LATE).filter(at__lt=before)
    pending = Q(status=SourceStatus.PENDING_AUTH)
    lacks = {
        "lacks_mailboxes": Mailbox.objects.filter(
            source=OuterRef("pk"), state=MailboxState.UNAVAILABLE
        ),
        "lacks_folders": Folder.objects.filter(_FAILING_FOLDER, mailbox__source=OuterRef("pk")),
        # Not by a join, which has a row for each message.
        "lacks_messages": Mailbox.objects.filter(
            Exists(FailedMessage.objects.filter(mailbox=OuterRef("pk"))),
            source=OuterRef("pk"),
            state=MailboxState.ACTIVE,  # of others none is tried
        ),
    }
    return sources.annotate(
        archived_up_to=archived_up_to(),
        **{name: Exists(rows) for name, rows in lacks.items()},
        fails=_fails(followed),
        is_late=_holds(Q(Exists(late), status=SourceStatus.ACTIVE)),
        check_fails=_holds(pending & Q(check_attempts__gt=0)),
        awaits_sign_in=_holds(pending & Q(check_attempts=0, check_not_before__gt=Now() + _AWAITED)),
    )


def _followed() -> QuerySet[Mailbox]:
    return Mailbox.objects.filter(state=MailboxState.ACTIVE)


def _archived_up_to(followed: QuerySet[Mailbox]) -> QuerySet[Any, Any]:
    """Give each source with mailboxes when its oldest success began, null until all of them had
    one."""
    began = Coalesce("archived_up_to", "last_synced_at")  # the latter of versions before
    oldest = Case(When(Exact(Count("*"), Count("last_synced_at")), then=Min(began)))
    return followed.order_by().values_list("source").annotate(at=oldest)


def _fails(followed: QuerySet[Mailbox]) -> Combinable:
    """Of a source: whether its listing of mailboxes fails for a while, for those that it lacks get
    no turn, whatever the others do. Or two of its mailboxes do (of which one alone is that one's
    trouble, unless there is no other), and none of them had a success since, or progress."""
    failed = followed.filter(failing_since__lte=Now() - _FAILS)
    listing = Run.objects.filter(_FAILING_LISTING, source=OuterRef("pk"))
    newest = failed.order_by("-failing_since").values("failing_since")
    alone = When(~Exists(followed.filter(failing_since=None)), then=Subquery(newest[:1]))
    since = Greatest(Subquery(newest[1:2]), Case(alone))
    success = Max(Greatest("last_synced_at", "last_mail_at"))
    last = followed.order_by().values("source").annotate(at=success).values("at")
    # Most sources are well, and cost no more than two look-ups in an index.
    asks = Q(status__in=(SourceStatus.ACTIVE, SourceStatus.IMPORTING))
    lasts = GreaterThan(since, Coalesce(Subquery(last), F("created_at")))
    return Case(
        When(asks & Q(Exists(listing)), then=True),
        When(asks & Q(Exists(failed)), then=Coalesce(lasts, False)),
        default=False,
    )


def read(rows: Iterable[Any]) -> list[Any]:
    """Read rows that came through `judged`. They bring along their `unfinished_runs`, one at the
    most, and what `explaining.left_out` tells of: in two further queries, and a third where there
    is any."""
    found = list(rows)
    if not found:
        return []
    those = [source.pk for source in found]
    runs, mailboxes = _of_each(those, _unfinished), _of_each(those, _troubled)
    troubled = [mailbox for ours in mailboxes.values() for mailbox in ours]
    folders = _of_each([mailbox.pk for mailbox in troubled], _failing) if troubled else {}
    for mailbox in troubled:
        mailbox.failing_folders = folders.get(mailbox.pk, [])
    for source in found:
        source.unfinished_runs = runs.get(source.pk, [])
        source.troubled_mailboxes = mailboxes.get(source.pk, [])
        for row in (*source.unfinished_runs, *source.troubled_mailboxes):
            row.source = source  # which would be read again
    return found


def _unfinished() -> _Ordered:
    found = Run.objects.filter(finished_at=None).annotate(cannot_list=_holds(_FAILING_LISTING))
    return _Ordered(found, ("pk",), of_each="source")


def _troubled() -> _Ordered:
    failing = Q(state=MailboxState.ACTIVE) & ~Q(last_error="")
    folders = Q(Exists(Folder.objects.filter(_FAILING_FOLDER, mailbox=OuterRef("pk"))))
    found = Mailbox.objects.filter(failing | Q(state=MailboxState.UNAVAILABLE) | folders)
    return _Ordered(found, (F("last_synced_at").asc(nulls_first=True), "pk"), of_each="source")


def _failing() -> _Ordered:
    found = Folder.objects.filter(_FAILING_FOLDER)
    return _Ordered(found, ("failing_since", "pk"), of_each="mailbox")


def among(ids: Sequence[uuid.UUID]) -> RawSQL:
    """Return what stands behind `__in`: as one value, for to read a thousand names takes
    PostgreSQL longer than to find them."""
    return RawSQL("SELECT unnest(%s::uuid[])", [ids])


def _of_each(ids: Iterable[uuid.UUID], asked: Callable[[], _Ordered]) -> dict[Any, list[Any]]:
    """Return the first MAX_LEFT_OUT of each that has any."""
    rows, owner, sql, params = _written(asked)
    given = [list(ids) if one is _IDS else one for one in params]
    found = collections.defaultdict(list)
    for row in rows.raw(sql, given):
        found[getattr(row, owner)].append(row)
    return found


@functools.cache
def _written(asked: Callable[[], _Ordered]) -> tuple[QuerySet[Any], str, str, Sequence[Any]]:
    """Write a query once, as `_as_sql` does, for ids that stand for `_IDS`."""
    rows, order, of_each = asked()
    theirs = {f"{of_each}__in": among(_IDS)}
    place = Window(RowNumber(), partition_by=of_each, order_by=order)
    sql, params = rows.order_by().filter(**theirs).annotate(place=place).query.sql_with_params()
    first = f"WHERE place <= {MAX_LEFT_OUT} ORDER BY place"
    return rows, f"{of_each}_id", f"SELECT * FROM ({sql}) found {first}", params  # noqa: S608 - Django wrote it


def _holds(condition: Q) -> Combinable:
    return ExpressionWrapper(condition, output_field=BooleanField())
