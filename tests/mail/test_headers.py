"""Header parsing decides nothing about mail, and survives all of it."""

import datetime as dt
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.mail.headers import Headers, head_of, parse_headers


def parse(text: bytes) -> Headers:
    return parse_headers(head_of(text))


def test_the_usual_header_is_decoded() -> None:
    headers = parse(
        b"From: =?utf-8?q?Zo=C3=AB?= <zoe@example.com>\r\n"
        b"To: a@example.com,\r\n\tb@example.com\r\nCc: c@example.com\r\n"
        b"Subject: =?utf-8?b?R3LDvMOf?=\r\n =?utf-8?q?e?=\r\n"
        b"Date: Tue, 24 Nov 2026 07:00:00 +0200\r\nMessage-ID: <1@x>\r\n\r\nSubject: not this\r\n"
    )
    assert headers == Headers(
        subject="Grüße",
        sender="Zoë <zoe@example.com>",
        recipients="a@example.com, b@example.com, c@example.com",
        sent_at=dt.datetime(2026, 11, 24, 5, tzinfo=dt.UTC),
        message_id="<1@x>",
        defects=(),
    )


@pytest.mark.parametrize(
    ("message", "defect"),
    [
        (b"", "no header fields"),
        (b"no colon here\n\nbody", "no header fields"),
        (b"Subject: a\nSubject: b\n\n", "repeated header: subject"),
        (b"Subject: caf\xe9\n\n", "8-bit header: subject"),
        (b"Date: yesterday\n\n", "undecodable header: date"),
        (b"Date: Tue, 99 Nov 2026 07:00:00 +0200\n\n", "undecodable header: date"),
        (b"Subject: =?nonsense?q?abc?=\n\n", "undecodable header: subject"),
    ],
)
def test_a_malformed_header_is_a_defect_and_no_error(message: bytes, defect: str) -> None:
    assert defect in parse(message).defects


def test_nothing_that_a_database_or_terminal_must_not_see_comes_through() -> None:
    headers = parse(b"Subject: a\x00b\x1b[31mc =?utf-8?q?d=00=E2=80=AEe?=\r\n\r\n")
    assert headers.subject == "a b [31mc d  e"


def test_a_header_without_end_is_cut() -> None:
    assert len(parse(b"Subject: " + b"x" * 10_000_000).subject) == 2_000


@pytest.mark.parametrize(
    "value",
    [
        b"a\r\n b" + b" " * 80_000 + b"x",
        b"=?a?q?b" * 11_000,
        b"=?punycode?q?" + b"a9" * 40_000 + b"?=",
        *(
            mark * 60_000
            for mark in (b'"', b"<", b"(", b"()", b'"(<', b"a:", b'"\\', b"?= ", b"\x1b$B")
        ),
        b"=?utf-8?q?x\xe9?=" + b"\r\nContent-Type: x;\r\n charset" * 8_000,
    ],
)
def test_no_field_takes_seconds(value: bytes) -> None:
    """Nothing else runs in the process meanwhile, not even what keeps the lease."""
    started = time.process_time()
    parse(b"To: " + value + b"\r\nCc: " + value + b"\r\nFrom: " + value + b"\r\n\r\n")
    assert time.process_time() - started < 2


@given(st.binary(max_size=500))
def test_no_bytes_raise(noise: bytes) -> None:
    for name in (b"Subject: ", b"Date: ", b"From: =?utf-8?b?", b"To: =?"):
        text = parse(name + noise)
        assert "\0" not in text.subject + text.sender + text.recipients + text.message_id
