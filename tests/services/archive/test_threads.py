"""A mailbox's threads are the same in whatever order its mail comes."""

import itertools
import random
import uuid
from collections.abc import Iterator, Sequence

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from ingestion.models import AbsentMessage, Document, IngestionSource, Mailbox, Message, Pack
from ingestion.services.archive import threads
from ingestion.services.archive.threads import Node

pytestmark = pytest.mark.django_db


@pytest.fixture
def mailbox(source: IngestionSource) -> Mailbox:
    return Mailbox.objects.create(source=source, remote_id="me", address="me@example.com")


@pytest.fixture
def pack(source: IngestionSource) -> Pack:
    return Pack.objects.create(source=source, size_bytes=1, message_count=1)


def node(own: int | None, *refers_to: int, provider: str = "") -> Node:
    return Node(provider, own, refers_to, uuid.uuid4().hex)


def arrive(mailbox: Mailbox, pack: Pack, nodes: Sequence[Node]) -> None:
    """Give messages documents, in one transaction."""
    with transaction.atomic():
        labels = threads.assign(mailbox.pk, nodes)
        for one, label in zip(nodes, labels, strict=True):
            message = Message.objects.create(
                mailbox=mailbox, pack=pack, sha256=uuid.UUID(one.otherwise).bytes * 2,
                size_bytes=1, pack_offset=0, pack_length=0, message_id=one.otherwise,
            )  # fmt: skip
            Document.objects.create(
                message=message, source_id=mailbox.source_id, mailbox=mailbox, version=1,
                date=message.archived_at, message_key=one.own, thread=label,
            )  # fmt: skip


def partition() -> set[frozenset[str]]:
    """Return which messages are in a thread together."""
    found: dict[int, set[str]] = {}
    for thread, name in Document.objects.values_list("thread", "message__message_id"):
        found.setdefault(thread, set()).add(name)
    return {frozenset(names) for names in found.values()}


def components(nodes: Sequence[Node]) -> set[frozenset[str]]:
    """Return what hangs together, by searching the whole graph."""
    having: dict[object, list[Node]] = {}
    for one in nodes:
        for tie in _ties(one):
            having.setdefault(tie, []).append(one)
    left, found = dict.fromkeys(nodes), set()
    while left:
        start = next(iter(left))
        waiting, seen = [start], {start}
        while waiting:
            for tie in _ties(waiting.pop()):
                new = [other for other in having[tie] if other not in seen]
                seen.update(new)
                waiting += new
        found.add(frozenset(one.otherwise for one in seen))
        for one in seen:
            del left[one]
    return found


def _ties(one: Node) -> Iterator[object]:
    if one.provider:
        yield one.provider
    else:
        yield one.otherwise
        yield from (key for key in (one.own, *one.refers_to) if key is not None)


def some_mail(chance: random.Random) -> list[Node]:
    """Make mail that refers to some that is there, to some that never comes, and in circles; some
    has no id, some another's, of some the provider says the thread."""
    keys = [chance.randrange(-(2**63), 2**63) for _ in range(chance.choice([4, 40, 80]))]
    made = []
    for _ in range(chance.randrange(1, 60)):
        own = chance.choice([None, *keys])
        about = chance.sample(keys, chance.choice([0, 1, 1, 2, 3]))
        provider = chance.choice(["", "", "", "", "t1", "t2"])
        made.append(node(own, *about, provider=provider))
    return made


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_threads_are_the_components_of_what_refers_to_what(
    mailbox: Mailbox, pack: Pack, seed: int
) -> None:
    chance = random.Random(seed)
    mail = some_mail(chance)
    chance.shuffle(mail)
    left = list(mail)
    while left:
        size = chance.choice([1, 1, 2, 5, 20])
        arrive(mailbox, pack, left[:size])
        del left[:size]
    assert partition() == components(mail)
    absent = set(AbsentMessage.objects.values_list("message_key", flat=True))
    own = {one.own for one in mail if not one.provider}
    assert absent == {key for one in mail if not one.provider for key in one.refers_to} - own


def test_another_mailbox_has_threads_of_its_own(
    source: IngestionSource, mailbox: Mailbox, pack: Pack
) -> None:
    other = Mailbox.objects.create(source=source, remote_id="you", address="you@example.com")
    arrive(mailbox, pack, [node(2, 1)])
    arrive(other, pack, [node(3, 2, 5)])
    arrive(mailbox, pack, [node(6, 5)])
    assert len(partition()) == 3


def test_a_long_conversation_that_comes_backwards_is_relabelled_seldom(
    mailbox: Mailbox, pack: Pack
) -> None:
    """Each message refers to the one before alone, and comes before it."""
    keys = [number * 1000 for number in range(1, 80)]
    with CaptureQueriesContext(connection) as queries:
        for older, newer in reversed(list(itertools.pairwise(keys))):
            arrive(mailbox, pack, [node(newer, older)])
    assert len(partition()) == 1
    assert not [q for q in queries if "SET thread" in q["sql"]]
    assert AbsentMessage.objects.count() == 1


def test_of_two_threads_that_become_one_the_smaller_is_relabelled(
    mailbox: Mailbox, pack: Pack
) -> None:
    arrive(mailbox, pack, [node(10), *(node(100 + n, 10) for n in range(6))])
    arrive(mailbox, pack, [node(20, 99), node(201, 20)])
    large = Document.objects.get(message_key=10).thread
    arrive(mailbox, pack, [node(300, 20, 10)])
    arrive(mailbox, pack, [node(400, 99)])  # which is not there, and belongs to the smaller
    assert set(Document.objects.values_list("thread", flat=True)) == {large}


def test_references_are_told_by_the_first_and_the_nearest_and_with_or_without_brackets() -> None:
    listed = [f"<{number}@example.com>" for number in range(1000)]
    keys = threads.references({"references": listed, "inReplyTo": "999@example.com"})
    assert keys[0] == threads.message_key("0@example.com")
    assert keys[-1] == threads.message_key("<999@example.com>")
    assert len(keys) == 21
    assert threads.references({}) == ()
    assert threads.message_key(" <> ") is None
