"""Answers with a file's bytes: ranges, what the client has already, and names."""

import datetime as dt
import hashlib
import io
import tempfile

import pytest
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import RequestFactory

from connectors.types import CHUNK_BYTES, Body, SpooledBody
from ingestion import downloads
from ingestion.mail.attachments import Attachment
from ingestion.models import Message

#: An answer that is closed has Django look at its connections.
pytestmark = pytest.mark.django_db

BYTES = bytes(range(256)) * 4
SHA256 = hashlib.sha256(BYTES).hexdigest()


def _asked(method: str = "GET", **headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestFactory().generic(method, "/", headers=named)


def _answer(request: HttpRequest, body: Body = BYTES, name: str = "a.bin") -> HttpResponseBase:
    return downloads.answer(
        request, body, sha256=SHA256, name=name, content_type="application/octet-stream"
    )


def _bytes(answer: HttpResponseBase) -> bytes:
    if isinstance(answer, StreamingHttpResponse):
        sent = b"".join(answer)
        answer.close()
        return sent
    assert isinstance(answer, HttpResponse)
    return answer.content


def _spooled(data: bytes = BYTES) -> SpooledBody:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the answer closes it
    file.write(data)
    return SpooledBody(file, len(data))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=10-19", range(10, 20)),
        ("Bytes=1000-", range(1000, 1024)),
        ("bytes=-24", range(1000, 1024)),
        ("bytes=-9999", range(1024)),
        ("bytes=1000-99999999", range(1000, 1024)),
    ],
)
@pytest.mark.parametrize("spooled", [False, True])
def test_a_range_is_answered_by_these_bytes(asked: str, expected: range, *, spooled: bool) -> None:
    answer = _answer(_asked(Range=asked), _spooled() if spooled else BYTES)
    assert answer.status_code == 206
    assert _bytes(answer) == BYTES[expected.start : expected.stop]
    assert answer["Content-Range"] == f"bytes {expected.start}-{expected.stop - 1}/1024"
    assert answer["Content-Length"] == str(len(expected))
    assert answer["ETag"] == f'"{SHA256}"'


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused_with_the_size(asked: str) -> None:
    body = _spooled()
    answer = _answer(_asked(Range=asked), body)
    assert (answer.status_code, answer["Content-Range"]) == (416, "bytes */1024")
    assert body.file.closed


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=5-2"},
        {"Range": "bytes=-"},
        {"Range": "bytes=0-1,5-6"},
        {"Range": "lines=0-1"},
        {"Range": "bytes=٣-"},
        {"Range": "bytes=0-1", "If_Range": '"another"'},
        {"Range": "bytes=0-1", "If_Range": f'W/"{SHA256}"'},
        {"Range": "bytes=0-1", "If_Range": "Sat, 28 Nov 2026 12:00:00 GMT"},
    ],
)
def test_what_is_no_range_of_these_bytes_is_answered_by_all(headers: dict[str, str]) -> None:
    answer = _answer(_asked(**headers))
    assert (answer.status_code, _bytes(answer)) == (200, BYTES)
    assert answer["Accept-Ranges"] == "bytes"
    assert not answer.has_header("Content-Range")


def test_an_interrupted_download_goes_on_where_the_file_is_the_same() -> None:
    answer = _answer(_asked(Range="bytes=1000-", If_Range=f'"{SHA256}"'))
    assert (answer.status_code, _bytes(answer)) == (206, BYTES[1000:])


def test_head_tells_all_but_the_bytes_and_knows_no_range() -> None:
    body = _spooled()
    answer = _answer(_asked("HEAD", Range="bytes=0-1"), body)
    assert (answer.status_code, answer["Content-Length"], _bytes(answer)) == (200, "1024", b"")
    assert body.file.closed


def test_a_large_file_is_answered_in_pieces_and_closed() -> None:
    body = SpooledBody(io.BytesIO(b"x" * (3 * CHUNK_BYTES)), 3 * CHUNK_BYTES)
    answer = _answer(_asked(Range=f"bytes=5-{2 * CHUNK_BYTES}"), body)
    assert isinstance(answer, StreamingHttpResponse)
    pieces = [len(piece) for piece in answer]
    assert max(pieces) <= CHUNK_BYTES
    assert sum(pieces) == 2 * CHUNK_BYTES - 4
    answer.close()
    assert body.file.closed


@pytest.mark.parametrize("given", [f'"{SHA256}"', f'W/"{SHA256}"', "*"])
def test_a_client_that_has_the_bytes_is_told_so(given: str) -> None:
    answer = downloads.not_modified(_asked(If_None_Match=given), SHA256)
    assert answer is not None
    assert (answer.status_code, answer["ETag"]) == (304, f'"{SHA256}"')
    assert downloads.not_modified(_asked(If_None_Match='"other"'), SHA256) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("report.pdf", 'attachment; filename="report.pdf"'),
        ('a"b\\c.txt', 'attachment; filename="a\\"b\\\\c.txt"'),
        ("Größe €.pdf", "attachment; filename*=utf-8''Gr%C3%B6%C3%9Fe%20%E2%82%AC.pdf"),
    ],
)
def test_a_name_is_written_so_that_nothing_of_it_is_more(name: str, expected: str) -> None:
    answer = _answer(_asked(), name=name)
    assert answer["Content-Disposition"] == expected
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Security-Policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize(
    ("name", "kind", "content_type", "expected"),
    [
        ("report.pdf", "", "application/pdf", "report.pdf"),
        ("report", "", "application/pdf", "report"),  # as its sender named it
        ("", "", "application/pdf", "attachment-2.pdf"),
        ("Q1_Q2: review", "calendar", "text/calendar", "Q1_Q2_ review.ics"),
        ("Lunch", "calendar", "application/ics", "Lunch.ics"),
        ("invite.ICS", "calendar", "text/calendar", "invite.ICS"),
        ("Re: hello", "attached message", "message/rfc822", "Re_ hello.eml"),
        ("", "attached message", "message/global", "attachment-2.eml"),
    ],
)
def test_an_attachment_is_saved_with_an_ending_that_something_opens(
    name: str, kind: str, content_type: str, expected: str
) -> None:
    about = Attachment(name, content_type, len(BYTES), SHA256, inline=False, kind=kind)
    answer = downloads.attachment(_asked(), about, _spooled(), number=2)
    assert answer["Content-Disposition"] == f'attachment; filename="{expected}"'
    answer.close()


def test_a_message_is_saved_under_its_date_and_subject() -> None:
    received = dt.datetime(2025, 6, 15, tzinfo=dt.UTC)
    message = Message(subject='Re: "../x" \r\n\u202e4711', received_at=received, sha256=b"\1" * 32)
    assert downloads.eml_name(message) == "2025-06-15 Re_ _.._x_    4711.eml"
    message.subject = ""
    assert downloads.eml_name(message) == "2025-06-15 0101010101010101.eml"
