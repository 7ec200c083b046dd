"""What the fields of strange and of usual mail say, by the RFCs and by what its readers see."""

import datetime as dt

import pytest

from ingestion.mail.headers import Headers, head_of, parse_headers


def parse(head: bytes) -> Headers:
    return parse_headers(head_of(head + b"\r\n\r\nbody\r\n"))


def at(day: int, hour: int, minute: int = 0, second: int = 0) -> dt.datetime:
    return dt.datetime(2026, 11, day, hour, minute, second, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("head", "subject"),
    [
        (b"Subject: Gr\xc3\xbc\xc3\x9fe =?utf-8?q?aus_K=C3=B6ln?=", "Grüße aus Köln"),
        (b"Subject: \xe2\x82\xac 5 =?utf-8?q?f=C3=BCr?= alle", "€ 5 für alle"),
        (b"Subject: caf\xe9 =?iso-8859-1?q?cr=E8me?=", "café crème"),
        (b"Subject: =?utf-8?q?ok?= \\u0041 \xc3\xa9", "ok \\u0041 é"),
        (b"Subject: =?iso-8859-8-i?b?+ezl7Q==?=", "שלום"),
        (b"Subject: =?windows-874?b?yMfRyrTV?=", "ศวัสดี"),
        (b"Subject: =?gb2312?b?6Ua7+Q==?=", "镕基"),
        (b"Subject: =?iso-8859-1?q?=93Hi=94_=96_5_=80?=", "“Hi” – 5 €"),
        (b"Subject: =?shift_jis?b?h0Du4A==?=", "①髙"),
        (b"Subject: =?euc-kr?b?jGO55g==?=", "똠방"),
        (b"Subject: =?ks_c_5601-1987?b?wWQ=?=", "햏"),
        (b"Subject: =?iso-2022-jp?b?GyRCLSEbKEI=?=", "①"),
        (b"Subject: =?us-ascii?q?caf=C3=A9?=", "café"),
        (b"Subject: =?unicode-1-1-utf-7?q?Gr+APwA3w-e?=", "Grüße"),
        (b"Subject: =?x-unknown?q?caf=C3=A9?=", "café"),
        (b"Subject: =?x-unknown?q?caf=E9?=", "café"),
        (b"Subject: =?utf-8?q?caf=E9?=", "café"),
        (b"Subject: =?utf-8*de?q?Gr=C3=BC=C3=9Fe?=", "Grüße"),
        (b"Subject: \x93Hi\x94 \x96 5 \x80", "“Hi” – 5 €"),
        (
            b"Subject: \xd0\xe5\xea\xeb\xe0\xec\xe0\r\nContent-Type: text/plain; charset=windows-1251",
            "Реклама",
        ),
        (b"Subject: \xb1\xa4\xb0\xed\r\nContent-Type: text/plain; charset=euc-kr", "광고"),
        (b"Subject: \xe3\x83\xa1\xe3\x83\xbc\xe3\x83\xab\x80", "メール�"),
        (b"Subject: =?utf-8?b?w7Y=?==?utf-8?b?w7Y=?=", "öö"),
        (b"Subject: =?utf-8?Q?a b?=", "a b"),
        (b"Subject: a=?utf-8?q?=C3=B6?=b", "aöb"),
        (b"Subject: =?utf-8?b?w7Y?=", "ö"),
        (b"Subject: =?utf-8?q?=C3?= =?utf-8?q?=B6?=", "ö"),
        (b"Subject: =?utf-8?q?a?= =?iso-8859-1?q?_b?=", "a b"),
        (b"Subject: =?utf-8?q?a?= b", "a b"),
        (b"Subject: =?utf-8?q?what=3F_yes?", "=?utf-8?q?what=3F_yes?"),
        (b"Subject: =?utf-8?q?tab=09nl=0Aend?=", "tab nl end"),
        (b"\xef\xbb\xbfSubject: BOM", "BOM"),
        (b"From ann@example.com Tue Nov 24 07:00:00 2026\r\nSubject: mbox", "mbox"),
        (b"Subject: a\rDate: Tue, 24 Nov 2026 07:00:00 +0200\rTo: x@example.com", "a"),
        (b"Subject: one\r\n two\r\n\tthree", "one two three"),
        (b"SUBJECT: x", "x"),
    ],
)
def test_a_subject_is_read(head: bytes, subject: str) -> None:
    """Words (RFC 2047), raw UTF-8 (RFC 6532), labels as WHATWG's Encoding standard means them, and what
    only old mailers write."""
    assert parse(head).subject == subject


@pytest.mark.parametrize(
    ("head", "sender"),
    [
        (b"From: =?utf-8?q?Zo=C3=AB?= <zo\xc3\xab@example.com>", "Zoë <zoë@example.com>"),
        (b'From: "=?utf-8?q?Zo=C3=AB?=" <z@example.com>', '"Zoë" <z@example.com>'),
        (
            b"From: =?utf-8?q?Bank_=3Cservice=40bank=2Eexample=3E?= <x@evil.example>",
            '"Bank <service@bank.example>" <x@evil.example>',
        ),
        (
            b"From: =?utf-8?q?chef=40bank.example?=@evil.example",
            "=?utf-8?q?chef=40bank.example?=@evil.example",
        ),
        (b"From: a@example.com\r\nFrom: b@example.com", "a@example.com"),
        (
            b"From: a@example.com, b@example.com\r\nSender: b@example.com",
            "a@example.com, b@example.com",
        ),
    ],
)
def test_a_sender_is_read(head: bytes, sender: str) -> None:
    """Structure comes before words (RFC 2047 section 6.2)."""
    assert parse(head).sender == sender


@pytest.mark.parametrize(
    ("head", "recipients"),
    [
        (
            b"To: =?utf-8?q?A?= <a@example.com>, \xf0\x9f\x98\x80 <b@example.com>",
            "A <a@example.com>, 😀 <b@example.com>",
        ),
        (
            b"To: =?utf-8?q?M=C3=BCller=2C_Jan?= <jan@example.org>, b@example.org",
            '"Müller, Jan" <jan@example.org>, b@example.org',
        ),
        (
            b"To: Team: a@example.com, B <b@example.com>;\r\nCc: undisclosed-recipients:;",
            "Team: a@example.com, B <b@example.com>;, undisclosed-recipients:;",
        ),
        (b"To: Pete (a comment) <p@example.com>", "Pete (a comment) <p@example.com>"),
        (b"Bcc: hidden@example.com", ""),
        (b"Subject\r\n : folded before the colon\r\nTo: x@example.com", "x@example.com"),
    ],
)
def test_recipients_is_read(head: bytes, recipients: str) -> None:
    """To, then Cc; groups and comments stay."""
    assert parse(head).recipients == recipients


@pytest.mark.parametrize(
    ("head", "sent_at"),
    [
        (b"Date: Tue, 24 Nov 2026 07:00:60 +0000", at(24, 7, 0, 59)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 (CET) +0100", at(24, 6)),
        (b"Date: (x) Tue, 24 Nov 2026 07:00:00 +0100", at(24, 6)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 GMT+1", at(24, 6)),
        (b"Date: 24 Nov 2026 7:00:00 PM", at(24, 19)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 +-0500", None),
        (b"Date: Tue, 24 Nov 26 07:00:00 EST", at(24, 12)),
        (b"Date: 2026-11-24T07:00:00+02:00", at(24, 5)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 +9999", None),
        (b"Date: Tue, 24 Nov 0026 07:00:00 +0000", None),
        (b"Date: Tue,24 Nov 2026 07:00:00+0200", at(24, 5)),
        (b"Date: Tue, 24 November 2026 07:00:00 +0200", at(24, 5)),
        (b"Date: Tue, 24 Nov 2026 07 : 00 : 00 +0200", at(24, 5)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 +0200\r\n\t(CEST)", at(24, 5)),
        (b"Date: Tue, 24 Nov 2026 07:00:00.123 +0200", at(24, 5)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 PST", at(24, 15)),
        (b"Date: Tue, 24 Nov 2026 07:00:00 CEST", at(24, 7)),
        (b"Date: Tue, 24 Nov 2026 07:00 +0200", at(24, 5)),
        (b"Date: 24-Nov-2026 07:00:00 +0200", at(24, 5)),
    ],
)
def test_a_date_is_read(head: bytes, sent_at: dt.datetime | None) -> None:
    """RFC 5322 sections 3.3 and 4.3. What can be read in two ways is no date."""
    assert parse(head).sent_at == sent_at


@pytest.mark.parametrize(
    ("head", "message_id"),
    [
        (b"Message-ID:\r\n <long@example.com>", "<long@example.com>"),
        (b"Message-Id : <a@example.com>", "<a@example.com>"),
        (b"Message-ID: <a@example.com> (added by x)", "<a@example.com>"),
        (b"Message-ID: <a\r\n\t@example.com>", "<a@example.com>"),
    ],
)
def test_a_message_id_is_read(head: bytes, message_id: str) -> None:
    """The id alone: comments and folds are no part of it."""
    assert parse(head).message_id == message_id


@pytest.mark.parametrize(
    ("date", "sent_at"),
    [
        (b"Tue Nov 24 07:00:00 2026", at(24, 7)),
        (b"Tue Nov 24 07:00:00 EST 2026", at(24, 12)),
        (b"Tue Nov 24 07:00:00 2026 -0800", at(24, 15)),
        (b"Tue Nov 24 07:00:00 2026 EST", at(24, 12)),
        (b"Tue Nov 24 07:00:00 +0200 2026", at(24, 5)),
        (b"Tue Nov 24 07:00:00 2026 (a comment)", at(24, 7)),
        (b"Tue Nov 24 07:00:00 EST 2026 -0500", None),
        (b"Tue Nov 24 07:00:00 2026 Pacific time", None),
        (b"Tue Nov 24 07:00:00 2026 -08", None),
        (b"Tue, 24 Nov 2026 12:30:00 AM", at(24, 0, 30)),
        (b"Tue, 24 Nov 2026 12:30:00 PM -0100", at(24, 13, 30)),
        (b"Tue, 24 Nov 2026 07:00:00 -0000 (UTC (or so))", at(24, 7)),
        (b"Tue, 24 Nov 2026 07:00:00 +0000 (a comment without end", at(24, 7)),
        (b"2026-11-24 07:00:00 +0200", at(24, 5)),
        (b"Tue, 24 Nov 126 07:00:00 Z", at(24, 7)),
        (b"Tue, 24 Nov 2026 07:00:00 +2400", None),
        (b"Tue, 24 Nov 2026 07:00:00 +02000", None),
        (b"Tue, 31 Nov 2026 07:00:00 +0200", None),
        (b"Tue, 24 Nov 2026 25:00:00 +0200", None),
        (b"24-11-2026 07:00:00", None),  # which is the month?
        (b"yesterday", None),
    ],
)
def test_a_date_is_right_or_none(date: bytes, sent_at: dt.datetime | None) -> None:
    headers = parse(b"Date: " + date)
    assert headers.sent_at == sent_at
    assert headers.defects == (() if sent_at else ("undecodable header: date",))


def test_a_decoded_name_is_quoted_where_it_would_pass_for_something_else() -> None:
    for name in ("a,b", "a@b", "<a@b>", 'a "b"', "a;b", "a:b", "a(b", "a\\b"):
        word = name.encode().hex("=").upper().encode()
        sender = parse(b"From: =?utf-8?q?=" + word + b"?= <x@example.com>").sender
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        assert sender == f'"{quoted}" <x@example.com>'


def test_recipients_are_cut_between_addresses_and_it_is_told() -> None:
    people = b",\r\n ".join(b"person%04d@department.example.org" % number for number in range(900))
    headers = parse(b"To: " + people + b"\r\nCc: " + people + b", last@example.org")
    assert len(headers.recipients) <= 10_000
    shown = headers.recipients.split(", ")
    assert {len(address) for address in shown} == {len("person0000@department.example.org")}
    assert shown.count("person0000@department.example.org") == 2  # Cc has room of its own
    assert headers.defects == ("cut: cc", "cut: to")


def test_one_in_copy_is_shown_behind_any_number_of_others() -> None:
    people = b", ".join(b"person%04d@example.org" % number for number in range(900))
    headers = parse(b"To: " + people + b"\r\nCc: last@example.org")
    assert headers.recipients.endswith(", last@example.org")
    assert headers.defects == ("cut: to",)


@pytest.mark.parametrize(
    ("head", "defects"),
    [
        (b"Subject: " + b"x" * 2_001, ("cut: subject",)),
        (b"Message-ID: <" + b"x" * 1_001 + b">", ("cut: message-id",)),
        (b"X: " + b"x" * 256_000 + b"\r\nSubject: late", ("no header fields", "cut: header")),
        (b"Subject: a\rDate: b", ("bare CR: subject",)),
        (b"Subject: a\r\n b\r\nTo: c", ()),
        ("Subject: Grüße".encode(), ()),  # RFC 6532 allows it
        (b"Subject: caf\xe9", ("8-bit header: subject",)),
        (b"Subject: =?utf-8?q?caf=E9?=", ("undecodable header: subject",)),
        (b"From: =?none?q?a?= <a@example.com>", ("undecodable header: from",)),
    ],
)
def test_what_is_wrong_is_a_defect_and_nothing_else_is(
    head: bytes, defects: tuple[str, ...]
) -> None:
    assert parse(head).defects == defects


def test_several_fields_of_recipients_are_all_read() -> None:
    headers = parse(
        b"To: a@example.com\r\nTo: b@example.com\r\nCc: c@example.com\r\nCc: d@example.com"
    )
    assert headers.recipients == "a@example.com, b@example.com, c@example.com, d@example.com"
