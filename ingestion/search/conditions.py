"""What a query asks of documents, as SQL: what the index of words answers, and what rows must say.

In all of it `d` is a document. Values are parameters.
"""

import dataclasses
import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Q, QuerySet, Sum

from ingestion import queries
from ingestion.models import Document, Folder, IngestionSource, Mailbox
from ingestion.models.message import COMMON_LABELS
from ingestion.search import tsqueries, words
from ingestion.search.query import AllOf, AnyOf, Node, Not, Term, days


class Sql(NamedTuple):
    text: str
    params: tuple[Any, ...] = ()


def both(parts: Iterable[Sql], joint: str = " AND ") -> Sql:
    """Join conditions; without one it is true."""
    found = list(parts)
    text = joint.join(f"({part.text})" for part in found) or "true"
    return Sql(text, tuple(value for part in found for value in part.params))


@dataclasses.dataclass(frozen=True)
class Scope:
    """Whose mail is searched: all (`column` is ""), or that of some sources or mailboxes."""

    column: str = ""
    ids: tuple[uuid.UUID, ...] = ()
    sources: tuple[uuid.UUID, ...] = ()

    @classmethod
    def of(cls, user: User | AnonymousUser) -> Self:
        """Return what a user may see, as `queries.visible_messages` has it."""
        visible = queries.sources_of_mail(user).order_by()
        sees_all = not IngestionSource.objects.exclude(pk__in=visible.values("pk")).exists()
        sources = tuple(visible.values_list("pk", flat=True))
        return cls(sources=sources) if sees_all else cls("source", sources, sources)

    def of_sources(self, ids: Iterable[uuid.UUID]) -> "Scope":
        """Narrow it to some of its sources; one of mailboxes stays as it is."""
        wanted = set(ids)
        sources = tuple(pk for pk in self.sources if pk in wanted)
        return self if self.column == "mailbox" else Scope("source", sources, sources)

    def of_mailboxes(self, ids: Iterable[uuid.UUID]) -> "Scope":
        """Narrow it to some mailboxes of its sources."""
        wanted = set(ids) & set(self.ids) if self.column == "mailbox" else set(ids)
        return Scope("mailbox", tuple(sorted(wanted)), self.sources)

    def condition(self) -> Sql:
        if not self.column:
            return Sql("true")
        return Sql(f"d.{self.column}_id = ANY(%s)", (list(self.ids),))

    def tags(self) -> str:
        """Return the tsquery of its tags; "" where it is all, or of too many, or so much of it that
        reading the index of them costs more than it leaves out."""
        if not self.column or not 0 < len(self.ids) <= _MAX_SCOPE_TAGS:
            return ""
        if self._messages() * _LARGE_SHARE > _messages_of(IngestionSource.objects.all()):
            return ""
        return tsqueries.any_tag(words.scope_tag(self.column, pk) for pk in self.ids)

    def _messages(self) -> int:
        each = IngestionSource.objects if self.column == "source" else Mailbox.objects
        return _messages_of(each.filter(pk__in=self.ids))


def _messages_of(rows: QuerySet[Any]) -> int:
    return int(rows.aggregate(n=Sum("message_count", default=0))["n"])


_MAX_SCOPE_TAGS = 20
#: One of so many messages are many.
_LARGE_SHARE = 4


class Placed(NamedTuple):
    """Messages that lie in one of some folders, or have one of some labels there."""

    folders: tuple[int, ...]
    labels: tuple[str, ...]
    now: bool

    def condition(self) -> Sql:
        """What is asked of a placement `p`."""
        now = " AND p.removed_at IS NULL" if self.now else ""
        wanted: list[str] = []
        params: list[Any] = []
        if self.folders:
            wanted.append("p.folder_id = ANY(%s)")
            params.append(list(self.folders))
        if self.labels:
            wanted.append("p.labels && %s::text[]")
            params.append(list(self.labels))
        return Sql(f"({' OR '.join(wanted) or 'false'}){now}", tuple(params))

    def of_document(self) -> Sql:
        """Asked for each document: a limit keeps the planner from asking for all at once."""
        text, params = self.condition()
        return Sql(
            "(SELECT true FROM ingestion_placement p"
            f" WHERE p.message_id = d.message_id AND {text} LIMIT 1)",
            params,
        )

    @property
    def is_indexed(self) -> bool:
        return not set(self.labels) & set(COMMON_LABELS)

    def candidates(self) -> Sql:
        """Return the statement of the messages themselves, which may name one twice.

        Only where it `is_indexed`.
        """
        now = " AND p.removed_at IS NULL" if self.now else ""
        parts = []
        if self.folders:
            by_folder = (
                f"SELECT p.message_id FROM ingestion_placement p WHERE p.folder_id = ANY(%s){now}"
            )
            parts.append(Sql(by_folder, (list(self.folders),)))
        if self.labels:
            by_label = (
                "SELECT p.message_id FROM ingestion_placement p"
                f" WHERE p.labels && %s::text[] AND NOT p.labels <@ %s::text[]{now}"
            )
            parts.append(Sql(by_label, (list(self.labels), COMMON_LABELS)))
        if not parts:
            return Sql("SELECT NULL::uuid AS message_id WHERE false")
        return both(parts, " UNION ALL ")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a query asks, of whose mail.

    `words` is a tsquery that all it finds has ("" for none), with which the index can begin, and
    `pairs` the numbers of neighbours that all has; `where` is what rows must say besides.
    `direct`: so few have it that the index is asked at once. `numbered`: all documents have their
    numbers. `ranked` is the tsquery that relevance goes by.
    """

    scope: Scope
    words: str
    pairs: frozenset[int]
    where: Sql
    places: tuple[Placed, ...]
    since: dt.datetime | None
    before: dt.datetime | None
    direct: bool
    numbered: bool
    ranked: str


def asked(
    node: Node, scope: Scope, since: dt.datetime | None = None, before: dt.datetime | None = None
) -> list[Asked]:
    """Return what a query asks within a scope, from a moment on and before another: all that it
    finds is found by one or another of these.

    Looks up mailboxes, sources and folders by name.
    """
    numbered = not Document.objects.filter(numbers=[]).exists()
    found = []
    for parts in _alternatives(node):
        made = _Conditions(scope, numbered)
        made.since, made.before = since, before
        for part in sorted(parts, key=lambda p: not _is_scope(p)):  # folders are looked up in it
            made.take(part)
        found.append(made.asked())
    return found


def _alternatives(node: Node) -> list[tuple[Node, ...]]:
    """Return of each reading what all that it finds must have.

    There are several where one of some things is asked for that no one index answers all of, such
    as `in:small OR word`: each has its own.
    """
    parts = node.nodes if isinstance(node, AllOf) else (node,)
    for part in parts:
        if not isinstance(part, AnyOf) or tsqueries.tsquery(part) or _are_places(part):
            continue
        having: list[Node] = []
        others: list[Node] = []
        for inner in part.nodes:
            indexed = tsqueries.tsquery(inner) and tsqueries.begins_with(inner)
            (having if indexed else others).append(inner)
        each = [*others, *([AnyOf(tuple(having))] if len(having) > 1 else having)]
        if len(each) > _MAX_ALTERNATIVES:
            continue
        besides = tuple(other for other in parts if other is not part)
        return [
            (*besides, *(inner.nodes if isinstance(inner, AllOf) else (inner,))) for inner in each
        ]
    return [parts]


_MAX_ALTERNATIVES = 5


class _Conditions:
    def __init__(self, scope: Scope, numbered: bool) -> None:
        self.whole = scope
        self.numbered = numbered
        self.scope = scope
        self.words: list[str] = []
        self.pairs: set[int] = set()
        self.where: list[Sql] = []
        self.places: list[Placed] = []
        self.since: dt.datetime | None = None
        self.before: dt.datetime | None = None
        self.direct = False
        self.ranked: list[str] = []

    def asked(self) -> Asked:
        where = both([*self.where, *(placed.of_document() for placed in self.places)])
        return Asked(
            self.scope,
            " & ".join(self.words),
            frozenset(self.pairs if self.numbered else ()),
            where,
            tuple(self.places),
            self.since,
            self.before,
            self.direct,
            self.numbered,
            " | ".join(self.ranked),
        )

    def take(self, node: Node) -> None:
        """Take in what all that is found must have."""
        if isinstance(node, Term) and node.name in _NARROWING:
            self._narrow(node)
            return
        query = tsqueries.tsquery(node)
        if (placed := self._placed_in_any(node)) is not None:
            self.places.append(placed)
        elif query is None:
            self.where.append(self._sql(node))
        elif tsqueries.begins_with(node):
            self.words.append(f"({query})")
            self.pairs |= tsqueries.pairs(node)
            self.ranked += tsqueries.ranked(node)
        else:
            self.where.append(Sql("d.words @@ %s::tsquery", (query,)))

    def _narrow(self, term: Term) -> None:
        """Take in a term that says more than a condition on each row does."""
        match term.name:
            case "mailbox":
                self.scope = self.scope.of_mailboxes(self._ids(term))
                self.where.append(self._sql(term))
            case "source":
                self.scope = self.scope.of_sources(self._ids(term))
                self.where.append(self._sql(term))
            case "in" | "was-in" | "folder" | "label":
                self.places.append(self._placed(term))
            case "larger" | "smaller":
                self.words.append(tsqueries.of_sizes(term))
                self.where.append(self._sql(term))
            case "thread":
                # The index of threads begins with mailboxes.
                if self.scope.column != "mailbox":
                    mailboxes = Mailbox.objects.filter(source__in=self.scope.sources)
                    ids = mailboxes.values_list("pk", flat=True)
                    self.scope = self.scope.of_mailboxes(ids)
                self.where.append(self._sql(term))
                self.direct = True
            case "message-id" | "sha256":
                self.words.append(tsqueries.tsquery(term) or "")
                self.direct = True
            case _:  # dates
                first, after = days(term.value)
                if term.name in {"after", "on"}:
                    self.since = max(self.since or first, first)
                if term.name in {"before", "on"}:
                    end = first if term.name == "before" else after
                    self.before = min(self.before or end, end)

    def _sql(self, node: Node) -> Sql:
        """Return a node as a condition on `d`, wherever it stands."""
        query = tsqueries.tsquery(node)
        if query is not None:
            return Sql("d.words @@ %s::tsquery", (query,))
        if isinstance(node, Not):
            text, params = self._sql(node.node)
            return Sql(f"({text}) IS NOT TRUE", params)
        if isinstance(node, AllOf | AnyOf):
            joint = " AND " if isinstance(node, AllOf) else " OR "
            return both([self._sql(inner) for inner in node.nodes], joint)
        assert isinstance(node, Term)
        return self._sql_of_term(node)

    def _sql_of_term(self, term: Term) -> Sql:
        match term.name:
            case "mailbox" | "source":
                return Sql(f"d.{term.name}_id = ANY(%s)", (self._ids(term),))
            case "in" | "was-in" | "folder" | "label":
                return self._placed(term).of_document()
            case "larger" | "smaller":
                more = ">" if term.name == "larger" else "<"
                return Sql(
                    "(SELECT m.size_bytes FROM ingestion_message m WHERE m.id = d.message_id)"
                    f" {more} %s",
                    (int(term.value),),
                )
            case "thread":
                return Sql("d.thread = %s", (int(term.value),))
            case "after":
                return Sql("d.date >= %s", (days(term.value)[0],))
            case "before":
                return Sql("d.date < %s", (days(term.value)[0],))
            case "on":
                return Sql("d.date >= %s AND d.date < %s", days(term.value))
        raise AssertionError(term.name)

    def _ids(self, term: Term) -> list[uuid.UUID]:
        """Look up mailboxes or sources by id or name among those that may be seen."""
        try:
            wanted = Q(pk=uuid.UUID(term.value))
        except ValueError:
            name = "name" if term.name == "source" else "address"
            wanted = Q(**{f"{name}__iexact": term.value})
        visible = self.whole.sources
        if term.name == "source":
            sources = IngestionSource.objects.filter(wanted, pk__in=visible)
            return list(sources.values_list("pk", flat=True))
        mailboxes = Mailbox.objects.filter(wanted, source__in=visible)
        return list(mailboxes.values_list("pk", flat=True))

    def _placed_in_any(self, node: Node) -> Placed | None:
        """Return in:a OR label:b as one look into the placements."""
        if not isinstance(node, AnyOf) or not _are_places(node):
            return None
        each = [self._placed(term) for term in node.nodes if isinstance(term, Term)]
        folders = tuple(pk for placed in each for pk in placed.folders)
        labels = tuple(label for placed in each for label in placed.labels)
        return Placed(folders, labels, each[0].now)

    def _placed(self, term: Term) -> Placed:
        folders = Folder.objects.filter(mailbox__source__in=self.whole.sources)
        if self.scope.column == "mailbox":
            folders = folders.filter(mailbox__in=self.scope.ids)
        labels: tuple[str, ...] = ()
        if term.name == "folder":
            folders = folders.filter(pk=int(term.value))
        elif term.name == "label":
            folders, labels = folders.none(), _spellings(term.value)
        else:
            folders = _named(folders, term.value)
            labels = (*_spellings(term.value), *_LABELS_OF_ROLES.get(term.value.lower(), ()))
        ids = tuple(folders.values_list("pk", flat=True))
        return Placed(ids, labels, now=term.name != "was-in")


_PLACES = frozenset({"in", "was-in", "folder", "label"})
_NARROWING = _PLACES | frozenset(
    {
        *("mailbox", "source", "larger", "smaller", "thread", "message-id", "sha256"),
        *("after", "before", "on"),
    }
)


def _are_places(node: AnyOf) -> bool:
    """Tell whether one look into the placements answers it all."""
    names = {inner.name if isinstance(inner, Term) else "" for inner in node.nodes}
    return names == {"was-in"} or names <= _PLACES - {"was-in"}


def _is_scope(node: Node) -> bool:
    return isinstance(node, Term) and node.name in {"mailbox", "source"}


def _named(folders: QuerySet[Folder], name: str) -> QuerySet[Folder]:
    """Narrow to folders by their path, its last part, or their role; in any case."""
    return folders.filter(
        Q(path__iexact=name) | Q(path__iendswith=f"/{name}") | Q(role=name.lower())
    )


#: Gmail has all mail in one folder, and labels in the place of roles: these it calls otherwise.
_LABELS_OF_ROLES = {"drafts": ("DRAFT",), "junk": ("SPAM",)}


def _spellings(label: str) -> tuple[str, ...]:
    """Return how a label may be spelled: the index knows each as it is. A flag of IMAP has a
    backslash, as Gmail's own labels have there."""
    found = (label, label.upper(), label.lower(), label.capitalize(), label.title())
    return tuple(dict.fromkeys([*found, f"\\{label.capitalize()}"]))
