"""Which messages an export takes: what a query finds of the mail that a user may see, in batches.

Every message of a source, mailbox or folder, whether or not it has been indexed; what asks for
anything else finds what search finds.
"""

import datetime as dt
import json
import uuid
from collections.abc import Iterator

from django.contrib.auth.models import User
from django.db.models import Exists, OuterRef, Q, QuerySet

from ingestion import queries
from ingestion.errors import InvalidInput
from ingestion.models import Message, Placement
from ingestion.search import query as language
from ingestion.search.query import AllOf, Node, Term

#: So many rows are held at a time, with their placements.
BATCH = 500
_PLACES = frozenset({"source", "mailbox", "folder"})


class Selection:
    """What `query` finds of the mail that `user` may see, archived before `until`.

    Raises InvalidInput where the query is none.
    """

    def __init__(self, user: User, query: str, *, until: dt.datetime) -> None:
        self._user = user
        self._until = until
        self._terms = _places(_parsed(query))

    def count(self) -> int:
        return self._found().count()

    def size_bytes(self, limit: int) -> int:
        """Return the size of the first `limit` messages."""
        return sum(self._found().order_by().values_list("size_bytes", flat=True)[:limit])

    def batches(self, after: str = "") -> Iterator[tuple[list[Message], str]]:
        """Yield messages with their mailbox, source, placements and folders, and where to go on
        after them. What was archived first comes first; within a batch, as it lies in packs."""
        while rows := self._rows(after):
            last = rows[-1]
            after = json.dumps([last.archived_at.isoformat(), str(last.pk)])
            yield sorted(rows, key=lambda row: (row.pack_id, row.pack_offset)), after

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
        found = queries.visible_messages(self._user).filter(archived_at__lt=self._until)
        for term in self._terms:
            found = found.filter(_condition(term))
        return found


def _parsed(query: str) -> Node:
    try:
        return language.parse(query)
    except language.QueryError as error:
        raise InvalidInput({"query": [f"{error} (at character {error.position + 1})"]}) from None


def _places(node: Node) -> list[Term]:
    terms = node.nodes if isinstance(node, AllOf) else (node,)
    found = [term for term in terms if isinstance(term, Term) and term.name in _PLACES]
    if len(found) < len(terms):
        known = ", ".join(f"{name}:" for name in sorted(_PLACES))
        raise InvalidInput({"query": [f"Of the query language, exports know {known} for now."]})
    return found


def _condition(term: Term) -> Q:
    if term.name == "folder":
        there = Placement.objects.filter(message=OuterRef("pk"), folder=int(term.value))
        return Q(Exists(there))
    owner = "mailbox__source" if term.name == "source" else "mailbox"
    try:
        return Q(**{owner: uuid.UUID(term.value)})
    except ValueError:
        name = "name" if term.name == "source" else "address"
        return Q(**{f"{owner}__{name}__iexact": term.value})
