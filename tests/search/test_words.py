"""What a document is found by: real messages' fields, asked of PostgreSQL itself."""

import datetime as dt
import time
import unicodedata
import uuid
from collections import Counter

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestion.mail.digest import Digest
from ingestion.models import Message
from ingestion.search import tsqueries, words
from ingestion.search.query import parse
from tests.documents import a_file

SOURCE, MAILBOX = uuid.UUID(int=1), uuid.UUID(int=2)
DATE = dt.datetime(2024, 2, 29, 23, 30, tzinfo=dt.timezone(-dt.timedelta(hours=2)))


def vector(digest: Digest, **fields: object) -> words.Vector:
    known = {"mailbox_id": MAILBOX, "sha256": b"\xab" * 32, "size_bytes": 1_000} | fields
    return words.vector(Message(**known), digest, source=SOURCE, date=DATE)


def found(vector: words.Vector, tsquery: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::tsvector @@ %s::tsquery", [vector.literal, tsquery])
        return bool(cursor.fetchone()[0])


@pytest.mark.parametrize(
    ("text", "lexemes"),
    [
        ("Grüße aus MÜNCHEN", ["grusse", "aus", "munchen"]),
        ("first.Next -05 INV-2024", ["first", "next", "05", "inv", "2024"]),
        ("ﬁnal Ａｂｃ", ["final", "abc"]),
        ("Łódź, Øre, Ærø", ["lodz", "ore", "aero"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שָׁלוֹם", ["שלום"]),
        ("黒い猫 cat", ["黒い", "い猫", "猫", "cat"]),
        ("회의는", ["회의", "의는", "는"]),
        ("ｶﾞｲﾄﾞ", ["ガイ", "イド", "ド"]),
        ("x" * 100, ["x" * 64]),
        ("_ - ! 😀", []),
    ],
)
def test_words_are_without_case_accents_and_punctuation(text: str, lexemes: list[str]) -> None:
    assert list(words.lexemes(text)) == lexemes


@given(st.text(max_size=100))
def test_words_are_the_same_however_their_characters_are_composed(text: str) -> None:
    composed = list(words.lexemes(unicodedata.normalize("NFC", text)))
    assert list(words.lexemes(unicodedata.normalize("NFD", text))) == composed


@given(st.text(max_size=100))
def test_spans_are_the_words_and_lie_in_the_text(text: str) -> None:
    spans = list(words.spans(text))
    assert [span.lexeme for span in spans] == list(words.lexemes(text))
    assert all(0 <= span.start < span.end <= len(text) for span in spans)


def test_a_document_has_words_in_places_and_tags(db: None) -> None:
    digest = Digest(
        text="Please find it enclosed",
        participants=(
            ("from", "ada.lovelace@mail.example.com", "Ada Lovelace"),
            ("cc", "bob@example.org", 'O\'Brien \\ "Bob"'),
        ),
        attachments=(a_file("Annual report (2024).pdf"),),
    )
    known = vector(digest, subject="The annual report", message_id="<a@b>")
    for query in (
        *(
            "report:A",
            "annual <-> report",
            "2024:C",
            "enclosed:D",
            "lovelace:B",
            "'=subject:report'",
        ),
        *("'=from:ada.lovelace@mail.example.com'", "'=from:ada.lovelace'", "'=from:lovelace'"),
        *("'=from:mail.example.com'", "'=from:example.com'", "'=from:com'", "'=from:example'"),
        *("'=cc:bob'", "'=cc:o'", "'=cc:brien'", "'=filename:annual report (2024).pdf'"),
        *("'=filename:2024'", "'=has:attachment'", "'=type:pdf'", "'=type:application/pdf'"),
        *("'=size:10'", f"'{words.id_tag('a@b')}'", f"'{words.sha256_tag('AB' * 32)}'"),
        *(f"'=source:{SOURCE.hex}'", f"'=mailbox:{MAILBOX.hex}'"),
    ):
        assert found(known, query), query
    for query in (
        *("report <-> ada", "2024 <-> please", "'=cc:ada'", "'=from:bob'", "'=subject:enclosed'"),
        "'=filename:enclosed'",
    ):
        assert not found(known, query), query


def test_what_lies_inline_is_no_attachment_but_found_by_its_name(db: None) -> None:
    known = vector(Digest(attachments=(a_file("logo.png", "image/png", inline=True),)))
    assert found(known, "'=filename:logo' & '=type:image' & !'=has:attachment'")


def test_where_participants_were_not_read_the_header_fields_are(db: None) -> None:
    known = vector(Digest(), sender="Ada <ada@example.com>", recipients="Bob <bob@example.org>")
    assert found(known, "'=from:ada' & '=to:bob' & '=to:org' & !'=from:bob'")
    assert found(known, "'=from:ada@example.com' & '=to:bob@example.org' & bob <-> bob")


def test_an_address_is_found_as_it_is_written_and_without_what_stands_around_it(db: None) -> None:
    """In a document that an earlier version made it has its apostrophes: facets lead there."""
    asked = tsqueries.tsquery(parse("from:'ada@example.com'"))
    assert asked
    for address in ("'ada@example.com'", "ada@example.com"):
        assert found(vector(Digest(participants=(("from", address, ""),))), asked)
    assert not found(vector(Digest(participants=(("from", "ada@example.org", ""),))), asked)


def test_a_query_of_apostrophes_is_read_at_once() -> None:
    """While one is read, nothing else of that process goes on."""
    query = parse("from:" + "'" * 600 + "a@a" + "'" * 1_300 + "@")
    began = time.process_time()
    assert tsqueries.tsquery(query)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    "text",
    [
        " ".join(f"w{number}x" for number in range(200_000)),
        " ".join(f"{number:064}" for number in range(30_000)),
        "".join(map(chr, range(0x4E00, 0x9FFF))) * 4,
        "the same " * 100_000,
        "'\\ \\' " * 50_000 + "\ud800",
        " ".join(f"the x{number} y{number}" for number in range(256)),
        " ".join(f"the x{number} y{number}" for number in range(255)),
    ],
    ids=["many", "long", "ideographs", "repeated", "quotes", "often", "less often"],
)
def test_a_text_of_any_size_has_room_and_what_is_left_out_is_said(db: None, text: str) -> None:
    known = vector(Digest(text=text), subject="first")
    assert found(known, "first & '=subject:first'")
    with connection.cursor() as cursor:
        cursor.execute("SELECT length(%s::tsvector)", [known.literal])
        kept = cursor.fetchone()[0]
    times = Counter(words.lexemes(text))
    assert (words.TOO_MANY_WORDS in known.defects) == (kept < len(times))
    assert (words.TOO_LONG_FOR_PHRASES in known.defects) == (
        times.total() > 16_380 or max(times.values(), default=0) > 255
    )


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(max_size=30), max_size=5), st.text(max_size=60))
def test_postgresql_takes_every_document(db: None, names: list[str], text: str) -> None:
    files = tuple(a_file(name, name) for name in names)
    people = tuple(("from", name, text) for name in names)
    known = vector(Digest(text=text, participants=people, attachments=files), subject=text)
    for lexeme in words.lexemes(text):
        assert found(known, words.quoted(lexeme))
