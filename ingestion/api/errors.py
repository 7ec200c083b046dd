"""One format for every error under /api (drf-standardized-errors), with nothing internal in it."""

import sys
import uuid
from collections.abc import Callable
from typing import Any

import structlog
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from drf_standardized_errors.formatter import ExceptionFormatter
from drf_standardized_errors.handler import ExceptionHandler
from drf_standardized_errors.types import Error
from redis.exceptions import ConnectionError as RedisAway
from rest_framework import exceptions, status

from ingestion.errors import ArchiveUnavailable, ChangedMeanwhile, InvalidInput, NotAllowedNow
from ingestion.signin import clothes

log = structlog.get_logger(__name__)

MAX_ERRORS = 20


class Conflict(exceptions.APIException):
    """The source's state forbids this now; the text says what to do first."""

    status_code = status.HTTP_409_CONFLICT
    default_code = "conflict"


class PreconditionFailed(exceptions.APIException):
    """If-Match names another version than the one there is."""

    status_code = status.HTTP_412_PRECONDITION_FAILED


class KeyUsedOtherwise(exceptions.APIException):
    """An Idempotency-Key that came with another request before."""

    status_code = status.HTTP_422_UNPROCESSABLE_ENTITY
    default_code = "idempotency_key_reused"
    default_detail = (
        "This Idempotency-Key came with another request within the last day. "
        "Repeat a request as it was, and give each new one a key of its own."
    )


class TooLarge(exceptions.APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "too_large"
    default_detail = "The request is too large."


class Unavailable(exceptions.APIException):
    """Nothing is wrong with the request: it may be sent again."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    #: Seconds, of Retry-After.
    wait = 60


class ArchiveUnreadable(Unavailable):
    """The archive can't be read now. What is wrong with it is the operator's to know."""

    default_code = "archive_unavailable"
    default_detail = "The archive can't be read at the moment. Try again in a minute."


class ServiceAway(Unavailable):
    """PostgreSQL or Redis can't be reached."""

    default_code = "service_unavailable"
    default_detail = "The database can't be reached at the moment. Try again in a minute."


class TookTooLong(Unavailable):
    """PostgreSQL stopped a statement of the request, which had all the time that a request has."""

    wait = 300  # it costs as much again each time
    default_code = "took_too_long"
    default_detail = (
        "The database took too long over this, and was stopped. Ask for less (a shorter time, one"
        " source, a smaller page), or try again in a few minutes."
    )


class InternalError(exceptions.APIException):
    """What a client is told of a bug: an id that the log has too, and nothing else."""

    status_code = status.HTTP_500_INTERNAL_SERVER_ERROR
    default_code = "internal_error"


class Formatter(ExceptionFormatter):
    """Tells the first errors of many: a body of 1 MB may have a hundred thousand."""

    def get_errors(self) -> list[Error]:
        found: list[Error] = super().get_errors()
        if len(found) <= MAX_ERRORS:
            return found
        more = f"And {len(found) - MAX_ERRORS:,} more. Mend these first."
        return [*found[:MAX_ERRORS], Error("too_many_errors", more, None)]


class Handler(ExceptionHandler):
    """Turns services' refusals into 400 and 409, and whatever else is unknown into a bare 500."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        if isinstance(exc, InvalidInput):
            return exceptions.ValidationError(exc.errors)
        if isinstance(exc, ChangedMeanwhile):
            return PreconditionFailed(str(exc), code=exc.code)
        if isinstance(exc, NotAllowedNow):
            return Conflict(str(exc), code=exc.code)
        if isinstance(exc, ArchiveUnavailable):
            log.warning("archive_unavailable", error=str(exc))
            return ArchiveUnreadable()
        if isinstance(exc, RequestDataTooBig):
            return TooLarge()
        if isinstance(exc, SuspiciousOperation | UnreadablePostError):
            return exceptions.ParseError("The request is malformed.")
        converted: Exception = super().convert_known_exceptions(exc)
        return converted

    def convert_unhandled_exceptions(self, exc: Exception) -> exceptions.APIException:
        if isinstance(exc, exceptions.APIException):
            return exc
        if _is_away(exc):
            log.warning("service_unavailable", error=str(exc))
            return ServiceAway()
        if _is_stopped(exc):
            log.warning("took_too_long", exc_info=exc)
            return TookTooLong()
        return InternalError(_reported(exc))

    def report_exception(self, exc: Exception, response: Any) -> None:
        """Reported above, once, with the id."""


def _is_away(error: BaseException | None) -> bool:
    """Tell whether PostgreSQL or Redis can't be reached, which is no bug. What a database that is
    there refuses has another SQLSTATE than those of connections and shutdowns, 08 and 57P."""
    if isinstance(error, OperationalError | InterfaceError):
        state = getattr(error.__cause__, "sqlstate", None)
        return state is None or state.startswith(("08", "57P"))
    return isinstance(error, RedisAway)


def _is_stopped(error: BaseException | None) -> bool:
    """Tell whether a statement had its time: query_canceled, lock_not_available."""
    state = getattr(getattr(error, "__cause__", None), "sqlstate", None)
    return isinstance(error, OperationalError) and state in ("57014", "55P03")


def _reported(exc: BaseException | None) -> str:
    """Log a bug, and return what the client is told of it. The id is that of all its log lines."""
    request_id = str(structlog.contextvars.get_contextvars().get("request_id") or uuid.uuid4())
    log.error("request_failed", failed_request=request_id, exc_info=exc)
    return f"Something went wrong. Tell the operator this id: {request_id}"


# -- what fails before or outside a view of the API --------------------------------------------


def _is_api(request: HttpRequest) -> bool:
    return request.path == "/api" or request.path.startswith("/api/")


def _plain(code: int, kind: str, name: str, detail: str) -> JsonResponse:
    body = {"type": kind, "errors": [{"code": name, "detail": detail, "attr": None}]}
    return JsonResponse(body, status=code)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler400: the API's format under /api, a page elsewhere."""
    if _is_api(request):
        return _plain(400, "client_error", "bad_request", "The request is malformed.")
    return clothes.bad_request()


def not_allowed(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler403: as above."""
    if _is_api(request):
        return _plain(403, "client_error", "permission_denied", "You may not do this.")
    return clothes.not_allowed()


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler404: as above."""
    if _is_api(request):
        return _plain(404, "client_error", "not_found", "There is nothing at this address.")
    return clothes.not_found()


def form_too_old(request: HttpRequest, reason: str = "") -> HttpResponse:
    """CSRF_FAILURE_VIEW: as above. Views of the API check the token themselves."""
    if _is_api(request):
        return _plain(403, "client_error", "permission_denied", "The CSRF token is missing or old.")
    return clothes.form_too_old(request.path)


def server_error(request: HttpRequest) -> HttpResponse:
    """handler500: the id alone, under /api as elsewhere. Django has logged the exception."""
    error = sys.exc_info()[1]
    if _is_away(error):
        return _unavailable(request, ServiceAway, clothes.away)
    if _is_stopped(error):
        return _unavailable(request, TookTooLong, clothes.took_too_long)
    detail = _reported(None)
    if _is_api(request):
        return _plain(500, "server_error", "internal_error", detail)
    return clothes.failed(detail)


def _unavailable(
    request: HttpRequest,
    why: type[ServiceAway | TookTooLong],
    page: Callable[[], HttpResponse],
) -> HttpResponse:
    answer = (
        _plain(503, "server_error", why.default_code, why.default_detail)
        if _is_api(request)
        else page()
    )
    answer["Retry-After"] = str(why.wait)
    return answer
