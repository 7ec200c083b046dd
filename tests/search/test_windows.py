"""Search through windows of time, in an archive of many years: what a plain reading finds."""

import dataclasses
import datetime as dt
import hashlib
import itertools
import random
import uuid

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from ingestion.errors import InvalidInput
from ingestion.models import Document, IngestionSource, Mailbox, Message, Pack
from ingestion.search import conditions, pages, query, readings, words
from tests.documents import indexed

pytestmark = pytest.mark.django_db

WORDS = ("ada", "bob", "cat", "dog", "elk")
SEEDS = range(6)


@dataclasses.dataclass(frozen=True)
class Mail:
    key: tuple[dt.datetime, uuid.UUID]
    text: list[str]

    def says(self, *phrase: str) -> bool:
        size = len(phrase)
        return any(tuple(self.text[at : at + size]) == phrase for at in range(len(self.text)))

    def fits(self, joint: str, phrase: tuple[str, ...], other: str) -> bool:
        if joint == "or":
            return self.says(*phrase) or self.says(other)
        if joint == "without":
            return self.says(*phrase) and not self.says(other)
        return self.says(*phrase) and (joint == "alone" or self.says(other))


def an_archive(draw: random.Random) -> tuple[User, list[Mail]]:
    """Make mail of 1960 to 2110, most of it of the last years, several at the turn of a month."""
    owner = User.objects.create(username="owner")
    source = IngestionSource.objects.create(name="Sales", provider="generic_imap", owner=owner)
    mailbox = Mailbox.objects.create(source=source, remote_id="m", address="m@example.com")
    pack = Pack.objects.create(source=source, size_bytes=1, message_count=1)
    made = []
    for number in range(70):
        year = draw.choice([1960, 1970, 2000, 2019, 2020, 2024, 2024, 2024, 2098, 2100, 2110])
        begun = dt.datetime(year, draw.randrange(12) + 1, 1, tzinfo=dt.UTC)
        date = begun + dt.timedelta(seconds=draw.choice([-1, 0, 1, 86_400 * draw.randrange(28)]))
        text = draw.choices(WORDS, k=draw.randrange(1, 6))
        message = Message.objects.create(
            mailbox=mailbox,
            sha256=hashlib.sha256(bytes([number])).digest(),
            size_bytes=100,
            pack=pack,
            pack_offset=number,
            pack_length=1,
            received_at=date,
        )
        indexed(message, " ".join(text))
        made.append(Mail((date, message.pk), text))
    return owner, made


@pytest.mark.parametrize("seed", SEEDS)
def test_finds_what_a_plain_reading_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    few = draw.choice([1, 3, 10])
    monkeypatch.setattr(readings, "FEW_HITS", few)
    monkeypatch.setattr(readings, "FEW_OF_YEAR", draw.choice([1, few]))
    monkeypatch.setattr(readings, "FAR", draw.choice([2, 8]))
    monkeypatch.setattr(readings, "NEAR", draw.choice([1, 4]))
    owner, mails = an_archive(draw)
    for _ in range(25):
        phrase = tuple(draw.choices(WORDS, k=draw.randrange(1, 4)))
        other = draw.choice(WORDS)
        quoted = f'"{" ".join(phrase)}"'
        asked = {
            "alone": quoted,
            "and": f"{quoted} {other}",
            "or": f"{quoted} OR {other}",
            "without": f"{quoted} -{other}",
        }
        joint, text = draw.choice(list(asked.items()))
        since, before = sorted(draw.choice(mails).key[0] for _ in range(2))
        bounds = {"since": since, "before": before} if draw.random() < 0.4 else {}
        right = sorted(
            mail.key
            for mail in mails
            if mail.fits(joint, phrase, other) and (not bounds or since <= mail.key[0] < before)
        )
        search = pages.Search(owner, query.parse(text), **bounds)
        assert search.count() == (len(right), False), text
        size = draw.choice([2, 7, 40])
        for sort, ordered in (("date", right), ("-date", right[::-1])):
            found: list[uuid.UUID] = []
            page = search.page(sort=sort, size=size)
            found += [message.pk for message in page.messages]
            while page.next:
                page = search.page(sort=sort, size=size, cursor=page.next)
                found += [message.pk for message in page.messages]
            assert found == [pk for _, pk in ordered], (text, sort, bounds)


def test_months_and_years_are_numbered_each_once() -> None:
    """Whatever window a date is in, its month or its year is among the window's numbers."""
    draw = random.Random(1)
    for _ in range(2_000):
        first = draw.randrange(words.MONTHS)
        end = draw.randrange(first, words.MONTHS) + 1
        numbers = set(words.time_numbers(first, end))
        month = draw.choice([first, end - 1, draw.randrange(words.MONTHS)])
        date = words.begin_of_month(month) + dt.timedelta(days=draw.randrange(28))
        assert bool(numbers & set(words.date_numbers(date))) == (first <= month < end)
        assert max(numbers) < 2**15


def test_parts_of_a_window_are_the_window_once_and_in_order() -> None:
    draw = random.Random(2)
    for _ in range(500):
        first = draw.randrange(words.MONTHS - 1)
        window = readings._Window(first, draw.randrange(first, words.MONTHS) + 1)
        months = [month for part in window.wider() for month in range(*part)[::-1]]
        assert months == list(range(*window))[::-1]


def test_the_index_of_words_and_numbers_answers_a_phrase() -> None:
    """In one look: else each row that has both words is read, which takes half a minute."""
    owner, _ = an_archive(random.Random(1))
    [asked] = conditions.asked(query.parse('"ada bob"'), conditions.Scope.of(owner))
    reading = readings.Reading(asked, readings.NEWEST, None)
    statement = reading._with_words(readings._Window(0, 12).condition())
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {statement.text}", statement.params)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Bitmap Index Scan on document_search" in plan
    [condition] = [line for line in plan.splitlines() if "Index Cond" in line]
    assert condition.count("numbers") == 2


def test_a_page_asks_for_words_of_many_years_in_one_statement() -> None:
    """Where it finds less than a page, too: another asks how far back mail goes."""
    owner, mails = an_archive(random.Random(1))
    search = pages.Search(owner, query.parse('"ada bob"'))
    with CaptureQueriesContext(connection) as captured:
        found = search.page(size=100).messages
    assert len(found) == sum(mail.says("ada", "bob") for mail in mails) > 0
    assert sum("ingestion_document d" in one["sql"] for one in captured) == 1


def test_windows_that_take_too_long_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _ = an_archive(random.Random(1))
    for document, month in zip(Document.objects.all(), itertools.cycle([1, 2]), strict=False):
        document.date = dt.datetime(2024, month, 1, tzinfo=dt.UTC)
        document.numbers = [*words.date_numbers(document.date), *document.numbers[2:]]
        document.save()
    monkeypatch.setattr(readings, "FEW_HITS", 1)
    clock = itertools.count(step=readings.TIMEOUT_SECONDS)
    monkeypatch.setattr(readings, "monotonic", lambda: next(clock))
    search = pages.Search(owner, query.parse("ada -ada"))
    for ask in (lambda: search.page(size=1), search.count):
        with pytest.raises(InvalidInput, match="longer than 20 s"):
            ask()


def test_without_numbers_of_all_documents_none_are_asked_for() -> None:
    owner, mails = an_archive(random.Random(2))
    Document.objects.filter(message=mails[0].key[1]).update(numbers=[], version=2)
    for phrase in (("ada", "bob"), ("cat", "dog")):
        right = {mail.key[1] for mail in mails if mail.says(*phrase)}
        page = pages.Search(owner, query.parse(f'"{" ".join(phrase)}"')).page(size=100)
        assert {message.pk for message in page.messages} == right
