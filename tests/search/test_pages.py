"""What is found, page by page, against a plain reading of every message; and whose mail it is."""

import hashlib
import uuid
from collections.abc import Callable

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.search import conditions, pages, query, readings
from ingestion.search.conditions import Sql
from ingestion.search.words import lexemes
from tests.documents import indexed
from tests.search.world import PEOPLE, Known, World, a_world, as_of_version_2, newest

pytestmark = pytest.mark.django_db


@pytest.fixture(params=["windows", "all steps", "without numbers", "all steps without numbers"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, db: None) -> World:
    """Where a step looks at few rows, each search needs all of them."""
    if "all steps" in request.param:
        monkeypatch.setattr(readings, "FAR", 8)
        monkeypatch.setattr(readings, "NEAR", 4)
        monkeypatch.setattr(readings, "FEW_HITS", 3)
        monkeypatch.setattr(readings, "FEW_PLACEMENTS", 5)
        monkeypatch.setattr(conditions, "_MAX_SCOPE_TAGS", 0)  # as where somebody has many sources
    world = a_world()
    if "without numbers" in request.param:
        as_of_version_2()
    return world


def says(word: str) -> Callable[[Known], bool]:
    def test(one: Known) -> bool:
        files = " ".join(one.files)
        whole = f"{one.subject} . {' '.join(PEOPLE[one.sender])} . {files} . {one.text}"
        return word in list(lexemes(whole))

    return test


def day(one: Known) -> tuple[int, int]:
    return one.date.month, one.date.day


def has(*names: str) -> Callable[[Known], bool]:
    return lambda one: any(name in one.files for name in names)


CASES: dict[str, Callable[[Known], bool]] = {
    "": lambda one: True,
    "rare": says("rare"),
    "REPORT": says("report"),
    "strasse": says("strasse"),
    "rep*": says("report"),
    "rare invoice": lambda one: says("rare")(one) and says("invoice")(one),
    "rare OR invoice": lambda one: says("rare")(one) or says("invoice")(one),
    "-annual": lambda one: not says("annual")(one),
    "rare -annual": lambda one: says("rare")(one) and not says("annual")(one),
    '"annual report"': lambda one: any(
        "annual report" in text.lower() for text in (one.subject, one.text, *one.files)
    ),
    "annual-rep*": lambda one: any(
        "annual report" in text.lower() for text in (one.subject, one.text, *one.files)
    ),
    "猫": lambda one: "猫" in one.subject + one.text,
    "黒い猫": lambda one: "黒い猫" in one.subject + one.text,
    "い猫が": lambda one: "い猫が" in one.subject + one.text,
    "subject:rare": lambda one: "rare" in one.subject,
    'subject:"annual report"': lambda one: "annual report" in one.subject,
    "from:ada": lambda one: one.sender == 0,
    "from:lovelace": lambda one: one.sender == 0,
    "from:ada@example.com": lambda one: one.sender == 0,
    "from:@example.org": lambda one: one.sender == 1,
    "from:zoe": lambda one: one.sender == 2,
    "from:(bob OR zo*)": lambda one: one.sender in {1, 2},
    "from:bob@corp.example.org": lambda one: one.sender == 1,
    "from:bob@example.org": lambda one: False,  # whose words the address of another has
    "from:bob@corp.exam*": lambda one: one.sender == 1,
    "from:bob@exam*": lambda one: False,
    "to:team": lambda one: True,
    "to:ann.jones@mail.example.org": lambda one: True,
    "to:ann.team@example.com": lambda one: False,  # whose words those of two others are
    "-to:ann.team@example.com": lambda one: True,
    "to:<ANN.Jones@mail.example.org>": lambda one: True,
    'to:"Ann Jones <ann.jones@mail.example.org>"': lambda one: True,
    "to:'ann.jones@mail.example.org'": lambda one: True,  # as Outlook shows it
    "to:ann.jones@mail.example.org,": lambda one: True,
    "to:<'ann.jones@mail.example.org'>;": lambda one: True,
    "to:'ann.team@example.com'": lambda one: False,
    "cc:team": lambda one: False,
    "has:attachment": lambda one: bool(one.files),
    "type:pdf": has("Annual report.pdf"),
    "type:image": has("logo.png"),
    "filename:invoice": has("Invoice 7.xlsx"),
    'filename:"annual report.pdf"': has("Annual report.pdf"),
    'filename:"report annual"': lambda one: False,  # which texts of mail with the file above have
    "larger:1024": lambda one: one.message.size_bytes > 1_024,
    "larger:1M": lambda one: one.message.size_bytes > 1_000_000,
    "larger:700k": lambda one: one.message.size_bytes > 700_000,  # as many bits as 1,000,000
    "smaller:1040k": lambda one: one.message.size_bytes < 1_040_000,
    "smaller:1024": lambda one: one.message.size_bytes < 1_024,
    "-larger:1k": lambda one: one.message.size_bytes <= 1_000,
    "on:2024-01": lambda one: one.date.month == 1,
    "after:2024-01-10 before:2024-01-12": lambda one: one.date.day in {10, 11} and one.date.month == 1,
    "rare after:2024-01-20": lambda one: says("rare")(one) and day(one) >= (1, 20),
    "-on:2024-01": lambda one: one.date.month != 1,
    "-on:2024-01-10": lambda one: day(one) != (1, 10),
    "-after:2024-01-20": lambda one: day(one) < (1, 20),
    "-before:2024-01-20": lambda one: day(one) >= (1, 20),
    "after:2024-01-05 after:2024-01-10 after:2024-01-07": lambda one: day(one) >= (1, 10),
    "before:2024-01-20 before:2024-01-12 on:2024-01": lambda one: day(one) < (1, 12),
    "in:inbox": lambda one: one.folder.path == "INBOX" and not one.removed,
    "was-in:inbox": lambda one: one.folder.path == "INBOX",
    "in:reports": lambda one: one.folder.path == "Work/Reports" and not one.removed,
    "in:work/reports rare": lambda one: one.folder.path == "Work/Reports" and not one.removed and says("rare")(one),
    "in:sent OR in:reports": lambda one: one.folder.path != "INBOX" and not one.removed,
    "-in:inbox": lambda one: one.folder.path != "INBOX" or one.removed,
    "in:sent OR rare": lambda one: (one.folder.path == "Sent" and not one.removed) or says("rare")(one),
    "in:sent OR was-in:inbox": lambda one: (one.folder.path == "Sent" and not one.removed) or one.folder.path == "INBOX",
    "report (in:sent OR rare)": lambda one: says("report")(one)
    and ((one.folder.path == "Sent" and not one.removed) or says("rare")(one)),
    "label:important": lambda one: "Important" in one.labels and not one.removed,
    "label:seen": lambda one: "\\Seen" in one.labels and not one.removed,
    "label:vip report": lambda one: "VIP" in one.labels and not one.removed and says("report")(one),
    "in:drafts": lambda one: "DRAFT" in one.labels and not one.removed,
    "was-in:Junk": lambda one: "SPAM" in one.labels,
    "-in:junk": lambda one: "SPAM" not in one.labels or one.removed,
    "in:spam OR in:drafts": lambda one: not {"SPAM", "DRAFT"}.isdisjoint(one.labels) and not one.removed,
    "in:vip": lambda one: "VIP" in one.labels and not one.removed,
    "mailbox:m0@example.com": lambda one: one.message.mailbox.address == "M0@example.com",
    "mailbox:m0@example.com in:sent rare": lambda one: one.message.mailbox.address == "M0@example.com"
    and one.folder.path == "Sent" and not one.removed and says("rare")(one),
    "source:sales report": lambda one: one.message.mailbox.source.name == "Sales" and says("report")(one),
    "source:sales mailbox:m2@example.com": lambda one: False,
    "mailbox:m0@example.com OR mailbox:m2@example.com": lambda one: one.message.mailbox.address[:2] in {"M0", "M2"},
    "message-id:7@x": lambda one: one.message.message_id == "<7@x>",
    "message-id:<7@x> OR message-id:8@x": lambda one: one.message.message_id in {"<7@x>", "<8@x>"},
    f"sha256:{hashlib.sha256(b'7').hexdigest()}": lambda one: one.message.message_id == "<7@x>",
    "thread:7": lambda one: one.message.message_id in {"<21@x>", "<22@x>", "<23@x>"},
    "nosuchword": lambda one: False,
    "mailbox:nobody@example.com": lambda one: False,
    "in:nowhere": lambda one: False,
}  # fmt: skip


def found(user: User, text: str) -> list[uuid.UUID]:
    page = pages.Search(user, query.parse(text)).page(size=100)
    assert (page.next, page.previous) == ("", "")
    return [message.pk for message in page.messages]


def test_finds_what_a_plain_reading_finds(world: World) -> None:
    for text, wanted in CASES.items():
        right = newest([one for one in world.known if wanted(one)])
        assert found(world.reader, text) == right, text
        assert pages.Search(world.reader, query.parse(text)).count() == (len(right), False), text


@pytest.mark.parametrize(
    ("text", "cap"),
    [("report", "CAP"), ("in:sent OR rare", "CAP"), ('"annual report"', "CAP_OF_PHRASE")],
)
def test_a_count_says_more_where_there_are_more_than_are_counted(
    world: World, text: str, cap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = len([one for one in world.known if CASES.get(text, says(text))(one)])
    for most, said in ((number, (number, False)), (number - 1, (number - 1, True))):
        monkeypatch.setattr(pages, cap, most)
        assert pages.Search(world.reader, query.parse(text)).count() == said


@pytest.mark.parametrize("text", ["", "report", "in:inbox", "in:sent OR rare"])
def test_pages_follow_each_other_in_both_orders_and_ways(world: World, text: str) -> None:
    right = newest([one for one in world.of(0, 1, 2) if CASES.get(text, says(text))(one)])
    assert walked(world.owner, text) == right
    assert walked(world.owner, text, sort="date") == right[::-1]


def walked(user: User, text: str, *, sort: str = "-date", size: int = 9) -> list[uuid.UUID]:
    """Walk all pages, back and on again between each two."""
    search = pages.Search(user, query.parse(text))
    page = search.page(sort=sort, size=size)
    assert page.previous == ""
    found = [message.pk for message in page.messages]
    while page.next:
        before, page = page, search.page(sort=sort, cursor=page.next, size=size)
        assert page.messages
        found += [message.pk for message in page.messages]
        again = search.page(sort=sort, cursor=page.previous, size=size)
        assert [m.pk for m in again.messages] == [m.pk for m in before.messages]
        assert (again.next != "", again.previous != "") == (True, before.previous != "")
    return found


def test_nobody_finds_what_they_may_not_see(world: World) -> None:
    texts = ["", "report", "-rare", "in:inbox", "label:vip", f"mailbox:{world.mailboxes[0].pk}"]
    texts += [f"source:{world.mailboxes[0].source_id}", "thread:7", "message-id:7@x OR annual"]
    for text in texts:
        for user in (AnonymousUser(), world.staff):
            search = pages.Search(user, query.parse(text))
            assert search.page().messages == []
            assert search.count() == (0, False)
            assert search.newest(10) == []
        for message in pages.Search(world.other, query.parse(text)).page(size=90).messages:
            assert message.mailbox == world.mailboxes[3]


def test_mail_of_a_deleted_source_is_found_no_more(world: World) -> None:
    source = world.mailboxes[2].source
    IngestionSource.objects.filter(pk=source.pk).update(deleted_at=world.known[0].date)
    right = newest([one for one in world.of(0, 1, 3) if says("report")(one)])
    assert found(world.reader, "report") == right
    assert found(world.owner, f"source:{source.pk}") == []


def test_by_relevance_a_word_in_the_subject_comes_first(world: World) -> None:
    found = walked_by_relevance(world.reader, "rare")
    right = [one for one in world.known if says("rare")(one)]
    assert sorted(found) == sorted(one.message.pk for one in right)
    in_subject = {one.message.pk for one in right if "rare" in one.subject}
    assert set(found[: len(in_subject)]) == in_subject


def walked_by_relevance(user: User, text: str) -> list[uuid.UUID]:
    search = pages.Search(user, query.parse(text))
    page = search.page(sort="relevance", size=7)
    found = [message.pk for message in page.messages]
    while page.next:
        before, page = page, search.page(sort="relevance", cursor=page.next, size=7)
        found += [message.pk for message in page.messages]
        again = search.page(sort="relevance", cursor=page.previous, size=7)
        assert [m.pk for m in again.messages] == [m.pk for m in before.messages]
    return found


def test_by_relevance_what_is_indexed_between_two_pages_moves_none(world: World) -> None:
    search = pages.Search(world.reader, query.parse("rare"))
    right = [m.pk for m in search.page(sort="relevance", size=50).messages]
    first = search.page(sort="relevance", size=5)
    late = max(world.known, key=lambda one: one.date).message
    late.pk, late.sha256, late.received_at = uuid.uuid4(), b"late" * 8, timezone.now()
    late.subject = "rare"
    late.save(force_insert=True)
    indexed(late, "rare " * 20)
    second = search.page(sort="relevance", cursor=first.next, size=5)
    again = search.page(sort="relevance", cursor=second.previous, size=5)
    assert [m.pk for m in (*first.messages, *second.messages)] == right[:10]
    assert [m.pk for m in again.messages] == right[:5]


@pytest.mark.parametrize("cursor", ["nonsense", "W10=", "WzEsZmFsc2Vd", "é", "bnVsbA=="])
def test_a_cursor_of_another_list_is_refused(db: None, cursor: str) -> None:
    search = pages.Search(AnonymousUser(), query.parse("a"))
    with pytest.raises(ValueError, match="not a cursor"):
        search.page(cursor=cursor)


def test_a_page_costs_the_same_number_of_statements_whatever_is_on_it(world: World) -> None:
    def statements(size: int) -> int:
        with CaptureQueriesContext(connection) as asked:
            page = pages.Search(world.reader, query.parse("report")).page(size=size)
            for message in page.messages:
                [p.folder.path for p in message.placements.all()]
                str(message.mailbox.source), message.document.preview
        return len([q for q in asked if q["sql"].startswith(("SELECT", "WITH"))])

    assert statements(20) <= 12  # 4 for what is shown, the others for the steps


def test_what_takes_too_long_is_refused_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "TIMEOUT_SECONDS", 0.001)
    with pytest.raises(InvalidInput, match="Narrow it"):
        readings.ask(Sql("SELECT pg_sleep(5)"))
