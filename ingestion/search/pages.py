"""Pages of what a query finds, in either order of date or by relevance; counts and newest hits.

An order by date with a limit alone is as slow as what is found is rare or old; the index of words
alone is as slow as it is common. So there are steps, until a page is full:

1. Look through the NEAR newest rows of the scope, by date, up to the *edge*.
2. Ask the index for what lies beyond it: of words, or of the placements of a folder or label. Where
   it has few, that is all there is, and it is sorted.
3. Else it is common: look through rows by date again, FAR ones.
4. It is common, but long ago: sort all that the index has.

Each step costs the same at any page: a page begins where the one before ended, which is the cursor.

Statements are sent with their values in them (Django's cursors bind on the client's side): a plan
that is made once for all values takes an index of words for rare ones to search for common ones.
"""

import base64
import binascii
import dataclasses
import datetime as dt
import json
import uuid
from typing import Any, NamedTuple, Self

from django.contrib.auth.models import AnonymousUser, User
from django.db import OperationalError, connection, transaction

from ingestion.errors import InvalidInput
from ingestion.models import Message
from ingestion.search.conditions import Asked, Scope, Sql, asked, both
from ingestion.search.query import Node

#: A row that is looked at costs 10 to 20 us: its words are long, and lie apart from it.
NEAR = 1_000
FAR = 20_000
#: What the index has of a word costs 1 to 2 us, of a folder 10 us.
FEW_HITS = 20_000
FEW_PLACEMENTS = 5_000
#: So many hits are counted, and looked at for facets.
CAP = 10_000
#: So many of the newest hits are ordered by relevance.
RANKED = 1_000
#: Of each statement. What takes longer is refused: nobody waits for it.
TIMEOUT_SECONDS = 20
TOO_SLOW = (
    f"It took longer than {TIMEOUT_SECONDS} s. Narrow it: by words, a mailbox, a folder or dates."
)


class Key(NamedTuple):
    """Where a document stands in the order of dates."""

    date: dt.datetime
    message: uuid.UUID


class Page(NamedTuple):
    """Messages in the order asked for; cursors of the next page and the one before, "" for none.

    With each come its mailbox, source, document (without its words) and placements.
    """

    messages: list[Message]
    next: str
    previous: str


class Count(NamedTuple):
    """How many are found; `more` where that is CAP and there are more."""

    number: int
    more: bool


@dataclasses.dataclass(frozen=True)
class Cursor:
    """A place in a list: a key of the order by date, or how many came before by relevance."""

    place: Key | int
    backwards: bool = False

    def __str__(self) -> str:
        place = self.place
        written = place if isinstance(place, int) else [place.date.isoformat(), str(place.message)]
        document = json.dumps([written, self.backwards], separators=(",", ":"))
        return base64.urlsafe_b64encode(document.encode()).decode()

    @classmethod
    def read(cls, text: str, *, by_relevance: bool) -> Self:
        """Raises ValueError where it is none of such a list."""
        try:
            place, backwards = json.loads(base64.urlsafe_b64decode(text))
            if by_relevance:
                return cls(range(RANKED)[place], bool(backwards))
            moment = dt.datetime.fromisoformat(place[0]).astimezone(dt.UTC)
            return cls(Key(moment, uuid.UUID(place[1])), bool(backwards))
        except (
            *(binascii.Error, ValueError, TypeError, AttributeError, KeyError, IndexError),
            *(OverflowError, RecursionError),
        ) as error:
            raise ValueError("not a cursor") from error


class Search:
    """What a user finds by a query, and between two moments. Reads on each call; the scope is that
    of its making."""

    def __init__(
        self,
        user: User | AnonymousUser,
        node: Node,
        *,
        since: dt.datetime | None = None,
        before: dt.datetime | None = None,
    ) -> None:
        self._asked = asked(node, Scope.of(user), since, before)
        self._order = _Order(newest=True)

    def page(self, *, sort: str = "-date", cursor: str = "", size: int = 50) -> Page:
        """Return a page: newest first ("-date"), eldest first ("date"), or by "relevance".

        By relevance the RANKED newest hits are in order, and no others. Raises ValueError for a
        cursor that is none of this list.
        """
        if sort == "relevance" and self._asked.ranked:
            return self._page_by_relevance(cursor, size)
        at = Cursor.read(cursor, by_relevance=False) if cursor else None
        key = at.place if at and isinstance(at.place, Key) else None
        backwards = at is not None and at.backwards
        order = _Order(newest=(sort != "date") is not backwards)
        found = _Reading(self._asked, order, key).hits(size + 1)
        more, found = len(found) > size, found[:size]
        if backwards:
            found.reverse()
        after = bool(found) and (more or backwards)
        before = bool(found) and (more if backwards else at is not None)
        return Page(
            _messages(found),
            str(Cursor(found[-1])) if after else "",
            str(Cursor(found[0], backwards=True)) if before else "",
        )

    def newest(self, limit: int) -> list[uuid.UUID]:
        """Return the newest hits."""
        return [key.message for key in _Reading(self._asked, self._order, None).hits(limit)]

    def count(self) -> Count:
        """Count the hits, up to CAP."""
        number = _Reading(self._asked, self._order, None).count(CAP + 1)
        return Count(min(number, CAP), number > CAP)

    def _page_by_relevance(self, cursor: str, size: int) -> Page:
        at = Cursor.read(cursor, by_relevance=True) if cursor else None
        start = at.place if at and isinstance(at.place, int) else 0
        ranked = _ranked(self._asked.ranked, self.newest(RANKED))
        shown = ranked[start : start + size]
        return Page(
            _messages(shown),
            str(Cursor(start + size)) if start + size < len(ranked) else "",
            str(Cursor(max(0, start - size))) if start else "",
        )


class _Order(NamedTuple):
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


class _Reading:
    """One reading of what is asked, in an order, from after a key on."""

    def __init__(self, asked: Asked, order: _Order, after: Key | None) -> None:
        self._asked = asked
        self._order = order
        self._range = [order.beyond(after)] if after else []
        if asked.since:
            self._range.append(Sql("d.date >= %s", (asked.since,)))
        if asked.before:
            self._range.append(Sql("d.date < %s", (asked.before,)))
        self._conditions = both(
            [*([Sql("d.words @@ %s::tsquery", (asked.words,))] if asked.words else []), asked.where]
        )
        self._filters = bool(asked.words) or asked.where.text != "true"

    def hits(self, limit: int) -> list[Key]:
        """Return the first hits, in their order."""
        if not self._filters:
            return self._by_date(limit)
        if self._asked.direct:
            return self._of_all(limit)
        found, edge = self._through(NEAR, limit)
        if edge is None or len(found) == limit:
            return found
        beyond = self._order.beyond(edge)
        few = self._few(limit - len(found), beyond)
        if few is not None:
            return found + few
        more, edge = self._through(max(FAR, 4 * limit), limit - len(found), beyond)
        found += more
        if edge is None or len(found) == limit:
            return found
        return found + self._of_all(limit - len(found), self._order.beyond(edge))

    def count(self, limit: int) -> int:
        """Count the hits up to a limit, in no order."""
        places = self._few_placements()
        if places is not None:
            return len(self._sorted(places, limit))
        text, params = both([self._conditions, self._scope(), *self._range])
        found = f"SELECT 1 FROM ingestion_document d WHERE {text} LIMIT %s"
        [(number,)] = ask(Sql(f"SELECT count(*) FROM ({found}) found", (*params, limit)))
        return int(number)

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

    def _through(self, rows: int, limit: int, *bounds: Sql) -> tuple[list[Key], Key | None]:
        """Look through so many rows in their order. Return the hits, and the last key that was
        looked at; None where there are no more rows."""
        edge = self._edge(rows, *bounds)
        if edge is None:
            return self._by_date(limit, *bounds), None
        return self._by_date(limit, *bounds, self._order.up_to(edge)), edge

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

    def _few(self, limit: int, edge: Sql) -> list[Key] | None:
        """Return the first hits where an index has few in all; None where it has more."""
        places = self._few_placements()
        if places is not None:
            return self._sorted(places, limit, edge)
        if not self._asked.words:
            return None
        hits = self._with_words(edge)
        where, values = self._asked.where
        counted = ask(
            Sql(
                f"WITH hits AS MATERIALIZED ({hits.text} LIMIT %s)"
                " SELECT n.number, found.date, found.message_id"
                " FROM (SELECT count(*) AS number FROM hits) n LEFT JOIN LATERAL"
                f" (SELECT d.date, d.message_id FROM hits d WHERE {where}"
                f" {self._order.sql} LIMIT %s) found ON n.number <= %s",
                (*hits.params, FEW_HITS + 1, *values, limit, FEW_HITS),
            )
        )
        if counted[0][0] > FEW_HITS:
            return None
        return [Key(date, message) for _, date, message in counted if message]

    def _with_words(self, *bounds: Sql) -> Sql:
        """Return the statement of the documents with the words alone that are asked for."""
        parts = [Sql("d.words @@ %s::tsquery", (self._asked.words,)), self._scope()]
        if tags := self._asked.scope.tags():
            parts.append(Sql("d.words @@ %s::tsquery", (tags,)))
        text, params = both([*parts, *self._range, *bounds])
        return Sql(f"SELECT {_COLUMNS} FROM ingestion_document d WHERE {text}", params)

    def _of_all(self, limit: int, *bounds: Sql) -> list[Key]:
        """Sort all that an index has; where none helps, go on by date."""
        places = [placed for placed in self._asked.places if placed.is_indexed]
        if places and not self._asked.words:
            return self._sorted(places[0].candidates(), limit, *bounds)
        if not (self._asked.words or self._asked.direct):
            return self._by_date(limit, *bounds)
        text, params = both([self._conditions, self._scope(), *self._range, *bounds])
        return _keys(
            Sql(
                "WITH found AS MATERIALIZED (SELECT d.date, d.message_id"
                f" FROM ingestion_document d WHERE {text})"
                f" SELECT * FROM found d {self._order.sql} LIMIT %s",
                (*params, limit),
            )
        )

    def _few_placements(self) -> Sql | None:
        """Return the statement of the messages of a folder or label that has few."""
        for placed in self._asked.places:
            if not placed.is_indexed:
                continue
            text, params = placed.candidates()
            counted = f"SELECT count(*) FROM ({text} LIMIT %s) few"
            [(number,)] = ask(Sql(counted, (*params, FEW_PLACEMENTS + 1)))
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


#: What conditions ask of a document.
_COLUMNS = "d.message_id, d.date, d.words, d.source_id, d.mailbox_id, d.thread"


def ask(statement: Sql) -> list[Any]:
    """Return the rows of a statement. Raises InvalidInput where the statement takes too long.

    A scan of all rows is never chosen: it reads the words of each. Compiling costs more than it
    saves here.
    """
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SET LOCAL jit = off; SET LOCAL enable_seqscan = off;"
                f" SET LOCAL statement_timeout = {int(TIMEOUT_SECONDS * 1_000)}"
            )
            cursor.execute(statement.text, statement.params)
            found: list[Any] = cursor.fetchall()
            return found
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != _CANCELLED:
            raise
        raise InvalidInput({"q": [TOO_SLOW]}) from error


_CANCELLED = "57014"


def _keys(statement: Sql) -> list[Key]:
    return [Key(*row) for row in ask(statement)]


def _ranked(words: str, found: list[uuid.UUID]) -> list[uuid.UUID]:
    """Return the hits by relevance: ts_rank, where long texts count less; then newest first."""
    statement = Sql(
        "SELECT d.message_id FROM unnest(%s::uuid[]) WITH ORDINALITY hit(message_id, place)"
        " JOIN ingestion_document d USING (message_id)"
        " ORDER BY ts_rank(d.words, %s::tsquery, 1) DESC, hit.place",
        (found, words),
    )
    return [row[0] for row in ask(statement)]


def _messages(found: list[Key] | list[uuid.UUID]) -> list[Message]:
    """Return messages in their order, with what a list shows: four statements for any number."""
    order = [key.message if isinstance(key, Key) else key for key in found]
    rows = (
        Message.objects.select_related("mailbox__source", "document")
        .defer("document__words")
        .prefetch_related("placements__folder")
        .in_bulk(order)
    )
    return [rows[pk] for pk in order if pk in rows]
