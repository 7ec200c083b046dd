"""One reading of the documents: the first hits in an order of date, or how many there are.

An order by date with a limit alone is as slow as what is found is rare or old; the index of words
alone is as slow as it is common. So words are asked for in *windows* of time, which the same index
has: a month, then 8, then 64, then all others, until there is enough. Of a window that has more
than FEW_HITS, its parts are asked, in one statement (its months, unless they are too many); of a
month that has, rows are looked through by date: what is that common comes soon. A folder or label
with few placements is answered by those; where neither helps, rows are looked through by date.

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
FEW_PLACEMENTS = 5_000
#: A window of time has so many times the months of the one after it; of all in their order, the
#: first has one month.
_WIDER = 8
#: Into so many a window is parted. One without any hit costs 0.1 ms, as little as to ask again.
_PARTS = 64
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

    def is_month(self) -> bool:
        return self.end - self.first == 1

    def condition(self) -> Sql:
        if self == _ALL:
            return Sql("true")
        return Sql("d.numbers && %s::smallint[]", (self.numbers(),))

    def wider(self, *, newest: bool) -> "Iterator[_Window]":
        """Yield windows that make it up, in an order, each wider than the one before."""
        first, end = self
        width = 1
        while first < end:
            width = min(width, end - first)
            yield _Window(end - width, end) if newest else _Window(first, first + width)
            first, end = (first, end - width) if newest else (first + width, end)
            width *= _WIDER

    def parts(self, *, newest: bool) -> "Iterator[_Window]":
        """Yield windows that make it up, in an order, all as wide but the last."""
        width = -(-(self.end - self.first) // _PARTS)
        if newest:
            for end in range(self.end, self.first, -width):
                yield _Window(max(self.first, end - width), end)
        else:
            for first in range(self.first, self.end, width):
                yield _Window(first, min(self.end, first + width))


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
        for window in self._windows():
            found += self._within([window], limit - len(found))
            if len(found) == limit:
                break
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
        """Yield the windows of time that are looked through, in their order."""
        if not self._asked.numbered:
            yield _ALL
            return
        [(eldest, newest)] = ask(Sql("SELECT min(date), max(date) FROM ingestion_document"))
        if eldest is None:
            return
        first = max(filter(None, (eldest, self._asked.since)))
        last = min(filter(None, (newest, self._asked.before)))
        if self._after and self._order.newest:
            last = min(last, self._after.date)
        elif self._after:
            first = max(first, self._after.date)
        span = _Window(words.month(first), words.month(last) + 1)
        yield from span.wider(newest=self._order.newest)

    def _within(self, windows: list[_Window], limit: int) -> list[Key]:
        """Return the first hits of windows, which are in their order.

        One statement reads one after the other until there are too many hits: then those of all
        but the last it came to are known.
        """
        found: list[Key] = []
        while windows and len(found) < limit:
            self._require_time()
            some, too_many_at = self._first_of(windows, limit - len(found))
            found += some
            if too_many_at is None or len(found) == limit:
                break
            window, windows = windows[too_many_at], windows[too_many_at + 1 :]
            if window == _ALL or window.is_month():
                found += self._far(window, limit - len(found))
            else:
                parts = list(window.parts(newest=self._order.newest))
                found += self._within(parts, limit - len(found))
        return found

    def _first_of(self, windows: list[_Window], limit: int) -> tuple[list[Key], int | None]:
        """Return the first hits of windows, and the place of the one with which there are more than
        a few in all: of that and those after it, nothing is returned."""
        few = max(FEW_HITS, limit)
        numbers = [f"{{{','.join(map(str, window.numbers()))}}}" for window in windows]
        numbered = windows != [_ALL]
        hits = self._with_words(Sql("d.numbers && w.numbers::smallint[]" if numbered else "true"))
        where, values = self._asked.where
        columns = "d.date, d.message_id" if where == "true" else "d.*"  # words take their time
        rows = ask(
            Sql(
                f"WITH hits AS MATERIALIZED (SELECT w.place, {columns}"
                " FROM unnest(%s::text[]) WITH ORDINALITY w(numbers, place)"
                f" CROSS JOIN LATERAL ({hits.text}) d LIMIT %s)"
                " SELECT n.number, n.last, found.date, found.message_id"
                " FROM (SELECT count(*) AS number, max(place) AS last FROM hits) n"
                " LEFT JOIN LATERAL (SELECT d.date, d.message_id FROM hits d"
                f" WHERE (n.number <= %s OR d.place < n.last) AND {where}"
                f" {self._order.sql} LIMIT %s) found ON true",
                (numbers, *hits.params, few + 1, few, *values, limit),
            )
        )
        number, last = rows[0][:2]
        found = [Key(date, message) for _, _, date, message in rows if message]
        return found, last - 1 if number > few else None

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
