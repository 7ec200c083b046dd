"""Which messages an export takes: what a query finds of the mail that a user may see, in batches.

Every message of a source, mailbox or folder, whether or not it has been indexed; what asks for
anything else finds what search finds.
"""

import datetime as dt
import itertools
import json
import uuid
from collections.abc import Iterator

from django.contrib.auth.models import User
from django.db.models import Exists, Max, OuterRef, Q, QuerySet
from django.db.models.functions import Coalesce, Now

from ingestion import index_health, queries
from ingestion.amounts import counted
from ingestion.errors import InvalidInput
from ingestion.models import Message, Placement
from ingestion.search import query as language
from ingestion.search.pages import Search
from ingestion.search.query import AllOf, Node, Term

#: So many rows are held at a time, with their placements.
BATCH = 500
_PLACES = frozenset({"source", "mailbox", "folder"})


class Selection:
    """What `query` finds of the mail that `user` may see, of what is archived now.

    `until` and `unindexed` are those of a Selection that this one goes on for. Raises InvalidInput
    where the query is none.
    """

    def __init__(
        self,
        user: User,
        query: str,
        *,
        until: dt.datetime | None = None,
        unindexed: int | None = None,
    ) -> None:
        self._user = user
        #: By no clock: one that is behind, or was ahead, would leave mail out.
        self.until = until or _newest()
        node = _parsed(query)
        self._terms = _places(node)
        self._search = Search(user, node) if self._terms is None else None
        #: How many messages a search may miss: those that were not indexed when it began, for what
        #: is indexed while it goes on may lie behind it. Counted after `until`, which leaves out
        #: what comes later. Whole places need no index.
        self.unindexed = self._unindexed() if unindexed is None else unindexed

    def count(self) -> int | None:
        """Return how many it takes; None where search does not count that far."""
        if self._search is None:
            return self._found().count()
        counted = self._search.count()
        return None if counted.more else counted.number

    def left_out(self) -> str:
        """Say how many messages may be missing, because they were not indexed; "" where none is."""
        if not self.unindexed:
            return ""
        were = "was" if self.unindexed == 1 else "were"
        return (
            f" {counted(self.unindexed, 'message')} {were} not indexed yet when this began: a"
            " search may have missed them. Export again once they are indexed."
        )

    def _unindexed(self) -> int:
        if self._search is None:
            return 0
        return index_health.in_all(queries.sources_of_mail(self._user)).waiting

    def first(self, limit: int) -> tuple[int, int]:
        """Return how many it takes, up to `limit`, and how many bytes these have."""
        messages = itertools.chain.from_iterable(rows for rows, _ in self.batches())
        sizes = [message.size_bytes for message in itertools.islice(messages, limit)]
        return len(sizes), sum(sizes)

    def batches(self, after: str = "") -> Iterator[tuple[list[Message], str]]:
        """Yield messages with their mailbox, source, placements and folders, and where to go on
        after them. Within a batch they come as they lie in packs."""
        found = self._by_search(after) if self._search else self._by_time(after)
        for rows, following in found:
            yield sorted(rows, key=lambda row: (row.pack_id, row.pack_offset)), following

    def _by_search(self, after: str) -> Iterator[tuple[list[Message], str]]:
        assert self._search is not None
        while after != "end":
            page = self._search.page(sort="date", cursor=after, size=BATCH)
            after = page.next or "end"
            yield [row for row in page.messages if row.archived_at <= self.until], after

    def _by_time(self, after: str) -> Iterator[tuple[list[Message], str]]:
        while rows := self._rows(after):
            last = rows[-1]
            after = json.dumps([last.archived_at.isoformat(), str(last.pk)])
            yield rows, after

    def _rows(self, after: str) -> list[Message]:
        found = self._found()
        if after:
            at, pk = json.loads(after)
            moment = dt.datetime.fromisoformat(at)
            found = found.filter(archived_at__gte=moment)  # a range of the index; the OR is none
            found = found.filter(Q(archived_at__gt=moment) | Q(pk__gt=uuid.UUID(pk)))
        related = found.select_related("mailbox__source").prefetch_related("placements__folder")
        return list(related.order_by("archived_at", "pk")[:BATCH])

    def _found(self) -> QuerySet[Message]:
        found = queries.visible_messages(self._user).filter(archived_at__lte=self.until)
        for term in self._terms or ():
            found = found.filter(_condition(term))
        return found


def _newest() -> dt.datetime:
    newest = Coalesce(Max("archived_at"), Now())
    at: dt.datetime = Message.objects.aggregate(at=newest)["at"]
    return at


def _parsed(query: str) -> Node:
    try:
        return language.parse(query)
    except language.QueryError as error:
        raise InvalidInput({"query": [f"{error} (at character {error.position + 1})"]}) from None


def _places(node: Node) -> list[Term] | None:
    """Return the terms of a query that names places alone; None for any other."""
    terms = node.nodes if isinstance(node, AllOf) else (node,)
    found = [term for term in terms if isinstance(term, Term) and term.name in _PLACES]
    return found if len(found) == len(terms) else None


def _condition(term: Term) -> Q:
    if term.name == "folder":
        placed = Placement.objects.filter(message=OuterRef("pk"), folder=int(term.value))
        return Q(Exists(placed.filter(removed_at=None)))
    owner = "mailbox__source" if term.name == "source" else "mailbox"
    try:
        return Q(**{owner: uuid.UUID(term.value)})
    except ValueError:
        name = "name" if term.name == "source" else "address"
        return Q(**{f"{owner}__{name}__iexact": term.value})
