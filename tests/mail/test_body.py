"""What a message says: its text, its versions and attachments, and what is told of them."""

import base64

import pytest

from ingestion.mail.body import MAX_CHARACTERS, Contents, read


def multipart(*parts: str | bytes, kind: str = "mixed") -> bytes:
    raw = [part.encode() if isinstance(part, str) else part for part in parts]
    head = f'Content-Type: multipart/{kind}; boundary="q"\r\n\r\n'.encode()
    return head + b"".join([b"--q\r\n" + part + b"\r\n" for part in raw]) + b"--q--\r\n"


TEXT = "Content-Type: text/plain; charset=utf-8\r\n\r\n"
HTML = "Content-Type: text/html; charset=utf-8\r\n\r\n"
PICTURE = "Content-Type: image/png; name=a.png\r\n\r\nx"
BIG = (
    b"Content-Type: application/pdf; name=big.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes(b"x" * 230_000)
)
ORIGINAL = (
    'Content-Type: message/rfc822\r\nContent-Disposition: attachment; filename="original.eml"\r\n\r\n'
    "From: other@example.com\r\nSubject: the original\r\n\r\nI agree to pay.\r\n"
)

#: What it is of, a message, and its text.
TEXTS: list[tuple[str, bytes, str]] = [
    (
        "no end of <head>: HTML lets it be left out, and <body> ends it",
        (HTML + "<html><head><meta name=x><body><p>Dear customer</p></body></html>").encode(),
        "Dear customer",
    ),
    (
        "an end of <head> at the very end",
        (
            HTML + "<html><head><title>x</title><body><p>Dear customer</p></body></head></html>"
        ).encode(),
        "Dear customer",
    ),
    (
        "conditional comments of Outlook",
        (HTML + "<!--[if mso]>no<![endif]--><![if !mso]>yes<![endif]>").encode(),
        "yes",
    ),
    (
        "windows-1252 without a word of it",
        b"Subject: x\r\n\r\nCopyright \xa9 2026 \x93Acme\x94",
        "Copyright © 2026 “Acme”",
    ),
    (
        "windows-1252 called us-ascii",
        b"Content-Type: text/plain; charset=us-ascii\r\n\r\nGr\xfc\xdfe",
        "Grüße",
    ),
    (
        "UTF-8 called us-ascii",
        b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + "Grüße".encode(),
        "Grüße",
    ),
    (
        "GBK called gb2312",
        b"Content-Type: text/plain; charset=gb2312\r\n\r\n" + "镕基".encode("gbk"),
        "镕基",
    ),
    (
        "windows-874",
        b"Content-Type: text/plain; charset=windows-874\r\n\r\n" + "สวัสดี".encode("cp874"),
        "สวัสดี",
    ),
    (
        "the name of UTF-7 in RFC 1642",
        b"Content-Type: text/plain; charset=unicode-1-1-utf-7\r\n\r\nGr+APwA3w-e",
        "Grüße",
    ),
    (
        "the charset of a <meta>",
        b"Content-Type: text/html\r\n\r\n<meta charset=koi8-r><p>" + "Привет".encode("koi8-r"),
        "Привет",
    ),
    (
        "the old form of <meta>",
        b'Content-Type: text/html\r\n\r\n<meta http-equiv=Content-Type content="text/html; charset=koi8-r">'
        + "Привет".encode("koi8-r"),
        "Привет",
    ),
    (
        "a <meta> that can't be true",
        b"Content-Type: text/html\r\n\r\n<meta charset=utf-16><p>hello",
        "hello",
    ),
    (
        "UTF-16 with its mark",
        b"Content-Type: text/plain; charset=utf-16\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(b"\xfe\xff" + "Grüße".encode("utf-16-be")),
        "Grüße",
    ),
    (
        "UTF-32",
        b"Content-Type: text/plain; charset=utf-32le\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes("Grüße".encode("utf-32-le")),
        "Grüße",
    ),
    (
        "a charset of nobody",
        b"Content-Type: text/plain; charset=no-such\r\n\r\nGr\xfc\xdfe",
        "Grüße",
    ),
    ("a codec that is none of text", b"Content-Type: text/plain; charset=rot13\r\n\r\nabc", "abc"),
    (
        "quoted-printable, broken",
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na=ZZb=\r\nc=C3=BC=3D = x\r\n",
        "a=ZZbcü= = x",
    ),
    (
        "base64 with junk, and a mailing list's footer behind it",
        b"Content-Transfer-Encoding: base64\r\n\r\nSGVsbG8*gd29ybGQ=\r\n-- \r\nfooter\r\n",
        "Hello world",
    ),
    (
        "base64 that lacks a character",
        b"Content-Transfer-Encoding: base64\r\n\r\nSGVsbG8gd29yb\r\n",
        "Hello wor",
    ),
    (
        "an attached message, and no words with it",
        multipart("Content-Type: text/plain\r\n\r\n\r\n", ORIGINAL),
        "",
    ),
    (
        "words on both sides of a picture (Apple Mail)",
        multipart(TEXT + "first", PICTURE, TEXT + "second"),
        "first\n\nsecond",
    ),
    (
        "an alternative: the plain text",
        multipart(HTML + "<p>markup", TEXT + "plain", kind="alternative"),
        "plain",
    ),
    (
        "an alternative whose plain text is empty",
        multipart(TEXT + " \r\n", HTML + "<p>markup", kind="alternative"),
        "markup",
    ),
    (
        "a folded boundary (RFC 5322 section 2.2.3)",
        b'Content-Type: multipart/mixed; boundary="one\r\n two"\r\n\r\n--one two\r\n\r\nhello\r\n--one two--\r\n',
        "hello",
    ),
    (
        "a boundary that begins another",
        multipart(
            'Content-Type: multipart/mixed; boundary="qq"\r\n\r\n--qq\r\n\r\ninner\r\n--qq--\r\n',
            TEXT + "outer",
        ),
        "inner\n\nouter",
    ),
    (
        "an inner multipart that never ends",
        multipart(
            'Content-Type: multipart/mixed; boundary="r"\r\n\r\n--r\r\n\r\ninner\r\n',
            TEXT + "outer",
        ),
        "inner\n\nouter",
    ),
    ("one boundary twice", multipart(multipart(TEXT + "inner"), TEXT + "outer"), "inner\n\nouter"),
    (
        "a delimiter within a part's header",
        multipart("Content-Type: text/html", TEXT + "next"),
        "next",
    ),
    ("a part without a header and the empty line of it", multipart("just words"), "just words"),
    ("the text behind an attachment of 300 kB", multipart(BIG, TEXT + "the letter"), "the letter"),
    (
        "a header of 300 kB",
        b"X-A: " + b"a\r\n b" * 60_000 + b"\r\nSubject: s\r\n\r\nthe letter",
        "the letter",
    ),
    (
        "an attachment of text without a name (RFC 2183 section 2.2)",
        multipart(
            "Content-Type: text/plain\r\nContent-Disposition: attachment\r\n\r\nattached log",
            TEXT + "the letter",
        ),
        "the letter",
    ),
    (
        "a named text that is not said to be attached",
        b'Content-Type: text/plain; name="report.txt"\r\n\r\nthe whole message',
        "the whole message",
    ),
    (
        "a multipart that never begins",
        b"Content-Type: multipart/mixed; boundary=q\r\n\r\nonly a preamble",
        "only a preamble",
    ),
    (
        "a multipart without a boundary",
        b"Content-Type: multipart/mixed\r\n\r\n--x\r\n\r\ntext\r\n--x--\r\n",
        "--x\n\ntext\n--x--",
    ),
    (
        "a type that can't be read is text (RFC 2045 section 5.2)",
        b"Content-Type: ;;;===\r\n\r\nhello",
        "hello",
    ),
    (
        "the first of two types",
        b"Content-Type: text/html\r\nContent-Type: text/plain\r\n\r\n<b>x</b>",
        "x",
    ),
    (
        "blank lines and a mark before the header",
        b"\xef\xbb\xbf\r\n\r\nSubject: x\r\n\r\nhello",
        "hello",
    ),
    (
        "an mbox line before the header",
        b"From ann@example.com Tue Nov 24 07:00:00 2026\r\nSubject: x\r\n\r\nhello",
        "hello",
    ),
    ("no header at all", b"Just text.\r\n\r\nMore of it.", "Just text.\n\nMore of it."),
    ("line ends that lost their line feeds", b"Subject: x\r\rline 1\rline 2\r", "line 1\nline 2"),
    ("line ends of two carriage returns", b"Subject: x\r\r\n\r\r\nhello\r\r\n", "hello"),
    (
        "controls and marks that reverse text",
        "Subject: x\r\n\r\na\x00b\x1b[31mc\u202egnp.exe".encode(),
        "a b [31mc gnp.exe",
    ),
]


@pytest.mark.parametrize(
    ("message", "text"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS]
)
def test_the_text_of_a_message(message: bytes, text: str) -> None:
    assert read(message).text == text


@pytest.mark.parametrize(
    "body", [b"The boundary condition holds.\r\n" * 201, b"-- a comment\r\nselect 1;\r\n" * 2001]
)
def test_words_and_lines_of_text_are_no_nesting(body: bytes) -> None:
    shown = read(b"Subject: x\r\n\r\n" + body)
    assert shown.text == body.decode().replace("\r\n", "\n").strip()
    assert shown.notes == ()


def named(*fields: str) -> bytes:
    return multipart(TEXT + "see", "\r\n".join(fields).encode("utf-8") + b"\r\n\r\nx")


PDF = "Content-Type: application/pdf"
NAMES: list[tuple[str, bytes, str]] = [
    (
        "of a disposition before one of a type",
        named(PDF + "; name=b.pdf", "Content-Disposition: attachment; filename=a.pdf"),
        "a.pdf",
    ),
    ("of a type", named(PDF + '; name="a b.pdf"'), "a b.pdf"),
    (
        "in encoded words: forbidden by RFC 2047, written by Outlook, read by all",
        named(PDF, 'Content-Disposition: attachment; filename="=?utf-8?q?R=C3=A9sum=C3=A9.pdf?="'),
        "Résumé.pdf",
    ),
    (
        "in two folded words",
        named(PDF + ';\r\n name="=?koi8-r?B?8NLJ18XU?=\r\n =?koi8-r?B?LnBkZg==?="'),
        "Привет.pdf",
    ),
    ("in raw UTF-8 (RFC 6532)", named(PDF + '; name="Résumé.pdf"'), "Résumé.pdf"),
    (
        "of RFC 2231, with a charset",
        named(PDF, "Content-Disposition: attachment; filename*=iso-8859-1'de'Gr%FC%DFe.pdf"),
        "Grüße.pdf",
    ),
    (
        "of RFC 2231, continued in any order",
        named(
            PDF,
            "Content-Disposition: attachment; filename*1*=%BC%C3%9Fe; filename*2=\"%20.pdf\"; filename*0*=utf-8''Gr%C3",
        ),
        "Grüße%20.pdf",
    ),
    (
        "continued without a charset",
        named(PDF, 'Content-Disposition: attachment; filename*0="one ";', ' filename*1="two.pdf"'),
        "one two.pdf",
    ),
    (
        "with escaped quotes, and a semicolon within",
        named(PDF + r'; name="a\"b;c.pdf"'),
        'a"b;c.pdf',
    ),
    ("that leads elsewhere", named(PDF + "; name=../../etc/passwd"), "_._.._etc_passwd"),
    ("of Windows, with its directories", named(PDF + r'; name="C:\mail\a.pdf"'), "C:_mail_a.pdf"),
    (
        "that reads in the other direction",
        named(PDF + '; name="invoice\u202efdp.exe"'),
        "invoice fdp.exe",
    ),
    (
        "with a line end in a word",
        named(PDF + '; name="=?utf-8?q?a=0D=0AX-B:_c.pdf?="'),
        "a  X-B: c.pdf",
    ),
    (
        "that is long: what it ends with stays",
        named(PDF + f'; name="{"a" * 500}.pdf"'),
        "a" * 159 + "…" + "a" * 36 + ".pdf",
    ),
    ("of nothing", named(PDF), ""),
]


@pytest.mark.parametrize(
    ("message", "name"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES]
)
def test_the_name_of_a_file(message: bytes, name: str) -> None:
    (attachment,) = read(message).attachments
    assert (attachment.name, attachment.type, attachment.size_bytes) == (name, "application/pdf", 1)


def test_every_part_is_shown_or_an_attachment_with_the_size_of_its_bytes() -> None:
    data = bytes(range(256)) * 9_000
    quoted = b"Content-Type: image/gif\r\nContent-ID: <1@x>\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na=00=\r\nb"
    coded = b"Content-Type: application/x-y; name=d\r\nContent-Transfer-Encoding: BASE64\r\n\r\n"
    shown = read(multipart(TEXT + "two files", coded + base64.encodebytes(data), PICTURE, quoted))
    assert [(part.name, part.type, part.size_bytes, part.inline) for part in shown.attachments] == [
        ("d", "application/x-y", len(data), False),
        ("a.png", "image/png", 1, False),
        ("", "image/gif", 3, True),
    ]


@pytest.mark.parametrize(
    ("head", "inline"),
    [
        ("Content-Type: image/png\r\nContent-ID: <1@x>", True),
        ("Content-Type: image/png\r\nContent-ID: <1@x>\r\nContent-Disposition: inline", True),
        ("Content-Type: image/png\r\nContent-ID: <1@x>\r\nContent-Disposition: attachment", False),
        ("Content-Type: image/png\r\nContent-Disposition: inline; filename=p.png", False),
        ("Content-Type: application/pdf\r\nContent-Disposition: inline; filename=c.pdf", False),
        ("Content-Type: application/pdf\r\nContent-ID: <1@x>", False),
        ("Content-Type: message/rfc822\r\nContent-Disposition: inline", False),
        ("Content-Type: text/plain\r\nContent-Disposition: inline; filename=notes.txt", True),
        ("Content-Type: text/plain; name=notes.txt", False),
    ],
)
def test_only_pictures_that_html_can_show_and_text_that_is_shown_belong_into_the_text(
    head: str, inline: bool
) -> None:
    """Apple Mail calls every file inline."""
    (part,) = read(multipart(TEXT + "see", head + "\r\n\r\nx")).attachments
    assert part.inline == inline


def test_an_attached_message_is_an_attachment_and_nothing_in_it_is_of_this_one() -> None:
    unnamed = "Content-Type: message/rfc822\r\n\r\n" + multipart(
        TEXT + "no", PICTURE
    ).decode().replace(
        "Content-Type", "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nContent-Type", 1
    ).replace("q", "r").replace("?r?", "?q?")
    shown = read(multipart(TEXT + "see", ORIGINAL, unnamed))
    assert shown.text == "see"
    assert [(part.name, part.kind) for part in shown.attachments] == [
        ("original.eml", "attached message"),
        ("Grüße", "attached message"),
    ]
    assert [
        part.kind for part in read(multipart("\r\nSubject: x\r\n\r\nno", kind="digest")).attachments
    ] == ["attached message"]


def test_an_html_version_is_told_of_and_its_text_is_there() -> None:
    shown = read(
        multipart(TEXT + "Your program can't show HTML.", HTML + "<p>Pay now", kind="alternative")
    )
    assert shown.text == "Your program can't show HTML."
    assert [tuple(version) for version in shown.versions] == [("HTML", "Pay now")]
    only = read((HTML + "<p>Pay now").encode())
    assert (only.text, only.versions, only.notes) == ("Pay now", (), ("Text of an HTML message.",))


def test_an_html_version_of_pictures_alone_is_told_of_too() -> None:
    picture = HTML + "<img src=cid:x>"
    assert [
        tuple(version)
        for version in read(multipart(TEXT + "Hello", picture, kind="alternative")).versions
    ] == [("HTML", "")]
    assert read(picture.encode()).notes == ("This message has no text: its HTML has no words.",)


def test_a_wrong_name_of_a_charset_is_no_matter_where_all_is_ascii() -> None:
    assert read(b"Content-Type: text/plain; charset=8bit\r\n\r\nhello").notes == ()


#: What it is of, a message, and what is told about it.
TOLD: list[tuple[str, bytes, str]] = [
    ("no text", multipart(PICTURE), "This message has no text."),
    ("no end of the header", b"From: a@example.com\r\nSubject: x", "all of it is header"),
    ("a long text", b"\r\n" + b"word " * 50_000, f"first {MAX_CHARACTERS:,} characters"),
    ("a longer one", b"\r\n" + b"<p>word</p>" * 100_000, "first 1,000,000 bytes"),
    ("too many parts", multipart(*[PICTURE] * 1_001), "more than 1,000 parts"),
    (
        "too deep",
        b"".join(
            b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(300)
        ),
        "more than 200 deep",
    ),
    (
        "more behind the end",
        multipart(TEXT + "hello") + b"--q\r\n\r\nhidden",
        "13 bytes behind the end",
    ),
    (
        "a charset that is wrong",
        b"Content-Type: text/plain; charset=utf-8\r\n\r\nGr\xfc\xdfe",
        "some characters may be wrong",
    ),
    (
        "parts that can't be told apart",
        b"Content-Type: multipart/mixed\r\n\r\n--x",
        "can't be told apart",
    ),
    (
        "a signature of PGP",
        multipart(
            TEXT + "x",
            "Content-Type: application/pgp-signature\r\n\r\nx",
            kind='signed; protocol="application/pgp-signature"',
        ),
        "Signed with PGP. The signature is not checked here.",
    ),
    (
        "a signature of S/MIME",
        multipart(TEXT + "x", kind='signed; protocol="application/pkcs7-signature"'),
        "Signed with S/MIME. ",
    ),
    (
        "a sealed signature",
        b"Content-Type: application/pkcs7-mime; smime-type=signed-data; name=smime.p7m\r\n\r\nx",
        "its text is within the seal",
    ),
    (
        "encryption with S/MIME",
        b"Content-Type: application/x-pkcs7-mime; smime-type=enveloped-data\r\n\r\nx",
        "Encrypted with S/MIME",
    ),
    ("encryption with PGP", multipart(PICTURE, kind="encrypted"), "Encrypted with PGP"),
    (
        "encryption within the text",
        b"\r\n-----BEGIN PGP MESSAGE-----\r\n",
        "text encrypted with PGP",
    ),
    (
        "files within the text",
        b"\r\ntext before\r\nbegin 644 a.txt\r\n#0V%T\r\n`\r\nend\r\n",
        "(uuencode): a.txt.",
    ),
]


@pytest.mark.parametrize(
    ("message", "note"), [row[1:] for row in TOLD], ids=[row[0] for row in TOLD]
)
def test_what_is_left_out_or_protected_is_told(message: bytes, note: str) -> None:
    assert note in " ".join(read(message).notes)


def test_the_headers_are_shown_as_received_each_line_in_its_charset() -> None:
    head = (
        "Subject: Grüße \u202egnp\x1b[0m\r\nX-Old: ".encode()
        + b"Gr\xfc\xdfe\r\nX-Word: =?utf-8?q?a?="
    )
    shown = read(head + b"\r\n\r\nbody")
    assert shown.headers == "Subject: Grüße  gnp [0m\nX-Old: Grüße\nX-Word: =?utf-8?q?a?="
    assert shown.headers_note == ""
    long = read(b"".join(b"X-%d: %s\r\n" % (n, b"x" * 60) for n in range(5_000)) + b"\r\n")
    assert len(long.headers) == 50_000
    assert long.headers_note.startswith("The first 50,000 characters of ")


def test_a_character_that_a_cut_divides_is_left_out() -> None:
    shown = read(
        b"Content-Type: text/html; charset=utf-8\r\n\r\n<p>" + "<b>ü</b>".encode() * 200_000
    )
    assert "\ufffd" not in shown.text
    assert "characters may be wrong" not in " ".join(shown.notes)


def test_nothing_is_told_about_an_ordinary_message() -> None:
    assert read(multipart(TEXT + "hello", PICTURE)).notes == ()
    assert read(b"") == Contents(notes=("This message has no text.",))
