"""What is kept of a message for search: all of its words, and what was not read."""

import base64
import binascii
import hashlib

import pytest

from ingestion.mail import documents
from ingestion.mail.digest import MAX_TEXT_BYTES, Digest, digest
from tests.mail import files
from tests.mail.test_body import HTML, PICTURE, TEXT, multipart


def attached(data: bytes, name: str, kind: str = "application/octet-stream") -> bytes:
    return (
        f"Content-Type: {kind}; name={name}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode()
        + base64.encodebytes(data)
    )


def with_file(data: bytes, name: str, kind: str = "application/octet-stream") -> Digest:
    return digest(multipart(TEXT + "See the file.", attached(data, name, kind)))


def test_whom_a_message_names_is_kept_by_role_with_addresses_in_lower_case() -> None:
    said = digest(
        b"From: =?utf-8?q?Zo=C3=AB=2C_Ltd?= <Zoe@Example.COM>\r\nTo: b@x, Team: c@x, d@x;\r\n"
        b"Cc: f@x (Fay)\r\nBcc: g@x\r\nReply-To: answers@x\r\nSender: robot@x\r\n"
        b"Resent-From: h@x\r\nResent-To: i@x\r\nIn-Reply-To: <2@x> (yours)\r\n"
        b"References: <1@x>\r\n <2@\r\n x>\r\n\r\nhi"
    )
    assert said.participants == (
        ("from", "zoe@example.com", "Zoë, Ltd"),
        ("to", "b@x", ""),
        ("to", "c@x", ""),
        ("to", "d@x", ""),
        ("cc", "f@x", "Fay"),
        ("bcc", "g@x", ""),
        ("reply-to", "answers@x", ""),
        ("sender", "robot@x", ""),
    )
    assert said.fields == {
        "replyTo": "answers@x",
        "sender": "robot@x",
        "bcc": "g@x",
        "resentFrom": "h@x",
        "resentTo": "i@x",
        "inReplyTo": "<2@x>",
        "references": ["<1@x>", "<2@x>"],
    }
    assert said.headers.sender == '"Zoë, Ltd" <Zoe@Example.COM>'
    assert said.defects == ()


@pytest.mark.parametrize(
    ("field", "named"),
    [
        (b"=?utf-8?q?ceo=40bank.example?= <thief@x>", ("thief@x", "ceo@bank.example")),
        (b'"ceo@bank.example" <thief@x>', ("thief@x", "ceo@bank.example")),
        (b"ceo@bank.example <thief@x>", ("thief@x", "ceo@bank.example")),
        (b"=?utf-8?q?=3Cceo=40bank.example=3E?= <thief@x>", ("thief@x", "<ceo@bank.example>")),
        (b"<@relay,@other:ann@x>", ("ann@x", "")),
        (b'"Doe, Jane \\"JD\\"" <jane@x>', ("jane@x", 'Doe, Jane "JD"')),
        ("Jörg <jörg@bücher.example>".encode(), ("jörg@bücher.example", "Jörg")),
        (b"Ann ann@x", ("ann@x", "Ann")),
        (b"'ann@x'", ("ann@x", "")),
        (b"'ann@x' <'ann@x'>", ("ann@x", "'ann@x'")),
        (b"o'neil@x", ("o'neil@x", "")),
        (b"just a name", ("", "just a name")),
    ],
)
def test_no_name_passes_for_an_address(field: bytes, named: tuple[str, str]) -> None:
    assert digest(b"From: " + field + b"\r\n\r\nhi").participants == (("from", *named),)


def test_recipients_beyond_a_thousand_are_a_defect() -> None:
    said = digest(b"To: " + b", ".join(b"%d@x" % number for number in range(1_001)) + b"\r\n\r\n")
    assert len(said.participants) == 1_000
    assert said.defects == ("cut: participants",)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.pdf", files.pdf("the word is heron")),
        ("a.docx", files.docx("the word is heron")),
        ("a.pptx", files.pptx("the word is heron")),
        ("a.odt", files.odt("the word is heron")),
        ("a.xlsx", files.xlsx(files.row(1, "the word is heron", 1.0))),
        ("a.csv", b"one;the word is heron"),
        ("a.html", b"<title>x</title><p>the word <b>is</b> heron"),
        ("a.ics", b"BEGIN:VEVENT\r\nSUMMARY;LANGUAGE=en:the word is\r\n  heron\r\n"),
        ("winmail.dat", files.tnef("the word is heron.doc")),
    ],
)
def test_a_file_is_found_by_its_words(name: str, data: bytes) -> None:
    kind = "application/ms-tnef" if name == "winmail.dat" else "application/octet-stream"
    said = with_file(data, name, kind)
    assert "the word is heron" in said.text
    assert said.defects == ()
    (file,) = said.attachments
    assert (file.name, file.size_bytes, file.sha256) == (
        name,
        len(data),
        hashlib.sha256(data).hexdigest(),
    )


def test_a_sheet_shows_numbers_as_people_see_them() -> None:
    said = with_file(files.xlsx(files.row(1, "rent", 1200) + files.row(2, "tax", 9.5)), "a.xlsx")
    assert said.text == "See the file.\n\nCosts\nrent\t1200\ntax\t9.5"


def test_a_sheet_is_read_up_to_a_number_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_CELLS", 3)
    said = with_file(files.xlsx(files.row(1, "rent", 1200) + files.row(2, "tax", 9.5)), "a.xlsx")
    assert said.text == "See the file.\n\nCosts\nrent\t1200"
    assert said.defects == ("a.xlsx: only its first 3 cells are searched.",)


def test_text_of_word_has_its_paragraphs_and_no_instructions() -> None:
    assert with_file(files.docx("first"), "a.docx").text == "See the file.\n\nfirst\nend"


@pytest.mark.parametrize(
    ("name", "data", "defect"),
    [
        ("a.pdf", b"%PDF-1.4 and no more", "a.pdf: could not be read."),
        ("a.docx", b"PK no zip", "a.docx: could not be read."),
        ("a.xlsx", b"PK no zip", "a.xlsx: could not be read."),
        (
            "a.docx",
            files.docx("&b;", doctype='<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'),
            "a.docx: it declares entities, which no program writes.",
        ),
        (
            "a.docx",
            files.zipped({"word/document.xml": b" " * 30_000_001}),
            "a.docx: unpacked it is larger than 30,000,000 bytes.",
        ),
        (
            "a.xlsx",  # cells without number or place: four million of them need 533 MB
            files.xlsx("<row>" + "<c><v>1</v></c>" * 2_000_000 + "</row>"),
            "a.xlsx: unpacked it is larger than 30,000,000 bytes.",
        ),
        (
            "a.pdf",
            files.pdf("page", pages=201),
            "a.pdf: only its first 200 pages are searched.",
        ),
        (
            "a.txt",
            b"word " * 100_000,
            "a.txt: its text is longer than what is searched of a message.",
        ),
    ],
)
def test_a_file_that_is_not_read_or_not_all_of_it_is_a_defect(
    name: str, data: bytes, defect: str
) -> None:
    said = with_file(data, name)
    assert said.defects == (defect,)
    assert said.text.startswith("See the file.")


def test_an_attached_message_is_found_by_what_it_says_and_what_is_in_it() -> None:
    inner = b"Subject: inner\r\nFrom: Ann <ann@x>\r\n" + multipart(
        TEXT + "deep words", attached(files.docx("heron"), "notes.docx")
    )
    part = b"Content-Type: message/rfc822\r\n\r\n" + inner.replace(b"--q", b"--p").replace(
        b'"q"', b"p"
    )
    said = digest(multipart(TEXT + "outer", part))
    for words in ("outer", "inner", "Ann <ann@x>", "deep words", "notes.docx", "heron"):
        assert words in said.text
    assert [(file.name, file.kind) for file in said.attachments] == [("inner", "attached message")]


def test_a_calendar_without_a_name_is_called_by_its_event() -> None:
    said = digest(
        multipart(
            TEXT + "come",
            "Content-Type: text/calendar; charset=utf-8\r\n\r\nBEGIN:VCALENDAR\r\nSUMMARY:Lunch\\, 12:30\r\n",
            kind="alternative",
        )
    )
    assert [(file.name, file.kind) for file in said.attachments] == [("Lunch, 12:30", "calendar")]
    assert said.text == "come\n\nLunch, 12:30"


@pytest.mark.parametrize(
    ("written", "name"),
    [("Q1/Q2 review", "Q1_Q2 review"), ("../../etc/x", "_._.._etc_x")],
)
def test_what_a_part_is_called_by_leads_into_no_directory(written: str, name: str) -> None:
    event = f"Content-Type: text/calendar\r\n\r\nBEGIN:VCALENDAR\r\nSUMMARY:{written}\r\n"
    inner = f"Content-Type: message/rfc822\r\n\r\nSubject: {written}\r\n\r\nhi"
    said = digest(multipart(TEXT + "see", event, inner))
    assert [file.name for file in said.attachments] == [name, name]


def test_what_a_part_is_called_by_is_no_longer_than_a_name_of_a_file() -> None:
    inner = f"Content-Type: message/rfc822\r\n\r\nSubject: {'long ' * 200}end\r\n\r\nhi"
    (file,) = digest(multipart(TEXT + "see", inner)).attachments
    assert len(file.name) == 200
    assert file.name.endswith("long end")


def test_text_that_only_says_that_there_is_html_does_not_hide_the_html() -> None:
    said = digest(
        multipart(TEXT + "See HTML.", HTML + "<p>" + "real words " * 9, kind="alternative")
    )
    assert "real words" in said.text
    assert said.preview == "See HTML."


def test_a_file_within_the_text_is_found_by_its_name_and_no_words_are_made_of_it() -> None:
    data = bytes(range(45)) * 3
    lines = "".join(binascii.b2a_uu(data[at : at + 45]).decode() for at in range(0, 135, 45))
    said = digest((TEXT + f"see\nbegin 644 report.doc\n{lines}`\nend\nbye").encode())
    assert said.text == "see\nbegin 644 report.doc\n`\nend\nbye"


def test_text_is_cut_at_a_bound_in_bytes_and_that_is_a_defect() -> None:
    said = digest((TEXT + "ü" * 90_000 + " " + "漢" * 90_000).encode())
    assert MAX_TEXT_BYTES - 3 <= len(said.text.encode()) <= MAX_TEXT_BYTES
    assert said.defects == ("Cut: only the first 200,000 bytes of its text are searched.",)


@pytest.mark.parametrize(
    ("text", "preview"),
    [
        ("one\r\n  two\r\n\r\nthree", "one two three"),
        ("> old\r\nnew", "new"),
        ("Yes.\r\n\r\nOn Tue, 24 Nov 2026 Ann\r\n<ann@x> wrote:\r\n> Shall we?", "Yes."),
        ("Ja.\r\n-----Original Message-----\r\nFrom: Ann", "Ja."),
        ("> nothing but\r\n> quotes", "> nothing but > quotes"),
        ("x" * 200, "x" * 150),
    ],
)
def test_a_preview_is_how_the_own_text_begins(text: str, preview: str) -> None:
    assert digest((TEXT + text).encode()).preview == preview


def test_files_are_left_out_by_their_number() -> None:
    mail = multipart(
        TEXT + "words", PICTURE, attached(files.docx("one"), "a.docx"), attached(b"two", "b.txt")
    )
    began: list[int] = []
    said = digest(mail, skip=[0], began=began.append)
    assert began == [1]
    assert said.text == "words\n\ntwo"
    assert [file.name for file in said.attachments] == ["a.png", "a.docx", "b.txt"]
    assert said.defects == (f"a.docx: {NOT_READ}",)
    assert digest(mail, skip=None).defects == (f"a.docx: {NOT_READ}", f"b.txt: {NOT_READ}")


NOT_READ = "could not be read in the time and memory for a message."
