"""Search through windows of time, in an archive of many years: what a plain reading finds."""

import dataclasses
import datetime as dt
import hashlib
import itertools
import random
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ingestion.errors import InvalidInput
from ingestion.models import Document, IngestionSource, Mailbox, Message, Pack
from ingestion.search import conditions, pages, query, readings, words
from ingestion.search.readings import NEWEST, Key, Order, Reading
from tests.documents import indexed

pytestmark = pytest.mark.django_db

WORDS = ("ada", "bob", "cat")
#: Numbers of months end with 2099 and begin with 1970.
YEARS = (*(2018, 2019, 2020) * 3, 1960, 2110)
TURNS = [
    dt.datetime(*day, tzinfo=dt.UTC)
    for day in ((2019, 11, 15), (2019, 12, 1), (2020, 1, 15), (2020, 2, 1))
]


@dataclasses.dataclass(frozen=True)
class Mail:
    key: Key
    text: list[str]

    def says(self, *phrase: str) -> bool:
        size = len(phrase)
        return any(tuple(self.text[at : at + size]) == phrase for at in range(len(self.text)))


QUERIES: dict[str, Callable[[Mail], bool]] = {
    "ada": lambda mail: mail.says("ada"),
    "ada bob": lambda mail: mail.says("ada") and mail.says("bob"),
    "ada OR bob": lambda mail: mail.says("ada") or mail.says("bob"),
    "ada -bob": lambda mail: mail.says("ada") and not mail.says("bob"),
    '"ada bob"': lambda mail: mail.says("ada", "bob"),
    '"ada bob" cat': lambda mail: mail.says("ada", "bob") and mail.says("cat"),
    '"ada bob ada" OR cat': lambda mail: mail.says("ada", "bob", "ada") or mail.says("cat"),
}


def moments() -> st.SearchStrategy[dt.datetime]:
    """Moments in any zone, many of them where a month or a year begins in UTC."""
    begins = st.builds(
        dt.datetime,
        st.sampled_from(YEARS),
        st.sampled_from((1, 2, 11, 12)),
        st.just(1),
        tzinfo=st.just(dt.UTC),
    )
    later = st.sampled_from([dt.timedelta(seconds=n) for n in (-1, 0, 86_400 * 14)])
    zones = st.sampled_from([dt.timezone(dt.timedelta(hours=n)) for n in (0, 0, -11, 13)])
    return st.builds(lambda begin, by, zone: (begin + by).astimezone(zone), begins, later, zones)


def dated() -> st.SearchStrategy[list[tuple[dt.datetime, list[str]]]]:
    """Dates and texts of mail: several at or about a moment, in months and years without other."""
    texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4)
    clumps = st.tuples(moments(), st.sampled_from((1, 1, 1, 5, 9)), texts)
    return st.lists(clumps, max_size=9).map(
        lambda drawn: [
            (moment + dt.timedelta(seconds=number // 2), text)
            for moment, count, text in drawn
            for number in range(count)
        ]
    )


Archive = tuple[User, list[Message]]


@pytest.fixture
def archive(db: None) -> Archive:
    """Messages without documents, and whose they are."""
    owner = User.objects.create(username="owner")
    source = IngestionSource.objects.create(name="Sales", provider="generic_imap", owner=owner)
    mailbox = Mailbox.objects.create(source=source, remote_id="m", address="m@example.com")
    pack = Pack.objects.create(source=source, size_bytes=1, message_count=1)
    made = [
        Message(
            mailbox=mailbox,
            sha256=hashlib.sha256(bytes([number])).digest(),
            size_bytes=100,
            pack=pack,
            pack_offset=number,
            pack_length=1,
        )
        for number in range(9 * 9)
    ]
    return owner, Message.objects.bulk_create(made)


def dated_anew(
    messages: list[Message], dates: Iterable[tuple[dt.datetime, list[str]]]
) -> list[Mail]:
    """Give each the document of a date and text, and no others any."""
    Document.objects.all().delete()
    made = []
    for message, (date, text) in zip(messages, dates, strict=False):
        indexed(message, " ".join(text), date=date)
        made.append(Mail(Key(date, message.pk), text))
    return made


_OF_ALL_TIME: dict[str, Any] = {"since": None, "before": None, "numbered": True}


@given(
    dates=dated(),
    text=st.sampled_from(list(QUERIES)),
    limit=st.sampled_from((2, 13, 40)),
    few=st.tuples(*(st.sampled_from((1, 3, 8)) for _ in range(4))),
    since=st.one_of(st.none(), st.none(), st.none(), moments()),
    before=st.one_of(st.none(), st.none(), st.none(), moments()),
    numbered=st.sampled_from((True, True, True, False)),
)
@example(  # years are asked for up to the first moment of a month, and from one on
    dates=[(moment, ["ada"]) for moment in TURNS],
    text="ada",
    limit=40,
    few=(8, 8, 8, 8),
    **_OF_ALL_TIME,
)
@example(  # the first month has all mail before it, the last all after it: both have too many
    dates=[
        (dt.datetime(year, month, 1, tzinfo=dt.UTC), text)
        for year in (1960, 2110)
        for month, text in ((1, ["ada"]), *[(2, ["ada", "bob"])] * 4, (3, ["ada"]))
    ],
    text="ada -bob",
    limit=3,
    few=(1, 1, 1, 1),
    **_OF_ALL_TIME,
)
@example(  # since is a moment of mail itself, and so is before, which is left out
    dates=[(moment, ["ada"]) for moment in TURNS],
    text="ada",
    limit=40,
    few=(8, 8, 8, 8),
    since=TURNS[1],
    before=TURNS[3],
    numbered=True,
)
@example(  # of a month with too many, none is what is asked for; of those beside it, each is
    dates=[(TURNS[0], ["ada"]), *[(TURNS[1], ["ada", "bob"])] * 4, (TURNS[2], ["ada"])],
    text="ada -bob",
    limit=3,
    few=(1, 1, 1, 1),
    **_OF_ALL_TIME,
)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_finds_what_a_plain_reading_finds(
    archive: Archive,
    dates: list[tuple[dt.datetime, list[str]]],
    text: str,
    limit: int,
    few: tuple[int, ...],
    since: dt.datetime | None,
    before: dt.datetime | None,
    numbered: bool,
) -> None:
    owner, messages = archive
    mails = dated_anew(messages, dates)
    if mails and not numbered:  # of one: then none may be asked for
        Document.objects.filter(message=mails[0].key.message).update(numbers=[], version=2)
    right = sorted(
        mail.key
        for mail in mails
        if QUERIES[text](mail)
        and (since is None or since <= mail.key.date)
        and (before is None or mail.key.date < before)
    )
    [asked] = conditions.asked(query.parse(text), conditions.Scope.of(owner), since, before)
    with pytest.MonkeyPatch.context() as patch:
        for name, number in zip(("FEW_HITS", "FEW_OF_YEARS", "FAR", "NEAR"), few, strict=True):
            patch.setattr(readings, name, number)
        assert Reading(asked, NEWEST, None).count(limit) == min(len(right), limit)
        for order, ordered in ((NEWEST, right[::-1]), (Order(newest=False), right)):
            after = None
            for at in range(0, len(ordered) + 1, limit):
                found = Reading(asked, order, after).hits(limit)
                assert found == ordered[at : at + limit]
                after = found[-1] if found else None


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


def reading(owner: User, text: str, *, newest: bool = True) -> Reading:
    [asked] = conditions.asked(query.parse(text), conditions.Scope.of(owner))
    return Reading(asked, Order(newest), None)


def test_the_index_of_words_and_numbers_answers_a_phrase(archive: Archive) -> None:
    """In one look: else each row that has both words is read, which takes half a minute."""
    owner, messages = archive
    dated_anew(messages, [(dt.datetime(1970, 1, 1, tzinfo=dt.UTC), ["ada", "bob"])] * 70)
    statement = reading(owner, '"ada bob"')._with_words(readings._Window(0, 12).condition())
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {statement.text}", statement.params)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Bitmap Index Scan on document_search" in plan
    [condition] = [line for line in plan.splitlines() if "Index Cond" in line]
    assert condition.count("numbers") == 2


RARE = [f"{year}-{at}" for year in range(2002, 2021) for at in ("04", "08")]
RARE += ["2002-01", "2020-12"]
#: In 48 of half a year, before or after which it is in few.
BEGUN = ["1990-01", *[f"2016-{at:02}" for at in range(1, 7)] * 8, "2020-01", "2020-12"]
ENDED = ["1990-01", "1990-12", *[f"1994-{at:02}" for at in range(7, 13)] * 8, "2020-12"]
#: In 48 of two years, before and after which it is in few.
MIDDLE = [f"{year}-06" for year in (1990, 1991, 1994, 2016, 2017, 2020)] + ["1990-10", "2020-02"]
MIDDLE += [f"{year}-{at:02}" for year in (2004, 2005) for at in range(1, 13)] * 2


@pytest.mark.parametrize(
    ("newest", "months", "looks", "rows"),
    [
        # Of a month; of one, four and fourteen years: first of the month each year ends with.
        (True, RARE, 7, 42),
        (False, RARE, 7, 42),
        # Where four have none, of each year's first month, last month, and the others.
        *(
            (newest, ["1990-01", "1990-12", "2020-01", "2020-12"], 82, 8)
            for newest in (True, False)
        ),
        # The same where of the month that a year ends with it has too many: of that year, month by
        # month.
        (True, BEGUN, 24, 60),
        (False, ENDED, 24, 60),
        # Of sixteen years, only the month that each ends with; then year by year.
        (True, MIDDLE, 44, 49),
        (False, MIDDLE, 41, 49),
    ],
)
def test_the_index_is_asked_for_years_at_once_where_they_have_few(
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    newest: bool,
    months: list[str],
    looks: int,
    rows: int,
) -> None:
    """All in one statement; another asks how far back mail goes."""
    monkeypatch.setattr(readings, "FEW_OF_YEARS", 40)
    owner, messages = archive
    begins = [dt.datetime.strptime(f"{month}-15 Z", "%Y-%m-%d %z") for month in months]
    word = uuid.uuid4().hex  # of others' rows, which are rolled back, the index still has the words
    dated_anew(messages, [(begin, [word]) for begin in begins])
    with CaptureQueriesContext(connection) as captured:
        assert len(reading(owner, word, newest=newest).hits(40)) == min(40, len(months))
    [statement] = [one["sql"] for one in captured if "ingestion_document d" in one["sql"]]
    read = rows_looked_at(statement[statement.index("WITH") :])
    assert (read["Actual Loops"], round(read["Actual Loops"] * read["Actual Rows"])) == (
        looks,
        rows,
    )


def rows_looked_at(statement: str) -> dict[str, Any]:
    """Run a statement; return how often the index of words was looked at, and what that gave."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}")
        [[plan]] = cursor.fetchall()
    nodes = [plan[0]["Plan"]]
    for node in nodes:
        nodes += node.get("Plans", [])
    found: dict[str, Any]
    [found] = [node for node in nodes if node["Node Type"] == "Bitmap Index Scan"]
    return found


def test_windows_that_take_too_long_together_are_refused(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, messages = archive
    months = itertools.cycle(dt.datetime(2024, at, 1, tzinfo=dt.UTC) for at in (1, 2))
    dated_anew(messages, ((month, ["ada"]) for month in months))
    monkeypatch.setattr(readings, "FEW_HITS", 1)
    clock = itertools.count(step=readings.TIMEOUT_SECONDS)
    monkeypatch.setattr(readings, "monotonic", lambda: next(clock))
    search = pages.Search(owner, query.parse("ada -ada"))
    for ask in (lambda: search.page(size=1), search.count):
        with pytest.raises(InvalidInput, match="longer than 20 s"):
            ask()
