"""Sizes, times and counts as operators read them, and that strangers' words stay text."""

import datetime as dt

import pytest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy

from ingestion.admin import display

NOW = dt.datetime(2026, 5, 4, 12, 0, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (None, "—"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (7_100_000_000, "7.1 GB"),
        (5_000_000_000_000_000, "5.0 PB"),
        (5_000_000_000_000_000_000, "5,000.0 PB"),
    ],
)
def test_sizes_are_said_in_decimal_units(size_bytes: int | None, said: str) -> None:
    assert display.size(size_bytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 400, "400 d"),
    ],
)
def test_durations_are_said_by_their_two_largest_units(seconds: float, said: str) -> None:
    assert display.duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds_ago", "said"),
    [
        (0.2, "now"),
        (5, "5 s ago"),
        (200, "3 min ago"),
        (-200, "in 3 min"),
        (86_400 * 3, "3 d ago"),
        (86_400 * 40, "2026-03-25"),
    ],
)
def test_times_are_said_from_now(seconds_ago: float, said: str) -> None:
    assert display.when(NOW - dt.timedelta(seconds=seconds_ago), now=NOW) == said


def test_a_capped_count_says_that_there_are_more() -> None:
    assert display.count(1234) == "1,234"
    assert display.count(999, cap=1000) == "999"
    assert display.count(1000, cap=1000) == "1,000+"


def test_everything_that_makes_markup_escapes_what_it_is_given() -> None:
    hostile = '"><script>alert(1)</script>'
    made = [
        display.badge(hostile, hostile, title=hostile),
        display.clipped(hostile * 20),
        display.two_lines(hostile, hostile),
        display.link(hostile, hostile),
        display.pretty_json({hostile: hostile}),
        display.refreshed(hostile, hostile),
        display.number(hostile),
        display.html("<i>{}</i>", hostile),
        display.html("{}{}", display.number(hostile), hostile),
        display.joined("<i>{}{}</i>", [(hostile, 1), (2, hostile)]),
    ]
    assert [markup for markup in made if "<script" in markup or hostile in markup] == []


def test_markup_is_filled_in_as_django_does_it() -> None:
    values = ("a & b", '"q"', "it's", "<i>", 7, None, mark_safe("<b>bold</b>"), gettext_lazy("Yes"))
    template = "{}|" * len(values)
    assert display.html(template, *values) == format_html(template, *values)
    assert display.joined(template, [values, values]) == format_html_join(
        "", template, [values, values]
    )


def test_what_an_audit_event_holds_is_said_in_a_line() -> None:
    person = {"name": "carol", "staff": True, "active": False, "groups": [], "changed": ["a", "b"]}
    assert display.in_words(person) == "name: carol, staff: yes, active: no, changed: a, b"
    changed = {
        "providerConfig": {"host": ["", "b"], "secure": [True, False], "password": "changed"}
    }
    assert display.in_words(changed, moves=True) == (
        "providerConfig: host: — → b, secure: yes → no, password: changed"
    )
    assert display.in_words({}) == ""
