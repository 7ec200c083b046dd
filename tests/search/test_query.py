"""The query language: what it reads, what it refuses and why, and that it reads what it prints."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.search import query
from ingestion.search.query import AllOf, AnyOf, Node, Not, QueryError, Term, parse


def w(text: str, *, prefix: bool = False) -> Term:
    return Term("", text, prefix)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("", AllOf()),
        ("  ", AllOf()),
        ("report", w("report")),
        ("annual report", AllOf((w("annual"), w("report")))),
        ("annual AND report", AllOf((w("annual"), w("report")))),
        ('"annual report"', w("annual report")),
        ("“annual report”", w("annual report")),
        ("a b OR c", AllOf((w("a"), AnyOf((w("b"), w("c")))))),
        ("(a b) OR c OR d", AnyOf((AllOf((w("a"), w("b"))), w("c"), w("d")))),
        ("-draft", Not(w("draft"))),
        ("--draft", Not(w("draft"))),
        ("-(a OR b)", Not(AnyOf((w("a"), w("b"))))),
        ("-(-a)", w("a")),
        ("inv*", w("inv", prefix=True)),
        ("Smith & Sons - here", AllOf((w("Smith"), w("Sons"), w("here")))),
        ("10:30 e-mail", AllOf((w("10:30"), w("e-mail")))),
        ("or OR and", AnyOf((w("or"), w("and")))),
        ('"OR"', w("OR")),
        ("OR*", w("OR", prefix=True)),
        ("from:AND*", Term("from", "AND", prefix=True)),
        ("ORANGE", w("ORANGE")),
        ("FROM:Ada", Term("from", "Ada")),
        ("-from:ada*", Not(Term("from", "ada", prefix=True))),
        ('subject:"annual report"', Term("subject", "annual report")),
        ("from:(ada OR bob)", AnyOf((Term("from", "ada"), Term("from", "bob")))),
        ("subject:(annual -draft)", AllOf((Term("subject", "annual"), Not(Term("subject", "draft"))))),
        ("after:2024/5/1", Term("after", "2024-05-01")),
        ("on:2024-12", Term("on", "2024-12")),
        ("larger:10M smaller:1gb", AllOf((Term("larger", "10000000"), Term("smaller", "1000000000")))),
        ("has:attachments", Term("has", "attachment")),
        ("message-id:<a:b@c.d>", Term("message-id", "<a:b@c.d>")),
        ("in:[Gmail]/Sent*", Term("in", "[Gmail]/Sent*")),
        ("thread:-42", Term("thread", "-42")),
        ("mailbox:12345678123456781234567812345678", Term("mailbox", "12345678-1234-5678-1234-567812345678")),
        ("a (b (c))", AllOf((w("a"), w("b"), w("c")))),
        ("() a", w("a")),
        ("猫", w("猫")),
        ('label:"12"" vinyl"', Term("label", '12" vinyl')),
        ('label:"Projekt „Alpha“"', Term("label", "Projekt „Alpha“")),
        ('label:""""', Term("label", '"')),
        ('"a" "b"', AllOf((w("a"), w("b")))),
        ('„annual" "report”', AllOf((w("annual"), w("report")))),
    ],
)  # fmt: skip
def test_reads_what_people_write(text: str, node: Node) -> None:
    assert parse(text) == node
    assert parse(str(node)) == node


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("a frm:ada", 2, 'no operator "frm:". Known: from:, to:,'),
        ("https://example.com", 0, "put it in quotes"),
        ("a larger:big", 9, "as larger:500k or larger:10M"),
        ("before:tomorrow", 7, "as before:2024-05-31"),
        ("on:2023-02-29", 3, "a day, month or year"),
        ("on:9999", 3, "a day, month or year"),
        ("has:wings", 4, "has:attachment"),
        ("sha256:abc", 7, "64 hexadecimal digits"),
        ("thread:9999999999999999999", 7, "conversation"),
        ("from: ada", 0, "from: wants an address"),
        ("from:&", 5, "from: wants an address"),
        ('label:""', 6, "wants a label"),
        ('a "b c', 2, "quote is never closed"),
        ("a (b", 2, "parenthesis is never closed"),
        ("a) b", 1, "closes nothing"),
        ("a OR", 4, "OR wants something after it"),
        ("(a OR )", 6, "OR wants something after it"),
        ("OR a", 0, "OR wants something before it"),
        ("a OR OR b", 5, "OR wants something before it"),
        ("AND", 0, "AND wants something before it"),
        ("!!! ***", 0, "no letter or digit"),
        ("a\0", 1, "character"),
        ("x" * 2_001, 2_000, "at most 2,000 characters"),
        ("a " * 101, 200, "at most 100 terms"),
        ("(" * 21 + "a", 20, "at most 20 deep"),
    ],
)
def test_says_what_is_wrong_and_where(text: str, position: int, said: str) -> None:
    with pytest.raises(QueryError, match=r"^[^\n]+$") as refused:
        parse(text)
    assert said in str(refused.value)
    assert refused.value.position == position


_PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["(", ")", '"', "“", "-", "*", " ", "OR", "AND", "OR ", "a", "猫", "é", "\\", "'", ":"]
            + [f"{name}:" for name in query.OPERATORS]
        ),
        st.sampled_from(["2024-05", "10M", "attachment", "42", "ab" * 32, "&", "\0", "\ud800"]),
        st.text(max_size=5),
    ),
    max_size=60,
)


@given(_PIECES.map("".join))
def test_whatever_is_typed_is_a_query_or_refused_and_printed_it_is_the_same(text: str) -> None:
    try:
        node = parse(text)
    except QueryError as refused:
        position = refused.position
    else:
        position = 0
        assert parse(str(node)) == node
    assert 0 <= position <= len(text)


@given(st.sampled_from(list(query.OPERATORS)), st.text(st.sampled_from('"“”„ab*-:() '), max_size=9))
def test_whatever_a_value_is_printed_it_is_the_same(name: str, value: str) -> None:
    """Labels and addresses come from providers, not from what somebody typed."""
    try:
        made = query.term(name, value)
    except QueryError:
        return
    others = AllOf((Not(made), w("a"), AnyOf((made, w("b")))))
    assert parse(str(made)) == made
    assert parse(str(others)) == others


@pytest.mark.parametrize(
    ("value", "first", "after"),
    [
        ("2024", dt.date(2024, 1, 1), dt.date(2025, 1, 1)),
        ("2024-12", dt.date(2024, 12, 1), dt.date(2025, 1, 1)),
        ("2024-02", dt.date(2024, 2, 1), dt.date(2024, 3, 1)),
        ("2024-02-29", dt.date(2024, 2, 29), dt.date(2024, 3, 1)),
        ("9998-12-31", dt.date(9998, 12, 31), dt.date(9999, 1, 1)),
    ],
)
def test_dates_are_days_of_utc(value: str, first: dt.date, after: dt.date) -> None:
    begin, end = query.days(value)
    assert (begin.date(), end.date()) == (first, after)
    assert begin.tzinfo is dt.UTC
