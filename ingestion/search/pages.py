"""Pages of what a query finds, in either order of date or by relevance; counts and newest hits.

What no one index answers, such as `in:small OR word`, is several readings, in one order. A page
costs the same wherever it is: it begins where the one before ended, which is the cursor.
"""

import base64
import binascii
import dataclasses
import datetime as dt
import json
import uuid
from typing import NamedTuple, Self

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Prefetch

from ingestion.models import Message, Placement
from ingestion.search.conditions import Scope, Sql, asked
from ingestion.search.query import Node
from ingestion.search.readings import NEWEST, Key, Order, Reading, ask

#: So many hits are counted; of a phrase fewer, for each mail that may have it is looked into.
CAP, CAP_OF_PHRASE = 10_000, 1_000
#: So many of the newest hits are ordered by relevance.
RANKED = 1_000


class Page(NamedTuple):
    """Messages in the order asked for; cursors of the next page and the one before, "" for none.

    With each come its mailbox, source, document (without its words) and placements.
    """

    messages: list[Message]
    next: str
    previous: str


class Count(NamedTuple):
    """How many are found; `more` where there are more than are counted."""

    number: int
    more: bool


@dataclasses.dataclass(frozen=True)
class Cursor:
    """A place in a list: a key of the order by date. By relevance it is the one before the newest
    hit that is ranked, so that what comes in meanwhile moves none, and `ranks` come before."""

    place: Key
    backwards: bool = False
    ranks: int | None = None

    def __str__(self) -> str:
        written: list[object] = [[self.place.date.isoformat(), str(self.place.message)]]
        written.append(self.backwards if self.ranks is None else self.ranks)
        document = json.dumps(written, separators=(",", ":"))
        return base64.urlsafe_b64encode(document.encode()).decode()

    @classmethod
    def read(cls, text: str, *, by_relevance: bool) -> Self:
        """Raises ValueError where it is none of such a list."""
        try:
            (date, message), how = json.loads(base64.urlsafe_b64decode(text))
            if isinstance(how, bool) is by_relevance:
                raise ValueError(how)
            key = Key(dt.datetime.fromisoformat(date).astimezone(dt.UTC), uuid.UUID(message))
            return cls(key, ranks=range(RANKED)[how]) if by_relevance else cls(key, backwards=how)
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

    def page(self, *, sort: str = "-date", cursor: str = "", size: int = 50) -> Page:
        """Return a page: newest first ("-date"), eldest first ("date"), or by "relevance".

        By relevance the RANKED newest hits are in order, and no others. Raises ValueError for a
        cursor that is none of this list.
        """
        ranked = " | ".join(dict.fromkeys(one.ranked for one in self._asked if one.ranked))
        if sort == "relevance" and ranked:
            return self._page_by_relevance(ranked, cursor, size)
        at = Cursor.read(cursor, by_relevance=False) if cursor else None
        key = at.place if at else None
        backwards = at is not None and at.backwards
        order = Order(newest=(sort != "date") is not backwards)
        found = self._hits(size + 1, order, key)
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
        return [key.message for key in self._hits(limit, NEWEST)]

    def count(self) -> Count:
        """Count the hits, up to CAP or CAP_OF_PHRASE."""
        cap = CAP_OF_PHRASE if any("<->" in asked.words for asked in self._asked) else CAP
        if len(self._asked) == 1:
            number = Reading(self._asked[0], NEWEST, None).count(cap + 1)
        else:
            number = len(self._hits(cap + 1, NEWEST))
        return Count(min(number, cap), number > cap)

    def _hits(self, limit: int, order: Order, after: Key | None = None) -> list[Key]:
        """Return the first hits of all readings."""
        each = [Reading(asked, order, after).hits(limit) for asked in self._asked]
        if len(each) == 1:
            return each[0]
        return sorted({key for found in each for key in found}, reverse=order.newest)[:limit]

    def _page_by_relevance(self, wanted: str, cursor: str, size: int) -> Page:
        at = Cursor.read(cursor, by_relevance=True) if cursor else None
        found = self._hits(RANKED, NEWEST, at.place if at else None)
        if not found:
            return Page([], "", "")
        before = at.place if at else _just_before(found[0])
        start = (at.ranks or 0) if at else 0
        ranked = _ranked(wanted, [key.message for key in found])
        shown = ranked[start : start + size]
        return Page(
            _messages(shown),
            str(Cursor(before, ranks=start + size)) if start + size < len(ranked) else "",
            str(Cursor(before, ranks=max(0, start - size))) if start else "",
        )


def _just_before(key: Key) -> Key:
    """Return the key before one, newest first: nothing is between them."""
    return Key(key.date, uuid.UUID(int=key.message.int + 1))


def _ranked(wanted: str, found: list[uuid.UUID]) -> list[uuid.UUID]:
    """Return the hits by relevance: ts_rank, where long texts count less; then newest first."""
    statement = Sql(
        "SELECT d.message_id FROM unnest(%s::uuid[]) WITH ORDINALITY hit(message_id, place)"
        " JOIN ingestion_document d USING (message_id)"
        " ORDER BY ts_rank(d.words, %s::tsquery, 1) DESC, hit.place",
        (found, wanted),
    )
    return [row[0] for row in ask(statement)]


def _messages(found: list[Key] | list[uuid.UUID]) -> list[Message]:
    """Return messages in their order, with what a list shows: two statements for any number."""
    order = [key.message if isinstance(key, Key) else key for key in found]
    rows = (
        Message.objects.select_related("mailbox__source", "document")
        .defer("document__words", "document__numbers")
        .prefetch_related(Prefetch("placements", Placement.objects.select_related("folder")))
        .in_bulk(order)
    )
    return [rows[pk] for pk in order if pk in rows]
