"""Who may: bearer keys with scopes, the admin's session with CSRF, a rate per user."""

from typing import Any

import structlog
from django.conf import settings
from knox.auth import TokenAuthentication
from redis.exceptions import RedisError
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.throttling import UserRateThrottle

from ingestion.models import ApiKey, IngestionSource

log = structlog.get_logger(__name__)


class BearerKey(TokenAuthentication):  # type: ignore[misc] # untyped base
    """`Authorization: Bearer KEY`. First in the list, so that a 401 names it."""


class Session(SessionAuthentication):
    """The admin's session; unsafe methods need the CSRF token."""


class HasScope(BasePermission):
    """A key may do what its scopes say: read for GET, write for the rest, export for raw bytes."""

    message = "This key's scopes do not allow this."

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        if not isinstance(request.auth, ApiKey):
            return True  # a session
        needed = getattr(view, "scope", None) or (
            "read" if request.method in SAFE_METHODS else "write"
        )
        return needed in request.auth.scopes


class OwnsOrMay(BasePermission):
    """An owner may do all with a source; staff what Django's model permissions allow."""

    _PERMISSION = {"DELETE": "ingestion.delete_ingestionsource"}

    def has_object_permission(self, request: Request, view: Any, obj: Any) -> bool:
        if not isinstance(obj, IngestionSource) or obj.owner_id == request.user.pk:
            return True
        if request.method in SAFE_METHODS:
            return True  # visible at all only to who may see it
        needed = self._PERMISSION.get(request.method or "", "ingestion.change_ingestionsource")
        return bool(request.user.has_perm(needed))


class PerUser(UserRateThrottle):
    """settings.API_REQUESTS_PER_MINUTE. Redis being away takes nobody's access away."""

    def get_rate(self) -> str:
        return f"{settings.API_REQUESTS_PER_MINUTE}/min"

    def allow_request(self, request: Request, view: Any) -> bool:
        try:
            return bool(super().allow_request(request, view))
        except RedisError:
            log.warning("throttle_unavailable")
            return True
