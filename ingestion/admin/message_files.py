"""What a message's page shows in frames, and hands out: HTML, source, attachments, the exact bytes.

A frame is a stranger's document, so it is the second wall around it (the first sanitises HTML:
`ingestion.mail.view`): its policy lets nothing run, and nothing be fetched but pictures that were
asked for; its sandbox makes it a site of its own that can't reach the page around it. The frame's
element says the same once more, and the page's policy lets it go nowhere else.
"""

import contextlib
import uuid
from collections.abc import Callable

from django.contrib import messages
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_safe

from connectors.types import SpooledBody
from ingestion import downloads, queries
from ingestion.admin import display
from ingestion.admin.mail.readers import for_readers
from ingestion.admin.reading import MAX_PICTURE_BYTES
from ingestion.errors import ArchiveUnavailable, Corrupt
from ingestion.mail import visible
from ingestion.mail.charsets import decode
from ingestion.mail.view import picture_type
from ingestion.models import Message
from ingestion.services.archive import reading
from ingestion.services.archive.reading import OpenedAttachment
from ingestion.services.audit import Actor
from ingestion.services.operations import people

MAX_TEXT_BYTES = 500_000
#: Links open as pages of their own; nothing else is allowed.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox"
_POLICY = (
    "default-src 'none'; img-src data:{pictures}; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox {sandbox}"
)
#: A picture that is named by http: is asked for by https:, or not at all.
_REMOTE = " https:; upgrade-insecure-requests"


def urls() -> list[URLPattern]:
    """Return the addresses below a message's."""
    views: tuple[tuple[str, str, Callable[..., HttpResponseBase]], ...] = (
        ("raw", "raw/", raw),
        ("source", "source/", source),
        ("html", "html/", html),
        ("attachment", "attachments/<int:number>/", attachment),
        ("preview", "attachments/<int:number>/preview/", preview),
    )
    return [
        path(
            f"<uuid:pk>/{below}",
            for_readers(require_safe(view)),
            name=f"ingestion_message_{name}",
        )
        for name, below, view in views
    ]


def raw(request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
    """Hand out the exact bytes, verified before the first of them is sent."""
    message = _readable(request, pk)
    try:
        body = reading.opened(message)
    except (ArchiveUnavailable, Corrupt) as error:
        return _not_downloaded(request, message, str(error))
    _read(request, message, "raw")
    return downloads.eml(request, message, body)


def attachment(request: HttpRequest, pk: uuid.UUID, number: int) -> HttpResponseBase:
    """Hand out the decoded bytes of an attachment."""
    message = _readable(request, pk)
    try:
        opened = _opened(message, number)
    except (ArchiveUnavailable, Corrupt) as error:
        return _not_downloaded(request, message, str(error))
    if opened is None:
        return _not_downloaded(request, message, "This attachment can't be read. Download the .eml")
    _read(request, message, "attachment")
    return downloads.attachment(request, opened.about, opened.body, number=number)


def html(request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
    """Show a message's HTML; with `?remote=1` its pictures are fetched, by the person's browser."""
    message = _readable(request, pk)
    remote = request.GET.get("remote") == "1"
    try:
        shown = reading.html(message, remote=remote)
    except (ArchiveUnavailable, Corrupt) as error:
        return _said(request, str(error))
    _read(request, message, "html with remote pictures" if remote else "html")
    response = render(request, "admin/ingestion/mail/frame.html", {"markup": shown.markup})
    return _framed(response, remote=remote)


def source(request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
    """Show how a message's bytes begin, as text."""
    message = _readable(request, pk)
    try:
        body = reading.opened(message)
    except (ArchiveUnavailable, Corrupt) as error:
        return _said(request, str(error))
    _read(request, message, "source")
    if isinstance(body, SpooledBody):
        with contextlib.closing(body):
            body.file.seek(0)
            return _text(body.file.read(MAX_TEXT_BYTES), message.size_bytes)
    return _text(body[:MAX_TEXT_BYTES], message.size_bytes)


def preview(request: HttpRequest, pk: uuid.UUID, number: int) -> HttpResponseBase:
    """Show an attachment that is a picture or a text, by its first bytes and no word of its own."""
    message = _readable(request, pk)
    try:
        opened = _opened(message, number)
    except (ArchiveUnavailable, Corrupt) as error:
        return _said(request, str(error))
    if opened is None:
        return _said(request, "This attachment can't be read. Download the message to see it.")
    _read(request, message, "preview")
    with contextlib.closing(opened.body) as body:
        body.file.seek(0)
        kind = picture_type(body.file.read(64))
        body.file.seek(0)
        if kind and body.size <= MAX_PICTURE_BYTES:
            return _framed(HttpResponse(body.file.read(), content_type=kind))
        return _text(body.file.read(MAX_TEXT_BYTES), body.size)


# -- who, and how --------------------------------------------------------------------------------


def _readable(request: HttpRequest, pk: uuid.UUID) -> Message:
    message = queries.message(request.user, pk)
    if message is None:
        raise Http404
    return message


def _read(request: HttpRequest, message: Message, how: str) -> None:
    people.mail_read(message, how=how, actor=Actor.of_request(request))


def _opened(message: Message, number: int) -> OpenedAttachment | None:
    return reading.attachment(message, number - 1)


def _not_downloaded(request: HttpRequest, message: Message, why: str) -> HttpResponse:
    messages.error(request, f"Not downloaded. {why}")
    page = display.page_of(message) if request.user.is_staff else reverse("mail", args=[message.pk])
    return HttpResponseRedirect(page)


def _said(request: HttpRequest, text: str) -> HttpResponse:
    return _framed(render(request, "admin/ingestion/mail/frame.html", {"said": text}))


def _text(data: bytes, size: int) -> HttpResponse:
    text = visible.lines(decode(data)[0])
    if size > len(data):
        text += f"\n\n[The first {len(data):,} of {size:,} bytes. Download it to see the others.]"
    return _framed(HttpResponse(text, content_type="text/plain; charset=utf-8"))


def _framed(response: HttpResponse, *, remote: bool = False) -> HttpResponse:
    response["Content-Security-Policy"] = _POLICY.format(
        pictures=_REMOTE if remote else "", sandbox=SANDBOX
    )
    response["X-Frame-Options"] = "SAMEORIGIN"
    response["X-Content-Type-Options"] = "nosniff"
    response["Referrer-Policy"] = "no-referrer"
    # Opened by itself a sandboxed document is refused by browsers that also should isolate it.
    response["Cross-Origin-Opener-Policy"] = "unsafe-none"
    return response
