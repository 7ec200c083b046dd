"""API keys of programs: make one, revoke one. A key is hashed at rest and shown once."""

import datetime as dt
from collections.abc import Collection

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from ingestion.errors import InvalidInput
from ingestion.models import ApiKey
from ingestion.services.audit import Actor, audit

_MAX_NAME_CHARS = 100
#: What a key gets unless somebody chooses: one that is forgotten ends by itself.
LIFETIME = dt.timedelta(days=365)
_USE_RECORDED_EVERY = dt.timedelta(minutes=1)


def create(
    user: User,
    *,
    name: str,
    scopes: Collection[str] = ApiKey.SCOPES,
    expires_at: dt.datetime | None = None,
    actor: Actor,
) -> tuple[ApiKey, str]:
    """Return a new key's row and the key itself, which nothing can show again.

    A key acts as its user, so nobody makes one with more rights than their own: only a superuser,
    or whoever has the command line, makes keys for others. Without `expires_at` it never expires;
    interfaces offer LIFETIME. Raises InvalidInput. Opens its own
    transaction.
    """
    errors: dict[str, list[str]] = {}
    if actor.user is not None and actor.user != user and not actor.user.is_superuser:
        errors["user"] = ["You may make keys for yourself only: a key has all rights of its user."]
    if not name.strip() or len(name) > _MAX_NAME_CHARS:
        errors["name"] = [f"Must have 1 to {_MAX_NAME_CHARS} characters."]
    elif not name.isprintable():
        errors["name"] = ["Must not contain control characters."]
    unknown = sorted(set(scopes) - set(ApiKey.SCOPES))
    if unknown or not scopes:
        errors["scopes"] = [f"Must be some of: {', '.join(ApiKey.SCOPES)}."]
    if expires_at is not None and expires_at <= timezone.now():
        errors["expiresAt"] = ["Must be in the future."]
    if errors:
        raise InvalidInput(errors)
    lifetime = expires_at - timezone.now() if expires_at else None
    ordered = [scope for scope in ApiKey.SCOPES if scope in scopes]
    with transaction.atomic():
        key, plain = ApiKey.objects.create(user=user, expiry=lifetime, name=name, scopes=ordered)
        audit(actor, "key.create", None, {"name": name, "for": user.get_username()})
    return key, plain


def used(key: ApiKey) -> None:
    """Record that the key is in use: one write a minute, however busy it is."""
    now = timezone.now()
    # What is far ahead was recorded by a clock that was wrong.
    if key.last_used_at is None or abs(now - key.last_used_at) >= _USE_RECORDED_EVERY:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)


def revoke(key: ApiKey, *, actor: Actor) -> None:
    """Refuse the key from now on. Idempotent. Opens its own transaction."""
    with transaction.atomic():
        if ApiKey.objects.filter(pk=key.pk).delete()[0]:
            about = {"name": key.name, "for": key.user.get_username()}
            audit(actor, "key.revoke", None, about)
