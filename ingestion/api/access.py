"""Who may: bearer keys with scopes, the admin's session with CSRF, a rate per user.

Which rows a user sees is `ingestion.queries`; here is what they may do with a row they see.
"""

import time
from typing import Any, ClassVar

import structlog
from django.conf import settings
from django.core.cache import cache
from django.utils import timezone
from knox.auth import TokenAuthentication
from redis.exceptions import RedisError
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from ingestion.models import ApiKey, IngestionSource
from ingestion.services.operations import api_keys

log = structlog.get_logger(__name__)


class BearerKey(TokenAuthentication):  # type: ignore[misc] # untyped base
    """`Authorization: Bearer KEY`. First in the list, so that a 401 names it."""

    def authenticate_credentials(self, token: bytes) -> Any:
        if not token.isascii():
            raise AuthenticationFailed("Invalid token.")  # knox would fail to decode it
        user, key = super().authenticate_credentials(token)
        api_keys.used(key)
        return user, key

    def _cleanup_token(self, auth_token: ApiKey) -> bool:
        """Refuse an expired key, and leave its row for the operator to see.

        knox deletes expired keys here: a read that writes, and a query for each of a user's keys.
        """
        return auth_token.expiry is not None and auth_token.expiry <= timezone.now()


class Session(SessionAuthentication):
    """The admin's session; unsafe methods need the CSRF token."""


def has_scope(request: Request, scope: str) -> bool:
    """Tell whether a key has a scope. A session has all of them."""
    return not isinstance(request.auth, ApiKey) or scope in request.auth.scopes


class HasScope(BasePermission):
    """A key may do what its scopes say; a session may do all that its user may.

    read: look at sources, their progress and the list of emails. write: change and start things,
    and see the source that was changed in the answer, as the reference has it (never a secret).
    export: take the mail itself out: its words, attachments and bytes. A view that needs another
    than its method implies has `scope`.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False  # 401
        scope = view.scope or ("read" if request.method in SAFE_METHODS else "write")
        self.message = f'This key lacks the scope "{scope}".'
        return has_scope(request, scope)


class OwnsOrMay(BasePermission):
    """An owner may do all with what is theirs; staff with a source what Django's model permissions
    allow. Staff make nothing without a permission, either: see `ApiViewSet.staff_need`."""

    message = "You may see this source, not change it."
    _PERMISSIONS: ClassVar[dict[str, str]] = {"destroy": "ingestion.delete_ingestionsource"}

    def has_permission(self, request: Request, view: Any) -> bool:
        needed = view.staff_need.get(view.action)
        if needed and request.user.is_staff and not request.user.has_perm(needed):
            self.message = f"You lack the permission {needed}. An administrator may give it."
            return False
        return True

    def has_object_permission(self, request: Request, view: Any, obj: Any) -> bool:
        if request.method in SAFE_METHODS:
            return True  # found at all only by who may see it
        if not isinstance(obj, IngestionSource):
            return bool(getattr(obj, "owner_id", None) == request.user.pk)
        if obj.owner_id == request.user.pk:
            return True
        needed = self._PERMISSIONS.get(view.action, "ingestion.change_ingestionsource")
        return bool(request.user.has_perm(needed))


class PerUser(BaseThrottle):
    """At most settings.API_REQUESTS_PER_MINUTE of a user in one minute of the clock.

    One counter in the cache, of constant size whatever the limit. Where the cache is away,
    everybody is let in: it must not take the API with it. `ApiViewSet` tells every client what is
    left (draft-ietf-httpapi-ratelimit-headers-10).
    """

    _SECONDS = 60

    def allow_request(self, request: Request, view: Any) -> bool:
        if request.user.pk is None:
            return True  # only where nobody needs to log in
        minute = int(time.time()) // self._SECONDS
        key = f"api-requests:{request.user.pk}:{minute}"
        try:
            cache.add(key, 0, timeout=2 * self._SECONDS)
            used = cache.incr(key)
            limit = settings.API_REQUESTS_PER_MINUTE
            vars(request)["rate_limit"] = {
                "RateLimit-Policy": f'"user";q={limit};w={self._SECONDS}',
                "RateLimit": f'"user";r={max(0, limit - used)};t={self.wait():.0f}',
            }
            return bool(used <= limit)
        except RedisError:
            log.warning("throttle_unavailable")
        except ValueError:
            log.warning("throttle_counter_lost")  # evicted between the two commands
        return True

    def wait(self) -> float:
        """Return the seconds until the next minute begins, at least one."""
        return self._SECONDS - int(time.time()) % self._SECONDS
