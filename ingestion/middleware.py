"""What every request meets: the end of its session, a log line with its true address, a policy for
what its page may do, and compression of pages.
"""

import datetime as dt
import re
from collections.abc import Callable
from http import HTTPStatus

import structlog
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.http.response import HttpResponseBase
from django.middleware.common import CommonMiddleware
from django.middleware.gzip import GZipMiddleware
from django.utils import timezone
from django_structlog.middlewares import RequestMiddleware

from ingestion.addresses import client_address


class SessionEnd:
    """Ends a sign-in some time after its person's last request, and some time after it began.

    Django refuses what has expired; this says when that is. What a page asks by itself, which
    static/ingestion/live.js marks with X-Background, is no request of a person.
    """

    _LATEST = "latest_end"  # in the session: seconds since the epoch
    _PRECISION = dt.timedelta(minutes=1)  # so rarely is it written to the database

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        if SESSION_KEY in request.session and "X-Background" not in request.headers:
            self._put_off(request.session)
        return response

    def _put_off(self, session: SessionBase) -> None:
        now = timezone.now()
        latest = session.setdefault(self._LATEST, now.timestamp() + settings.SESSION_COOKIE_AGE)
        end = min(
            now + dt.timedelta(seconds=settings.SESSION_IDLE_SECONDS),
            dt.datetime.fromtimestamp(latest, dt.UTC),
        )
        if abs(end - session.get_expiry_date()) >= self._PRECISION:
            session.set_expiry(end)


class Hosts(CommonMiddleware):
    """Refuses hosts that are not ours as Django's does, but for what machines ask about us: they
    know an address alone. They are nobody, whatever cookie they send: the database, which would
    say whose it is, may be away."""

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        if re.match(settings.PROBES, request.path):
            request.COOKIES = {}
            return None
        return super().process_request(request)


class RequestLog(RequestMiddleware):
    """django_structlog's, which would believe X-Forwarded-For of anybody, and any X-Request-ID.

    The id that all log lines of a request have is answered too: the client's own, where it has
    one that can't be mistaken for something else in a log. What a page asks by itself every few
    seconds has no line unless it fails: others would not be seen among them.
    """

    _ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

    def prepare(self, request: HttpRequest) -> None:
        if not self._ID.fullmatch(request.headers.get("X-Request-ID", "")):
            request.META.pop("HTTP_X_REQUEST_ID", None)
            vars(request).pop("headers", None)  # Django keeps them, once asked for
        super().prepare(request)

    def handle_response(self, request: HttpRequest, response: HttpResponse) -> None:
        known = structlog.contextvars.get_contextvars().get("request_id")
        if known:
            response.headers["X-Request-ID"] = str(known)
        if self._is_background(request) and response.status_code < 400:
            structlog.contextvars.clear_contextvars()
        else:
            super().handle_response(request, response)

    @staticmethod
    def _is_background(request: HttpRequest) -> bool:
        """Tell whether a page asks by itself: nobody and no program has itself left out. A person's
        own script might; what it reads of mail is in the audit."""
        return (
            "X-Background" in request.headers
            and request.method == "GET"
            and request.path.startswith("/admin/")
            and SESSION_KEY in request.session
        )

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        structlog.contextvars.bind_contextvars(ip=client_address(request))


class ContentPolicy:
    """Lets pages run our own scripts alone; a view that says stricter things keeps them.

    Alpine, which unfold's pages use, evaluates the expressions in its attributes, and both style
    elements. Forms are answered by this site alone, redirects included. No frame
    may go to another site: mail is shown in them.
    """

    _POLICY = (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; frame-src 'self'; "
        "frame-ancestors 'none'; "
        "base-uri 'none'; form-action 'self'"
    )

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        response.headers.setdefault("Content-Security-Policy", self._POLICY)
        return response


class Compression(GZipMiddleware):
    """Compresses pages and what they are made of.

    Nothing else: a compressed answer of the API would have a weak ETag, which If-Match does not
    take; a stream of events would be held back; and mail is given out as it is stored.
    """

    _TYPES = frozenset({
        "application/vnd.oai.openapi", "image/svg+xml", "text/css", "text/html", "text/javascript",
    })  # fmt: skip

    def process_response(
        self, request: HttpRequest, response: HttpResponseBase
    ) -> HttpResponseBase:
        kind = response.headers.get("Content-Type", "").partition(";")[0]
        whole = response.status_code != HTTPStatus.PARTIAL_CONTENT
        to_keep = response.headers.get("Content-Disposition", "").startswith("attachment")
        if kind in self._TYPES and whole and not to_keep and request.method != "HEAD":
            return super().process_response(request, response)
        return response
