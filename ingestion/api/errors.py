"""One format for every error under /api (drf-standardized-errors), with nothing internal in it."""

import uuid
from typing import Any

import structlog
from django.http import HttpRequest, JsonResponse
from drf_standardized_errors.handler import ExceptionHandler
from rest_framework import exceptions, status

from ingestion.errors import InvalidInput, NotAllowedNow

log = structlog.get_logger(__name__)


class Conflict(exceptions.APIException):
    status_code = status.HTTP_409_CONFLICT
    default_code = "conflict"


class InternalError(exceptions.APIException):
    """What a client is told of a bug: an id that the log has too, and nothing else."""

    status_code = status.HTTP_500_INTERNAL_SERVER_ERROR
    default_code = "internal_error"


class Handler(ExceptionHandler):
    """Turns services' refusals into 400 and 409, and whatever else is unknown into a bare 500."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if isinstance(exc, InvalidInput):
            return exceptions.ValidationError(_nested(exc.errors))
        if isinstance(exc, NotAllowedNow):
            return Conflict(str(exc), code=exc.code)
        converted: Exception = super().convert_known_exceptions(exc)
        return converted

    def convert_unhandled_exceptions(self, exc: Exception) -> exceptions.APIException:
        if isinstance(exc, exceptions.APIException):
            return exc
        request_id = str(uuid.uuid4())
        log.error("request_failed", request=request_id, exc_info=exc)
        return InternalError(f"Something went wrong. Tell the operator this id: {request_id}")

    def report_exception(self, exc: Exception, response: Any) -> None:
        """Logged above, once, with the id."""


def _nested(errors: dict[str, list[str]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, reasons in errors.items():
        head, dot, rest = path.partition(".")
        if dot:
            tree.setdefault(head, {})[rest] = reasons
        else:
            tree[head] = reasons
    return tree


def _plain(code: int, kind: str, name: str, detail: str) -> JsonResponse:
    body = {"type": kind, "errors": [{"code": name, "detail": detail, "attr": None}]}
    return JsonResponse(body, status=code)


def not_found(request: HttpRequest, exception: Exception | None = None) -> Any:
    """handler404: the API's format under /api, Django's page elsewhere."""
    if request.path.startswith("/api/"):
        return _plain(404, "client_error", "not_found", "There is nothing at this address.")
    from django.views.defaults import page_not_found  # noqa: PLC0415 - only here

    return page_not_found(request, exception or Exception())


def server_error(request: HttpRequest) -> Any:
    """handler500: for what fails before or after a view."""
    if request.path.startswith("/api/"):
        request_id = str(uuid.uuid4())
        log.error("request_failed", request=request_id)
        detail = f"Something went wrong. Tell the operator this id: {request_id}"
        return _plain(500, "server_error", "internal_error", detail)
    from django.views.defaults import server_error as page  # noqa: PLC0415 - only here

    return page(request)
