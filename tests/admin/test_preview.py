"""The text of a message on its page: of well-formed, broken and hostile mail."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestion.admin.preview import MAX_BYTES, MAX_CHARACTERS, preview


def _multipart(*parts: str) -> bytes:
    body = "".join(f"--b\r\n{part}\r\n" for part in parts)
    return f'Content-Type: multipart/mixed; boundary="b"\r\n\r\n{body}--b--\r\n'.encode()


def test_plain_text_is_preferred_and_attachments_are_named() -> None:
    shown = preview(
        _multipart(
            "Content-Type: text/html\r\n\r\n<p>markup</p>",
            "Content-Type: text/plain; charset=iso-8859-1\r\n"
            "Content-Transfer-Encoding: quoted-printable\r\n\r\nGr=FC=DFe",
            'Content-Type: application/pdf; name="a.pdf"\r\n\r\nx',
        )
    )
    assert (shown.text, shown.note) == ("Grüße", "")
    assert shown.parts == ("a.pdf (application/pdf)",)


def test_html_loses_its_tags_scripts_and_styles() -> None:
    html = "<head><style>p{}</style></head><p>Dear<script>alert(1)</script></p><p>&lt;b&gt; A</p>"
    shown = preview(b"Content-Type: text/html\r\n\r\n" + html.encode())
    assert shown.text == "Dear\n\n<b> A"
    assert shown.note == "Text of an HTML message."


def test_a_text_attachment_is_not_the_text_of_the_message() -> None:
    shown = preview(
        _multipart(
            'Content-Type: text/plain\r\nContent-Disposition: attachment; filename="x.txt"\r\n\r\nno'
        )
    )
    assert shown.text == ""
    assert shown.note == "This message has no text."


def test_long_text_is_cut_and_says_so() -> None:
    shown = preview(b"Subject: x\r\n\r\n" + b"word " * 50_000)
    assert len(shown.text) <= MAX_CHARACTERS
    assert "first 20,000 characters" in shown.note


def test_what_lies_behind_the_part_that_is_read_is_not_shown() -> None:
    mail = _multipart("Content-Type: text/plain\r\n\r\nlate")
    assert preview(mail).text == "late"
    assert preview(mail.replace(b"\r\n--b\r\n", b"\r\n" * MAX_BYTES + b"--b\r\n")).text == ""


def test_controls_and_reversing_marks_are_taken_out() -> None:
    shown = preview("Subject: x\r\n\r\na\x00b\x1b[31mc\u202egnp.exe".encode())
    assert shown.text == "a b [31mc gnp.exe"


@pytest.mark.parametrize(
    "hostile",
    [
        b"".join(
            b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (n, n)
            for n in range(9000)
        ),
        b"Content-Type: text/plain; charset=no-such\r\n\r\nx",
        b'Content-Type: text/plain; charset="\xff\xfe"\r\n\r\nx',
        b"Content-Transfer-Encoding: base64\r\n\r\n!!!",
        b"Content-Type: text/html\r\n\r\n" + b"<" * 200_000,
        b"Content-Type: text/html\r\n\r\n" + b"<!--" * 60_000,
        b"Content-Type: text/html\r\n\r\n" + b"<a b='" * 40_000,
        b"Content-Type: message/rfc822\r\n\r\n" * 5000,
        b"\r\n--x" * 60_000,
        b"Content-Type: text/html\r\n\r\n" + b" " * 250_000,
        b"",
        b"\xff" * MAX_BYTES,
    ],
    ids=range(12),
)
def test_crafted_mail_neither_fails_nor_takes_long(hostile: bytes) -> None:
    start = time.monotonic()
    preview(hostile)
    assert time.monotonic() - start < 5


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_no_bytes_at_all_make_it_raise(head: bytes, body: bytes) -> None:
    preview(head + b"\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + body)


#: What took from 4 s to 204 s of CPU time.
_SLOW = {
    "semicolons in quotes": b'Content-Type: text/plain; a="' + b";" * 255_000 + b"\n\nhi\n",
    "parameters": b"Content-Type: text/plain" + b";a" * 120_000 + b"\n\nhi\n",
    "pieces of a parameter": b"Content-Type: text/plain"
    + b"".join(b";x*%d=a" % number for number in range(25_000))
    + b"\n\nhi\n",
    "folded": b"Content-Type: text/plain;" + b"\n ;a" * 60_000 + b"\n\nhi\n",
    "punycode": b"Content-Type: text/plain; charset=punycode\n\na-" + b"b" * 250_000,
    "idna": b"Content-Type: text/plain; charset=idna\n\n" + b"b." * 120_000,
    "in each of many parts": b"Content-Type: multipart/mixed; boundary=b\n\n"
    + b"".join(b"--b\nContent-Type: image/png; " + b";" * 1_900 + b"\n\nx\n" for _ in range(130)),
}


@pytest.mark.parametrize("mail", _SLOW.values(), ids=_SLOW)
def test_no_header_and_no_charset_holds_whoever_reads_the_page(mail: bytes) -> None:
    before = time.process_time()
    preview(mail)
    assert time.process_time() - before < 2  # CPU time: 0.2 s where nothing is quadratic


def test_a_charset_that_is_none_of_text_is_read_as_utf_8() -> None:
    for name in ("base64", "rot13", "zip", "no-such", "punycode"):
        mail = f"Content-Type: text/plain; charset={name}\r\n\r\nGrüße".encode()
        assert preview(mail).text == "Grüße"
