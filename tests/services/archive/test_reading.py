"""Reading an archived message: its text, HTML, attachments and digest, whatever it does to readers."""

import base64
import hashlib
import resource
import tempfile
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from connectors.types import Body, SpooledBody
from ingestion.errors import ArchiveUnavailable, Corrupt
from ingestion.mail.body import read
from ingestion.mail.digest import digest
from ingestion.models import Message
from ingestion.services.archive import readers, reading
from tests.e2e import rows
from tests.mail import files

MAIL = (
    'Subject: Grüße\r\nContent-Type: multipart/alternative; boundary="q"\r\n\r\n'
    "--q\r\nContent-Type: text/plain\r\n\r\nplain\r\n"
    "--q\r\nContent-Type: text/html\r\n\r\n<p>Grüße\r\n"
    "--q\r\nContent-Type: image/png; name=a.png\r\n\r\nx\r\n--q--\r\n"
).encode()
#: Its last cell is as far as one can be: a sheet of 17 billion, in 1 kB.
VAST_SHEET = files.xlsx('<row r="1"><c><v>1</v></c></row><row><c r="XFD1048576"><v>1</v></c></row>')


def spooled(mail: bytes) -> SpooledBody:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the test
    file.write(mail)
    return SpooledBody(file, len(mail))


def with_files(*attached: tuple[str, bytes]) -> bytes:
    parts = [
        f"--q\r\nContent-Type: application/octet-stream; name={name}\r\n"
        "Content-Transfer-Encoding: base64\r\n\r\n".encode()
        + base64.encodebytes(data)
        for name, data in attached
    ]
    head = b"From: ann@x\r\nSubject: files\r\nContent-Type: multipart/mixed; boundary=q\r\n\r\n"
    return head + b"--q\r\n\r\nSee the files.\r\n" + b"".join(parts) + b"--q--\r\n"


@pytest.fixture
def archived(owner: User, archive_dir: Path) -> Message:
    """A message of two files, the second of 6 MB."""
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    mail = with_files(("a.txt", b"one"), ("b.bin", bytes(range(256)) * 24_000))
    return rows.archived(folder, mail)[0]


@pytest.mark.parametrize("mail", [MAIL, b"", b"\xff\x00" * 1_000], ids=["mail", "nothing", "junk"])
def test_the_child_says_what_the_reader_says(mail: bytes) -> None:
    assert reading.read(mail) == read(mail)
    assert reading.digest(mail) == digest(mail)


def test_the_child_has_all_that_it_needs_to_read_files() -> None:
    mail = with_files(
        ("a.pdf", files.pdf("heron")),
        ("b.xlsx", files.xlsx(files.row(1, "heron", 1))),
        ("c.docx", files.docx("heron")),
        ("d.html", b"<meta charset=iso-2022-kr><p>heron"),
    )
    said = reading.digest(mail)
    assert said == digest(mail)
    assert said.text.count("heron") == 4


def test_a_large_message_is_not_copied_to_be_read() -> None:
    body = spooled(MAIL + b"x" * 3_000_000)
    assert reading.read(body) == read(MAIL + b"x" * 3_000_000)
    body.close()


@pytest.mark.parametrize(
    ("limit", "value"), [("MEMORY_BYTES", 1_000), ("DEADLINE_SECONDS", 0.00001)]
)
def test_a_child_beyond_its_limits_comes_to_nothing(
    limit: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, limit, value)
    body: Body = MAIL
    with pytest.raises(readers.Unreadable):
        reading.read(body)


def test_html_is_shown_sanitised(owner: User, archive_dir: Path) -> None:
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    mail = b"Content-Type: text/html\r\n\r\n<img src=https://x/ onerror=run()>"
    (message,) = rows.archived(folder, mail)
    assert reading.html(message) == ("<img>", 1, ())
    assert reading.html(message, remote=True) == ('<img src="https://x/">', 0, ())


def test_an_attachment_is_had_by_its_place_of_any_size(archived: Message) -> None:
    listed = reading.contents(archived).attachments
    assert [file.name for file in listed] == ["a.txt", "b.bin"]
    for number, file in enumerate(listed):
        found = reading.attachment(archived, number)
        assert found is not None
        assert found.about == file
        data = b"".join(found.body.chunks())
        found.body.close()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)
    assert reading.attachment(archived, 2) is None
    assert reading.attachment(archived, -1) is None


def test_a_temporary_directory_without_room_says_nothing_of_an_attachment(
    archived: Message,
) -> None:
    reading.read(MAIL)
    for reader in readers._idle:
        resource.prlimit(reader._popen.pid, resource.RLIMIT_FSIZE, (1_000_000, -1))
    with pytest.raises(ArchiveUnavailable, match=r"TMPDIR .* Make room"):
        reading.attachment(archived, 1)
    found = reading.attachment(archived, 0)
    assert found is not None
    found.body.close()
    readers._end_all()


def test_what_can_not_be_read_is_said_and_no_error(
    archived: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MEMORY_BYTES", 1_000)
    note = "It can't be read within the limits of this page. Download it to read it."
    assert reading.contents(archived).notes == (note,)
    assert reading.html(archived).notes == (note,)
    assert reading.attachment(archived, 0) is None
    said = reading.digest(MAIL)
    assert said.headers.subject == "Grüße"
    assert said.defects == ("Nothing but its header can be read within the limits of a reader.",)


def test_bytes_that_are_not_the_archived_ones_are_an_error(archived: Message) -> None:
    archived.sha256 = bytes(32)
    for asked in (reading.contents, reading.html, lambda message: reading.attachment(message, 0)):
        with pytest.raises(Corrupt):
            asked(archived)


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("bad.pdf", files.looping_pdf()),
        ("bad.xlsx", VAST_SHEET),
    ],
)
def test_a_file_that_a_reader_dies_of_is_a_defect_and_all_else_is_read(
    name: str, hostile: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CPU_SECONDS", 0)
    said = reading.digest(
        with_files(("a.docx", files.docx("heron")), (name, hostile), ("b.txt", b"egret"))
    )
    assert said.defects == (f"{name}: could not be read in the time and memory for a message.",)
    assert "heron" in said.text
    assert said.text.endswith("egret")
    assert [file.name for file in said.attachments] == ["a.docx", name, "b.txt"]
    assert reading.digest(MAIL).text == "plain"


def test_where_one_file_after_the_other_ends_readers_none_of_them_is_read() -> None:
    said = reading.digest(with_files(*[(f"{name}.xlsx", VAST_SHEET) for name in "abc"]))
    assert said.text == "See the files."
    assert [defect[:6] for defect in said.defects] == ["a.xlsx", "b.xlsx", "c.xlsx"]
