"""Answers with the bytes of a file: all of them, a range, or that the client has them (RFC 9110).

One for API and admin. The bytes are a stranger's: no browser may open them as a page. They were
verified before they come here, so that no byte of a wrong one is sent.
"""

import mimetypes
import re
from collections.abc import Iterator

from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.utils.http import content_disposition_header, parse_etags

from connectors.types import CHUNK_BYTES, Body, SpooledBody
from ingestion.mail import visible
from ingestion.mail.attachments import Attachment
from ingestion.models import Message

_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE | re.ASCII)
#: RFC 6838 section 4.2.
_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
#: What some file system does not take in a name, beside what nothing shows.
_UNFIT = re.compile(r'[<>:"/\\|?*]')
_MAX_SUBJECT_CHARACTERS = 80
#: Of attachments that may be called by what is in them, as no file is.
_ENDINGS = {"attached message": ".eml", "calendar": ".ics"}
_HEADERS = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "private, no-store",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


def eml_name(message: Message) -> str:
    """Return what a message is saved as: "2025-06-15 Your invoice 4711.eml"."""
    date = message.received_at or message.sent_at or message.archived_at
    subject = _UNFIT.sub("_", visible.line(message.subject[:_MAX_SUBJECT_CHARACTERS]))
    return f"{date:%Y-%m-%d} {subject or message.sha256_hex[:16]}.eml"


def eml(request: HttpRequest, message: Message, body: Body) -> HttpResponseBase:
    """Answer a message as a file: its exact bytes, which `answer` closes."""
    return answer(
        request,
        body,
        sha256=message.sha256_hex,
        name=eml_name(message),
        content_type="message/rfc822",
    )


def not_modified(request: HttpRequest, sha256: str) -> HttpResponse | None:
    """Return the 304 for a client that has these bytes: ask before they are opened.

    Compared weakly, as section 13.1.2 has it for If-None-Match.
    """
    etag = f'"{sha256}"'
    given = parse_etags(request.headers.get("If-None-Match", ""))
    if etag in (tag.removeprefix("W/") for tag in given) or "*" in given:
        return HttpResponse(status=304, headers={"ETag": etag})
    return None


def answer(
    request: HttpRequest, body: Body, *, sha256: str, name: str, content_type: str
) -> HttpResponseBase:
    """Answer GET or HEAD with a file; a SpooledBody is closed when that is over.

    One range is answered by 206, one beyond the end by 416; several, or what is no range, by the
    whole, as section 14.2 allows. If-Range wants the ETag: there is no date.
    """
    size = body.size if isinstance(body, SpooledBody) else len(body)
    etag = f'"{sha256}"'
    wanted = _range(request, etag, size)
    if wanted is not None and not wanted:
        _close(body)
        return _beyond(size)
    part = wanted if wanted is not None else range(size)
    headers = _HEADERS | {
        "Content-Length": str(len(part)),
        "Content-Type": content_type,
        "Content-Disposition": str(content_disposition_header(as_attachment=True, filename=name)),
        "ETag": etag,
    }
    if wanted is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        _close(body)
        return HttpResponse(status=status, headers=headers)
    if isinstance(body, SpooledBody):
        return StreamingHttpResponse(_Part(body, part), status=status, headers=headers)
    return HttpResponse(body[part.start : part.stop], status=status, headers=headers)


def attachment(
    request: HttpRequest, about: Attachment, body: SpooledBody, *, number: int
) -> HttpResponseBase:
    """Answer with an attachment; its type is its sender's word, and no browser acts on it."""
    if same := not_modified(request, about.sha256):
        body.close()
        return same
    kind = about.type if _TYPE.fullmatch(about.type) else "application/octet-stream"
    ending = _ENDINGS.get(about.kind) or mimetypes.guess_extension(kind) or ""
    name = about.name or f"attachment-{number}"
    if not about.name or about.kind in _ENDINGS:
        name = _UNFIT.sub("_", name)
        name += "" if name.lower().endswith(ending) else ending
    return answer(request, body, sha256=about.sha256, name=name, content_type=kind)


def _range(request: HttpRequest, etag: str, size: int) -> range | None:
    """Return the bytes that are asked for, none of them where they are beyond the end; or None:
    the whole is asked for."""
    found = _ONE_RANGE.fullmatch(request.headers.get("Range", ""))
    if request.method != "GET" or found is None or not (found[1] or found[2]):
        return None
    if request.headers.get("If-Range", etag) != etag:
        return None
    if not found[1]:  # the last bytes
        return range(max(0, size - int(found[2])), size)
    first, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < first:
        return None  # no range at all (section 14.1.1)
    return range(first, min(last + 1, size))


def _beyond(size: int) -> HttpResponse:
    """Say in the API's format that there are no such bytes."""
    error = {
        "code": "range_not_satisfiable",
        "detail": f"There are {size:,} bytes: ask for some of these.",
        "attr": None,
    }
    answer = JsonResponse({"type": "client_error", "errors": [error]}, status=416)
    answer["Content-Range"] = f"bytes */{size}"
    return answer


def _close(body: Body) -> None:
    if isinstance(body, SpooledBody):
        body.close()


class _Part:
    """Some bytes of a spooled body, which is freed also where none of them was sent."""

    def __init__(self, body: SpooledBody, part: range) -> None:
        self.close = body.close
        self._file = body.file
        self._part = part

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(self._part.start)
        left = len(self._part)
        while left and (chunk := self._file.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk
