"""Lets a person grant access to a source in the browser: OAuth 2 by code, with PKCE and a state.

    begin()  -> the provider's address, with a new state   (the cache: state -> source, who)
    finish() <- the provider's redirect: state and code    (the state is used up, the tokens stored)

Who is a user, or a browser that holds a link (`consent_links`).

Or without a browser here: begin_device() gives a code to type in elsewhere, finish_device() polls.
Between two pages its secret travels sealed by the service's key, for one source and user.

A state is of use once, for ten minutes, and only to who began: so nobody can slip their own account
into another's source, or another's into their own. It is kept in the cache under its
hash. The PKCE verifier is kept nowhere: it is derived from the state by the service's key.
"""

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.http import HttpRequest
from django.urls import reverse

from connectors import registry
from connectors.base import Consent, DeviceConsent, DevicePrompt
from connectors.config import ConfigError
from connectors.errors import ConnectorError
from ingestion.errors import InvalidInput, NotAllowedNow
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor, audit
from ingestion.services.sources import configuration, credentials

STATE_SECONDS = 600
#: Providers' codes are good for about 15 minutes.
_DEVICE_SECONDS = 1_800
#: RFC 6749 section 4.1.2.1 has only these characters in names of errors we'd repeat.
_ERROR = re.compile(r"[a-z_]{1,40}")
_OF_LINK = "link."  # no base64url has a dot
_AGAIN = "This sign-in has expired, was used before or was begun by somebody else. Begin it again."
_UNTOUCHED = "Nothing was changed. To grant it after all, sign in again."
_NO_REDIS = (
    "Redis, which keeps the sign-ins that are under way, is away. Try again when it is back."
)


class Redeemed(NamedTuple):
    """What a code gave: `fields` are for the source to store. `seen`: what `begin` was given."""

    source: IngestionSource
    fields: Mapping[str, Any]
    seen: str


def callback_url(request: HttpRequest) -> str:
    """Return the address that the provider must send people back to; it is registered there."""
    return request.build_absolute_uri(reverse("oauth-callback"))


def signs_in(source: IngestionSource) -> bool:
    """Tell whether people sign in for this source at all. No network."""
    return _consent_of(source) is not None


def begin(source: IngestionSource, *, by: User | str, redirect_uri: str, seen: str = "") -> str:
    """Return the provider's address to send the person to. `by`: the user, or a link's browser.
    `seen`: of what they were shown; `redeem` gives it back.

    Raises NotAllowedNow where this source's credentials are of another kind, or Redis is away.
    """
    consent = _consent_of(source)
    if consent is None:
        raise NotAllowedNow("This source does not sign in: it has credentials of another kind.")
    state = ("" if isinstance(by, User) else _OF_LINK) + secrets.token_urlsafe(32)
    began = {"source": str(source.pk), "by": _named(by), "redirect_uri": redirect_uri, "seen": seen}
    with _asking_redis():
        cache.set(_key(state), began, timeout=STATE_SECONDS)
    challenge = hashlib.sha256(_verifier(state).encode("ascii")).digest()
    return consent.authorize_url(
        redirect_uri=redirect_uri, state=state, code_challenge=_base64url(challenge)
    )


def source_of(*, by: User | str, state: str) -> str | None:
    """Return the id of the source for which they began this sign-in; None where they didn't.

    Raises NotAllowedNow where Redis is away.
    """
    with _asking_redis():
        began: dict[str, Any] | None = cache.get(_key(state))
    return began["source"] if began and began["by"] == _named(by) else None


def finish(
    *, user: User, state: str, code: str, refusal: str = "", actor: Actor
) -> IngestionSource:
    """Use up the state, exchange the code and store what it gave; the source is checked again.

    Raises what `redeem` raises. Network outside, transaction inside.
    """
    source, fields, _ = redeem(by=user, state=state, code=code, refusal=refusal)
    source = configuration.reconnect(source, fields, actor=actor)
    audit(actor, "source.sign_in", source, {})
    return source


def redeem(*, by: User | str, state: str, code: str, refusal: str = "") -> Redeemed:
    """Use up the state and exchange the code. Network.

    `refusal` is the provider's `error`, where it sent one instead of a code. Raises InvalidInput
    that says what went wrong, or NotAllowedNow where Redis is away.
    """
    with _asking_redis():
        began: dict[str, Any] | None = cache.get(_key(state))
        if began is None or began["by"] != _named(by) or not cache.delete(_key(state)):
            raise InvalidInput({"state": [_AGAIN]})
    source = IngestionSource.objects.filter(pk=began["source"], deleted_at=None).first()
    consent = _consent_of(source) if source else None
    if source is None or consent is None:
        raise InvalidInput({"state": ["The source is gone, or no longer signs in."]})
    if refusal or not code:
        reason = refusal if _ERROR.fullmatch(refusal) else "no code"
        raise InvalidInput({"error": [f"Access was not granted ({reason}). {_UNTOUCHED}"]})
    try:
        fields = consent.redeem(
            code=code, code_verifier=_verifier(state), redirect_uri=began["redirect_uri"]
        )
    except ConnectorError as error:
        raise InvalidInput({"code": [str(error)]}) from error
    return Redeemed(source, fields, began["seen"])


def is_of_link(state: str) -> bool:
    """Tell whether a link's browser began this sign-in, going by its state alone."""
    return state.startswith(_OF_LINK)


def begin_device(source: IngestionSource) -> DevicePrompt:
    """Return the code that a person is to type in, and where. Network.

    Raises NotAllowedNow where this source does not sign in that way, or the provider refuses.
    """
    try:
        return _device_of(source).begin()
    except ConnectorError as error:
        raise NotAllowedNow(str(error)) from error


def finish_device(source: IngestionSource, prompt: DevicePrompt, *, actor: Actor) -> bool:
    """Store what the person granted and have it checked; False while they are not done yet.

    Raises InvalidInput that says what went wrong. Network outside, transaction inside.
    """
    try:
        fields = _device_of(source).poll(prompt)
    except ConnectorError as error:
        raise InvalidInput({"code": [str(error)]}) from error
    if fields is None:
        return False
    configuration.reconnect(source, fields, actor=actor)
    audit(actor, "source.sign_in", source, {})
    return True


def seal(prompt: DevicePrompt, *, source: IngestionSource, user: User) -> str:
    """Return the prompt as a text that only `unseal` reads, for a page to send back."""
    content = {**dataclasses.asdict(prompt), "source": str(source.pk), "user": user.pk}
    return _sealer().encrypt(json.dumps(content).encode()).decode("ascii")


def unseal(sealed: str, *, source: IngestionSource, user: User) -> DevicePrompt:
    """Return what was sealed. Raises InvalidInput where it was for somebody else or is too old."""
    try:
        content = json.loads(_sealer().decrypt(sealed, ttl=_DEVICE_SECONDS))
    except InvalidToken:
        raise InvalidInput({"code": [_AGAIN]}) from None
    if (content.pop("source"), content.pop("user")) != (str(source.pk), user.pk):
        raise InvalidInput({"code": [_AGAIN]})
    return DevicePrompt(**content)


def types_in_code(source: IngestionSource) -> bool:
    """Tell whether people may sign in for this source by typing in a code. No network."""
    return isinstance(_consent_of(source), DeviceConsent)


@contextlib.contextmanager
def _asking_redis() -> Iterator[None]:
    from redis import RedisError  # noqa: PLC0415 - a --help does not ask it

    try:
        yield
    except RedisError:
        raise NotAllowedNow(_NO_REDIS) from None


def _sealer() -> Fernet:
    key = hmac.digest(settings.SECRET_KEY.encode(), b"consent:device", "sha256")
    return Fernet(base64.urlsafe_b64encode(key))


def _device_of(source: IngestionSource) -> DeviceConsent:
    consent = _consent_of(source)
    if not isinstance(consent, DeviceConsent):
        raise NotAllowedNow(
            "Nobody can sign in to this source by typing in a code. It is for one person's mailbox,"
            " by an application without a client secret; else sign in with the browser."
        )
    return consent


def _consent_of(source: IngestionSource) -> Consent | None:
    config = {**source.config, **configuration.stored_secrets(source)}
    try:
        return registry.consent(source.provider, config, credentials.environment(source))
    except ConfigError:
        return None


def _named(by: User | str) -> str:
    return f"user {by.pk}" if isinstance(by, User) else f"link {by}"


def _key(state: str) -> str:
    return f"consent:{hashlib.sha256(state.encode()).hexdigest()}"


def _verifier(state: str) -> str:
    """Return the PKCE verifier of a state: 43 characters (RFC 7636 section 4.1)."""
    key = settings.SECRET_KEY.encode()
    return _base64url(hmac.digest(key, b"consent:" + state.encode(), "sha256"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
