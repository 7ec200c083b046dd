"""Where a text has what is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.search import marks
from ingestion.search.query import parse


def shown(text: str, query: str, *names: str) -> str:
    pieces = marks.marked(text, marks.phrases(parse(query), *(names or ("",))))
    assert "".join(piece.text for piece in pieces) == text
    return "".join(f"[{p.text}]" if p.found else p.text for p in pieces)


@pytest.mark.parametrize(
    ("text", "query", "marked"),
    [
        ("The Annual Report", "report", "The Annual [Report]"),
        ("The Annual Report", '"annual report"', "The [Annual Report]"),
        ("annual. Report annual", '"annual report"', "[annual. Report] annual"),
        ("reports report rep", "rep*", "[reports] [report] [rep]"),
        ("Straße Ärger", "strasse arger", "[Straße] [Ärger]"),
        ("a b c", "a OR c -b", "[a] b [c]"),
        ("黒い猫が好き", "い猫", "黒[い猫]が好き"),
        ("黒い猫が好き", "猫", "黒い[猫]が好き"),
        ("黒い猫が好き", "黒い猫", "[黒い猫]が好き"),
        ("a b a b a", '"a b a"', "[a b a b a]"),
        ("one two", "from:one", "one two"),
        ("<b>x</b>", "b", "<[b]>x</[b]>"),
        ("", "a", ""),
    ],
)
def test_marks_what_the_search_found(text: str, query: str, marked: str) -> None:
    assert shown(text, query) == marked


def test_an_excerpt_is_one_line_around_the_first_words_found() -> None:
    text = "word " * 200 + "before\nthe needle\tand " + "after " * 200
    pieces = marks.excerpt(text, marks.phrases(parse("needle"), ""))
    line = "".join(piece.text for piece in pieces)
    assert [piece.text for piece in pieces if piece.found] == ["needle"]
    assert line.startswith("… word")
    assert "before the needle and after" in line
    assert line.endswith(" …")
    assert len(line) < 300
    assert marks.excerpt(text, marks.phrases(parse("nowhere"), "")) == []
    assert marks.excerpt("needle", marks.phrases(parse("needle"), "")) == [("needle", True)]


@given(st.text(max_size=200), st.sampled_from(["a", "猫", "a*", '"a a"', "é OR 0"]))
def test_pieces_are_the_whole_text(text: str, query: str) -> None:
    shown(text, query)


def test_many_words_are_looked_for_in_less_of_a_text() -> None:
    few, many = parse("needle*"), parse(" ".join(f"needle{n}*" for n in range(100)))
    near, far = "hay " * 2_000 + "needle7", "hay " * 20_000 + "needle7"
    for query, text, found in ((few, near, 1), (few, far, 1), (many, near, 1), (many, far, 0)):
        assert bool(marks.excerpt(text, marks.phrases(query, ""))) == found
