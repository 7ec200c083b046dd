"""What every request meets: a log line that tells where it truly came from."""

import structlog
from django.http import HttpRequest
from django_structlog.middlewares import RequestMiddleware

from ingestion.addresses import client_address


class RequestLog(RequestMiddleware):
    """django_structlog's, which would believe X-Forwarded-For of anybody."""

    @classmethod
    def bind_ip(cls, request: HttpRequest) -> None:
        structlog.contextvars.bind_contextvars(ip=client_address(request))
