"""One reading of the documents: the first hits in an order of date, or how many there are.

An order by date with a limit alone is as slow as what is found is rare or old; the index of words
alone is as slow as it is common. So words are asked for in *windows* of time, which the same index
has: month by month, and by years where these seem to have few, all in one statement that ends where
there is enough. Of a month with more than FEW_HITS, rows are looked through by date: what is
that common comes soon. A folder or label with few placements is answered by those; where neither
helps, rows are looked through by date.

Statements are sent with their values in them (Django's cursors bind on the client's side): a plan
that is made once for all values takes an index of words for rare ones to search for common ones.
"""

import contextlib
import datetime as dt
import functools
import uuid
from collections.abc import Iterator
from time import monotonic
from typing import Any, NamedTuple

from django.db import OperationalError, connection, transaction

from ingestion.errors import InvalidInput
from ingestion.search import words
from ingestion.search.conditions import Asked, Sql, both

#: A row whose words are looked at costs 10 us: they are long, and lie apart from it.
FAR = 20_000
#: The same in a month: a page of what it has FEW_HITS of among 100,000 mails is in so many.
NEAR = 5_000
#: What the index has of a word costs 1 to 3 us where its row is looked at, of a folder 10 us.
FEW_HITS = 1_000
#: The same in years, whose months can be asked for, and each look at a month costs 0.1 to 2 ms.
FEW_OF_YEARS = 250
FEW_PLACEMENTS = 5_000
#: To count, a window of time has so many times the months of the one after it; of all in their
#: order, the first has one month.
_WIDER = 8
#: Of all in their order, so many times the years are next, where these had few.
_WIDER_YEARS = 4
#: Of each statement, and of all windows together but the last. What takes longer is refused:
#: nobody waits for it.
TIMEOUT_SECONDS = 20
TOO_SLOW = (
    f"It took longer than {TIMEOUT_SECONDS} s. Narrow it: by words, a mailbox, a folder or dates."
)


class Key(NamedTuple):
    """Where a document stands in the order of dates."""

    date: dt.datetime
    message: uuid.UUID


class Order(NamedTuple):
    newest: bool

    @property
    def sql(self) -> str:
        way = "DESC" if self.newest else "ASC"
        return f"ORDER BY d.date {way}, d.message_id {way}"

    def beyond(self, key: Key) -> Sql:
        """Return the condition of what comes after a key."""
        return Sql(f"(d.date, d.message_id) {'<' if self.newest else '>'} (%s, %s)", tuple(key))

    def up_to(self, key: Key) -> Sql:
        """Return the condition of a key and what comes before it."""
        return Sql(f"(d.date, d.message_id) {'>=' if self.newest else '<='} (%s, %s)", tuple(key))


NEWEST = Order(newest=True)


class _Window(NamedTuple):
    """Some months: `first` to before `end`, as `words.month` counts them."""

    first: int
    end: int

    def numbers(self) -> list[int]:
        """Return the numbers of which what is dated in it has one."""
        return list(words.time_numbers(self.first, self.end))

    def condition(self) -> Sql:
        if self == _ALL:
            return Sql("true")
        return Sql("d.numbers && %s::smallint[]", (self.numbers(),))

    def wider(self) -> "Iterator[_Window]":
        """Yield windows that make it up, newest first, each wider than the one before."""
        end, width = self.end, 1
        while self.first < end:
            yield _Window(max(self.first, end - width), end)
            end, width = end - width, width * _WIDER

    def beyond(self, window: "_Window", *, newest: bool) -> "_Window | None":
        """Return what comes after a window within this one, in an order."""
        rest = _Window(self.first, window.first) if newest else _Window(window.end, self.end)
        return rest if rest.first < rest.end else None


class Reading:
    """One reading of what is asked, in an order, from after a key on."""

    def __init__(self, asked: Asked, order: Order, after: Key | None) -> None:
        self._asked = asked
        self._order = order
        self._range = [order.beyond(after)] if after else []
        if asked.since:
            self._range.append(Sql("d.date >= %s", (asked.since,)))
        if asked.before:
            self._range.append(Sql("d.date < %s", (asked.before,)))
        self._after = after
        self._conditions = both([*self._words(), asked.where])
        self._filters = bool(asked.words) or asked.where.text != "true"
        self._ends = monotonic() + TIMEOUT_SECONDS

    def hits(self, limit: int) -> list[Key]:
        """Return the first hits, in their order."""
        if not self._filters:
            return self._by_date(limit)
        if self._asked.direct:
            return self._of_all(limit, _ALL)
        places = self._few_placements()
        if places is not None:
            return self._sorted(places, limit)
        if not self._asked.words:
            return self._far(_ALL, limit)
        found: list[Key] = []
        rest = self._span()
        while rest and len(found) < limit:
            self._require_time()
            some, crowded = self._first_of(rest, limit - len(found))
            found += some
            if crowded:
                found += self._far(crowded, limit - len(found))
            rest = crowded and rest.beyond(crowded, newest=self._order.newest)
        return found

    def count(self, limit: int) -> int:
        """Count the hits up to a limit, in no order."""
        places = self._few_placements()
        if places is not None:
            return len(self._sorted(places, limit))
        if not self._asked.words:
            text, params = both([self._conditions, self._scope(), *self._range])
            found = f"SELECT 1 FROM ingestion_document d WHERE {text} LIMIT %s"
            return _number(Sql(found, (*params, limit)))
        number = 0
        for window in self._windows():
            self._require_time()
            hits = self._with_words(window.condition())
            text, params = self._asked.where
            found = f"SELECT 1 FROM ({hits.text}) d WHERE {text} LIMIT %s"
            number += _number(Sql(found, (*hits.params, *params, limit - number)))
            if number == limit:
                break
        return number

    def _scope(self) -> Sql:
        return self._asked.scope.condition()

    def _lanes(self, inner: Sql) -> Sql:
        """Return the statement of what `inner` gives of each index that the scope has.

        `inner` has `{lane}` for the condition of one: all mail, or that of a source or mailbox.
        """
        scope = self._asked.scope
        if not scope.column:
            return Sql(inner.text.format(lane="true"), inner.params)
        column = f"d.{scope.column}_id"
        if len(scope.ids) == 1:
            text = inner.text.format(lane=f"{column} = %s")
            return Sql(text, (*scope.ids, *inner.params))
        each = inner.text.format(lane=f"{column} = lane.id")
        return Sql(
            f"SELECT d.* FROM unnest(%s::uuid[]) lane(id) CROSS JOIN LATERAL ({each}) d",
            (list(scope.ids), *inner.params),
        )

    def _words(self) -> list[Sql]:
        """Return the condition of the words alone that are asked for."""
        wanted = self._asked.words
        return [Sql("d.words @@ %s::tsquery", (wanted,))] if wanted else []

    def _windows(self) -> Iterator[_Window]:
        """Yield the windows of time that are counted in."""
        span = self._span()
        if span and self._asked.numbered:
            yield from span.wider()
        elif span:
            yield span

    def _span(self) -> _Window | None:
        """Return the window of time to look through: all, where not all documents have numbers."""
        if not self._asked.numbered:
            return _ALL
        [(eldest, newest)] = ask(Sql("SELECT min(date), max(date) FROM ingestion_document"))
        if eldest is None:
            return None
        first = max(filter(None, (eldest, self._asked.since)))
        last = min(filter(None, (newest, self._asked.before)))
        if self._after and self._order.newest:
            last = min(last, self._after.date)
        elif self._after:
            first = max(first, self._after.date)
        span = _Window(words.month(first), words.month(last) + 1)
        return span if span.first < span.end else None

    def _first_of(self, span: _Window, limit: int) -> tuple[list[Key], _Window | None]:
        """Return the first hits of a span of time, in their order, and the month before which they
        end, where that has more than FEW_HITS; all time, where not all documents have numbers.

        Each step of the one statement looks at the index once. `month`: at the next month. Where,
        by that, a year has no more than is lacking, `far` looks at the month that it ends with: a
        word that came in or went out of use meanwhile may have very many. Where that has a few,
        `years` looks at all up to it; then both do the same with _WIDER_YEARS times as many years.
        Where these have none, as before a word went out of use, or many after all, it goes on by
        calendar year, or month by month.
        """
        first, last = span.first, span.end - 1
        if not self._asked.numbered:
            first, last = 0, 0
        if self._order.newest:
            begins, near, way, every = last, 11, "- 1", 12
            far = f"greatest({first}, (s.month / 12 + 1 - greatest(s.years, 1)) * 12)"
            is_other = f"d.date < {_begin('w.month + 1')}"
        else:
            begins, near, way, every = first, 0, "+ 1", -12
            far = f"least({last}, (s.month / 12 + greatest(s.years, 1)) * 12 - 1)"
            is_other = f"d.date >= {_begin('w.month')}"
        inner = self._with_words(Sql("d.numbers && w.numbers" if self._asked.numbered else "true"))
        where, values = self._asked.where
        columns = "d.date, d.message_id" if where == "true" else "d.*"  # words take their time
        rows = ask(
            Sql(
                f"""WITH RECURSIVE step AS (
                SELECT {begins} AS month, 'month'::text AS asks, 1 AS years, {limit} AS lacking,
                       false AS ends, NULL::record[] AS hits
                 UNION ALL
                SELECT CASE WHEN f.crowded OR w.asks = 'far' THEN w.month
                            WHEN w.asks = 'month' THEN w.month {way} ELSE w.far {way} END,
                       CASE WHEN w.asks = 'month' AND (w.years > 0 OR w.month %% 12 = {near})
                                 AND f.number * 11 <= w.lacking - cardinality(f.hits) THEN 'far'
                            WHEN w.asks = 'far' AND NOT f.crowded THEN 'years'
                            WHEN w.asks <> 'month' AND w.years > f.crowded::int THEN 'far'
                            ELSE 'month' END,
                       CASE WHEN w.asks = 'month' THEN w.years
                            WHEN f.crowded OR w.asks = 'years' AND f.number = 0 THEN 0
                            WHEN w.asks = 'years' AND f.number * {_WIDER_YEARS} <= w.few
                                 THEN w.years * {_WIDER_YEARS}
                            ELSE w.years END,
                       w.lacking - cardinality(f.hits), f.crowded AND w.asks = 'month', f.hits
                  FROM (SELECT s.*, far, CASE asks
                               WHEN 'month' THEN ARRAY[{words.of_month(0)} + month]
                               WHEN 'far' THEN array(SELECT {words.of_month(0)} + generate_series(
                                   far, month, {every}))
                               ELSE array(SELECT {words.of_year(0)} + generate_series(
                                   least(month, far) / 12, greatest(month, far) / 12))
                               END::smallint[] AS numbers,
                               CASE asks WHEN 'month' THEN {max(FEW_HITS, limit)}
                                         WHEN 'far' THEN {max(FEW_OF_YEARS, limit) // 11}
                                         ELSE {max(FEW_OF_YEARS, limit)} END AS few
                          FROM step s CROSS JOIN LATERAL (SELECT {far} AS far) f
                         WHERE month BETWEEN {first} AND {last} AND lacking > 0 AND NOT ends) w
                 CROSS JOIN LATERAL (
                       WITH few AS MATERIALIZED (
                           SELECT {columns} FROM ({inner.text}) d
                            WHERE w.asks <> 'years' OR ({is_other}) LIMIT w.few + 1)
                       SELECT n.number, n.number > w.few AS crowded,
                              array(SELECT (d.date, d.message_id) FROM few d
                                     WHERE n.number <= w.few AND w.asks <> 'far'
                                       AND ({where})) AS hits
                         FROM (SELECT count(*) AS number FROM few) n) f)
                SELECT n.month, found.date, found.message_id
                  FROM (SELECT max(month) FILTER (WHERE ends) AS month FROM step) n
                  LEFT JOIN LATERAL (
                       SELECT d.date, d.message_id
                         FROM step, unnest(hits) d(date timestamptz, message_id uuid)
                        {self._order.sql} LIMIT {limit}) found ON true""",
                (*inner.params, *values),
            )
        )
        found = [Key(date, message) for _, date, message in rows if message]
        month = rows[0][0]
        if month is None:
            return found, None
        return found, _Window(month, month + 1) if self._asked.numbered else _ALL

    def _require_time(self) -> None:
        """Raise InvalidInput where the windows before took all of it: there may be hundreds."""
        if monotonic() > self._ends:
            raise InvalidInput({"q": [TOO_SLOW]})

    def _bounds(self, window: _Window) -> list[Sql]:
        """Return a window as conditions on dates."""
        found = []
        if window.first > 0:
            found.append(Sql("d.date >= %s", (words.begin_of_month(window.first),)))
        if window.end < words.MONTHS:
            found.append(Sql("d.date < %s", (words.begin_of_month(window.end),)))
        return found

    def _far(self, window: _Window, limit: int) -> list[Key]:
        """Look through FAR rows in their order, or NEAR of a month; where these are not all, sort
        what an index has."""
        bounds = self._bounds(window)
        rows = max(FAR if window == _ALL else NEAR, 4 * limit)
        edge = self._edge(rows, *bounds)
        if edge is None:
            return self._by_date(limit, *bounds)
        found = self._by_date(limit, *bounds, self._order.up_to(edge))
        if len(found) == limit:
            return found
        return found + self._of_all(limit - len(found), window, *bounds, self._order.beyond(edge))

    def _edge(self, rows: int, *bounds: Sql) -> Key | None:
        """Return the key of the row so many rows on; None where there are not so many."""
        width = max(rows // max(len(self._asked.scope.ids), 1), 1)
        text, params = both([*self._range, *bounds])
        each = self._lanes(
            Sql(
                "SELECT d.date, d.message_id FROM ingestion_document d"
                f" WHERE {{lane}} AND {text} {self._order.sql} OFFSET %s LIMIT 1",
                (*params, width - 1),
            )
        )
        edges = _keys(Sql(f"SELECT * FROM ({each.text}) d {self._order.sql} LIMIT 1", each.params))
        return edges[0] if edges else None

    def _by_date(self, limit: int, *bounds: Sql) -> list[Key]:
        """Look through rows in their order, within bounds.

        The inner statement has an OFFSET so that the planner does not look into it: it would choose
        another index by how many it thinks will be found.
        """
        text, params = both([*self._range, *bounds])
        rows = Sql(
            f"SELECT {_COLUMNS} FROM ingestion_document d"
            f" WHERE {{lane}} AND {text} {self._order.sql} OFFSET 0",
            params,
        )
        wanted, values = self._conditions
        each = self._lanes(
            Sql(
                f"SELECT d.date, d.message_id FROM ({rows.text}) d"
                f" WHERE {wanted} {self._order.sql} LIMIT %s",
                (*rows.params, *values, limit),
            )
        )
        return _keys(
            Sql(f"SELECT * FROM ({each.text}) d {self._order.sql} LIMIT %s", (*each.params, limit))
        )

    @functools.cached_property
    def _wanted(self) -> str:
        """The tsquery of the words and of whose mail it is: whose is counted, so once, if ever."""
        return " & ".join(filter(None, (f"({self._asked.words})", self._asked.scope.tags())))

    def _with_words(self, given: Sql, *bounds: Sql) -> Sql:
        """Return the statement of the documents with the words alone that are asked for, of a
        window whose condition is given. With the OFFSET, the planner takes no other index than
        theirs."""
        asked = [Sql("d.words @@ %s::tsquery", (self._wanted,))]
        if self._asked.pairs:
            asked.append(Sql("d.numbers @> %s::smallint[]", (sorted(self._asked.pairs),)))
        asked.append(given)
        inner, values = both(asked)
        text, params = both([self._scope(), *self._range, *bounds])
        return Sql(
            f"SELECT * FROM (SELECT {_COLUMNS} FROM ingestion_document d WHERE {inner} OFFSET 0) d"
            f" WHERE {text}",
            (*values, *params),
        )

    def _of_all(self, limit: int, window: _Window, *bounds: Sql) -> list[Key]:
        """Sort all that an index has of a window; where none helps, go on by date."""
        places = [placed for placed in self._asked.places if placed.is_indexed]
        if places and not self._asked.words:
            return self._sorted(places[0].candidates(), limit, *bounds)
        if self._asked.words:
            hits = self._with_words(window.condition(), *bounds)
        elif self._asked.direct:
            text, params = both([self._scope(), *self._range, *bounds])
            hits = Sql(f"SELECT {_COLUMNS} FROM ingestion_document d WHERE {text}", params)
        else:
            return self._by_date(limit, *bounds)
        where, values = self._asked.where
        return _keys(
            Sql(
                f"WITH found AS MATERIALIZED (SELECT d.date, d.message_id FROM ({hits.text}) d"
                f" WHERE {where}) SELECT * FROM found d {self._order.sql} LIMIT %s",
                (*hits.params, *values, limit),
            )
        )

    def _few_placements(self) -> Sql | None:
        """Return the statement of the messages of a folder or label that has few."""
        for placed in self._asked.places:
            if not placed.is_indexed:
                continue
            text, params = placed.candidates()
            number = _number(Sql(f"{text} LIMIT %s", (*params, FEW_PLACEMENTS + 1)))
            if number <= FEW_PLACEMENTS:
                return Sql(text, params)
        return None

    def _sorted(self, candidates: Sql, limit: int, *bounds: Sql) -> list[Key]:
        """Look at each of some messages, and sort what is asked for."""
        text, params = both([self._conditions, self._scope(), *self._range, *bounds])
        return _keys(
            Sql(
                "WITH candidates AS MATERIALIZED"
                f" (SELECT DISTINCT message_id FROM ({candidates.text}) p),"
                " found AS MATERIALIZED (SELECT d.date, d.message_id"
                " FROM candidates JOIN ingestion_document d USING (message_id)"
                f" WHERE {text}) SELECT * FROM found d {self._order.sql} LIMIT %s",
                (*candidates.params, *params, limit),
            )
        )


def _begin(month: str) -> str:
    """Return as SQL when a month begins."""
    return f"make_timestamptz(1970 + ({month}) / 12, ({month}) %% 12 + 1, 1, 0, 0, 0, 'UTC')"


_ALL = _Window(0, words.MONTHS)
#: What conditions ask of a document.
_COLUMNS = "d.message_id, d.date, d.words, d.source_id, d.mailbox_id, d.thread"


def ask(statement: Sql) -> list[Any]:
    """Return the rows of a statement. Raises InvalidInput where the statement takes too long.

    A scan of all rows is never chosen: it reads the words of each. Compiling costs more than it
    saves here.
    """
    try:
        # A transaction around it goes on where it is refused.
        around = transaction.atomic() if connection.in_atomic_block else contextlib.nullcontext()
        with around, connection.cursor() as cursor:
            cursor.execute(f"{_settings()}; {statement.text}", statement.params)
            while cursor.nextset():
                pass
            found: list[Any] = cursor.fetchall()
            return found
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != _CANCELLED:
            raise
        raise InvalidInput({"q": [TOO_SLOW]}) from error


_CANCELLED = "57014"


def _settings() -> str:
    """Return what is set for a statement that is sent along, and for nothing after it: statements
    sent together are one transaction, and each has the timeout for itself (PostgreSQL's manual,
    "Multiple Statements in a Simple Query", statement_timeout)."""
    return (
        "SET LOCAL jit = off; SET LOCAL enable_seqscan = off;"
        f" SET LOCAL statement_timeout = {int(TIMEOUT_SECONDS * 1_000)}"
    )


def _number(statement: Sql) -> int:
    """Return how many rows a statement has."""
    [(number,)] = ask(Sql(f"SELECT count(*) FROM ({statement.text}) found", statement.params))
    return int(number)


def _keys(statement: Sql) -> list[Key]:
    return [Key(*row) for row in ask(statement)]
