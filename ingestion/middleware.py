"""What every request meets: a log line with its true address, a policy for what its page may do."""

from collections.abc import Callable

import structlog
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django_structlog.middlewares import RequestMiddleware

from ingestion.addresses import client_address


class RequestLog(RequestMiddleware):
    """django_structlog's, which would believe X-Forwarded-For of anybody."""

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        structlog.contextvars.bind_contextvars(ip=client_address(request))


class ContentPolicy:
    """Lets pages run our own scripts alone; a view that says stricter things keeps them.

    Alpine, which unfold's pages use, evaluates the expressions in its attributes, and both style
    elements. There is no form-action: a form's answer may lead to a provider's sign-in page, and
    browsers hold that against it.
    """

    _POLICY = (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; frame-ancestors 'none'; "
        "base-uri 'none'"
    )

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self._get_response(request)
        response.headers.setdefault("Content-Security-Policy", self._POLICY)
        return response
