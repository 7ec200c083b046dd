"""Which thread a message belongs to.

Where the provider says that, its word is all that counts. Else Message-IDs decide: a message ties
its own to those that it refers to, and what hangs together so is a thread, in whatever order it
comes. This is union-find, kept in rows: of a message that is there, Document.thread says which
thread it is in; of one that is referred to and not there, AbsentMessage. Where a message shows that
two threads are one, the smaller of them is relabelled: each document at most log n times.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ingestion.services.engine import statements as sql

#: The first reference begins the thread, the last ones are the nearest; a stranger may write many.
_LAST_REFERENCES = 20


class Node(NamedTuple):
    """A message as its thread sees it. `provider`: the provider's id of the thread, "" where it has
    none; `own`: the key of its Message-ID; `refers_to`: the keys of others, the eldest first;
    `otherwise`: what names a thread of this message alone."""

    provider: str
    own: int | None
    refers_to: tuple[int, ...]
    otherwise: str


def message_key(message_id: str) -> int | None:
    """Return the eight bytes that a Message-ID is known by, with or without its brackets; None
    where there is none."""
    bare = message_id.strip().removeprefix("<").removesuffix(">").strip()
    return _hash(bare) if bare else None


def references(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the keys of what a message refers to, by its `Digest.fields`; the eldest first."""
    listed = list(fields.get("references", ()))
    if len(listed) > _LAST_REFERENCES:
        listed = [listed[0], *listed[-_LAST_REFERENCES:]]
    keys = [message_key(str(one)) for one in [*listed, fields.get("inReplyTo", "")]]
    return tuple(dict.fromkeys([key for key in keys if key is not None]))


def assign(mailbox_id: uuid.UUID, nodes: Sequence[Node]) -> list[int]:
    """Return the thread of each message; make one of threads that they show to be one.

    Call it in a transaction that has the mailbox's documents to itself, before these messages have
    theirs. A message that had one before stays where it was: threads grow, and are never split.
    """
    graph = _Graph(mailbox_id)
    graph.load([key for node in nodes if not node.provider for key in _keys(node)])
    labels = [
        _hash(node.provider) | 1 if node.provider else graph.add(node)  # odd: the provider's
        for node in nodes
    ]
    graph.store([node for node in nodes if not node.provider])
    return [label if node.provider else graph.find(label) for node, label in _both(nodes, labels)]


def _both(nodes: Sequence[Node], labels: Sequence[int]) -> Iterator[tuple[Node, int]]:
    return zip(nodes, labels, strict=True)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def even(key: int) -> int:
    return key & ~1


def _keys(node: Node) -> Iterator[int]:
    if node.own is not None:
        yield node.own
    yield from node.refers_to


class _Graph:
    """The threads of a mailbox that some messages have to do with."""

    def __init__(self, mailbox_id: uuid.UUID) -> None:
        self._mailbox_id = mailbox_id
        self._of: dict[int, int] = {}  # key -> a label
        self._there: set[int] = set()  # keys that a document has
        self._stored: set[int] = set()  # labels that rows have
        self._parents: dict[int, int] = {}

    def load(self, keys: Iterable[int]) -> None:
        wanted = {"owner": self._mailbox_id, "keys": list(dict.fromkeys(keys))}
        if not wanted["keys"]:
            return
        absent, there = sql.pairs(_ABSENT, wanted), sql.pairs(_THERE, wanted)
        self._of = absent | there
        self._there = set(there)
        self._stored = set(self._of.values())

    def find(self, label: int) -> int:
        while (parent := self._parents.get(label, label)) != label:
            label = parent
        return label

    def add(self, node: Node) -> int:
        """Tie a message to what it refers to; return a label of its thread."""
        labels = {self.find(self._of[key]): None for key in _keys(node) if key in self._of}
        if labels:
            label, *others = labels
            for other in others:
                self._parents[other] = label
        else:
            first = next(iter(node.refers_to or _keys(node)), None)
            label = even(_hash(node.otherwise) if first is None else first)
        for key in _keys(node):
            self._of[key] = label
        return label

    def store(self, nodes: Sequence[Node]) -> None:
        """Write down which threads became one, and what is referred to and not there."""
        self._let_the_largest_stay()
        merged = {old: self.find(old) for old in self._stored if self.find(old) != old}
        if merged:
            renamed = {"owner": self._mailbox_id, "old": [*merged], "new": [*merged.values()]}
            sql.run(_RELABEL.format("ingestion_document"), renamed)
            sql.run(_RELABEL.format("ingestion_absentmessage"), renamed)
        own = {node.own for node in nodes if node.own is not None}
        referred = {key for node in nodes for key in node.refers_to}
        absent = {key: self.find(self._of[key]) for key in referred - own - self._there}
        if absent:
            sql.run(
                _ADD_ABSENT,
                {"owner": self._mailbox_id, "keys": [*absent], "labels": [*absent.values()]},
            )
        if own:
            sql.run(_DROP_ABSENT, {"owner": self._mailbox_id, "keys": [*own]})

    def _let_the_largest_stay(self) -> None:
        """Choose of the labels of each thread the one that most rows have."""
        threads: dict[int, list[int]] = {}
        for label in self._stored:
            threads.setdefault(self.find(label), []).append(label)
        several = [label for labels in threads.values() if len(labels) > 1 for label in labels]
        sizes = sql.pairs(_SIZES, {"owner": self._mailbox_id, "labels": several}) if several else {}
        for root, labels in threads.items():
            stays = max(labels, key=lambda label: (sizes.get(label, 0), label))
            if stays != root:
                self._parents[root] = stays
                self._parents.pop(stays, None)


#: One search of the index a key, as `statements.ONE_BY_ONE` says. A document in a thread of the
#: provider's is none of ours.
_THERE = """SELECT key, found.thread FROM unnest(%(keys)s::bigint[]) AS key CROSS JOIN LATERAL
    (SELECT thread FROM ingestion_document
      WHERE mailbox_id = %(owner)s AND message_key = key AND thread & 1 = 0 LIMIT 1) AS found"""
_ABSENT = """SELECT key, found.thread FROM unnest(%(keys)s::bigint[]) AS key CROSS JOIN LATERAL
    (SELECT thread FROM ingestion_absentmessage
      WHERE mailbox_id = %(owner)s AND message_key = key LIMIT 1) AS found"""
_SIZES = """SELECT thread, count(*) FROM ingestion_document
    WHERE mailbox_id = %(owner)s AND thread = ANY(%(labels)s::bigint[]) GROUP BY thread"""
_RELABEL = """UPDATE {} t SET thread = n.new
     FROM unnest(%(old)s::bigint[], %(new)s::bigint[]) AS n(old, new)
    WHERE t.mailbox_id = %(owner)s AND t.thread = n.old"""
_ADD_ABSENT = """INSERT INTO ingestion_absentmessage (mailbox_id, message_key, thread)
    SELECT %(owner)s, key, label FROM unnest(%(keys)s::bigint[], %(labels)s::bigint[])
        AS n(key, label)
    ON CONFLICT DO NOTHING"""
_DROP_ABSENT = """DELETE FROM ingestion_absentmessage
    WHERE mailbox_id = %(owner)s AND message_key = ANY(%(keys)s::bigint[])"""
