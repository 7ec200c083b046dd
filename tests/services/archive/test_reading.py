"""Reading a stored message's contents: in processes that have limits."""

import tempfile

import pytest

from connectors.types import Body, SpooledBody
from ingestion.mail.body import read
from ingestion.services.archive import readers, reading

MAIL = (
    'Subject: Grüße\r\nContent-Type: multipart/alternative; boundary="q"\r\n\r\n'
    "--q\r\nContent-Type: text/plain\r\n\r\nplain\r\n"
    "--q\r\nContent-Type: text/html\r\n\r\n<p>Grüße\r\n"
    "--q\r\nContent-Type: image/png; name=a.png\r\n\r\nx\r\n--q--\r\n"
).encode()


def spooled(mail: bytes) -> SpooledBody:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the test
    file.write(mail)
    return SpooledBody(file, len(mail))


@pytest.mark.parametrize("mail", [MAIL, b"", b"\xff\x00" * 1_000], ids=["mail", "nothing", "junk"])
def test_the_child_says_what_the_reader_says(mail: bytes) -> None:
    assert reading.read(mail) == read(mail)


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


def test_a_digest_has_the_header_and_the_text() -> None:
    digest = reading.digest(MAIL)
    assert digest.headers.subject == "Grüße"
    assert digest.text == "plain"
    assert [file.name for file in digest.attachments] == ["a.png"]
