"""Links by which a person without a login grants access to their own mailbox.

    make()                       -> a token, shown once: the row has its hash alone
    by_token(), by_id()          <- what a browser brings; `state` says whether it is of use
    begin(), finish()            a sign-in at the provider, bound to this link and this browser
    give()                       or a password that the person types, tried before it is stored

Looking at a link uses nothing up: mail scanners open every address. It is used by what it leads to,
in the transaction that stores it. A person grants access to what they were shown, so whatever was
changed meanwhile (another server, say) is shown to them first.
"""

import datetime as dt
import hashlib
import secrets
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings
from django.db import models
from django.urls import reverse
from django.utils import timezone

from connectors import registry
from connectors.config import ConfigError
from ingestion.errors import ChangedMeanwhile, InvalidInput, NotAllowedNow
from ingestion.models import ConsentLink, IngestionSource
from ingestion.services.audit import Actor, audit
from ingestion.services.sources import configuration, consent, trial
from ingestion.services.sources.status import locked
from ingestion.services.transactions import in_transaction

HOURS = 72
MAX_HOURS = 720


class LinkState(models.TextChoices):
    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


class Way(models.TextChoices):
    """How the owner of a source's account grants access."""

    SIGN_IN = "sign_in"
    SECRET = "secret"  # noqa: S105 - a way's name


class NotOpen(NotAllowedNow):
    """The link is of no use any more."""

    code = "link_not_open"

    def __init__(self, found: LinkState) -> None:
        super().__init__(f"This link is {found.value}.")


def way(source: IngestionSource) -> Way | None:
    """Return how its owner grants access; None where nobody does. No network."""
    if consent.signs_in(source):
        return Way.SIGN_IN
    return Way.SECRET if registry.get(source.provider).config.owners_secret else None


def is_awaited(source: IngestionSource) -> bool:
    """Tell whether its owner has yet to give the password, by a link. No network."""
    kind = registry.get(source.provider).config
    if not kind.owners_secret:
        return False
    try:
        config = kind.parse({**source.config, **configuration.stored_secrets(source)})
    except ConfigError:
        return False
    return config.awaits_consent()


@in_transaction
def make(source: IngestionSource, *, hours: int = HOURS, actor: Actor) -> tuple[ConsentLink, str]:
    """Make a link and return it with its token; the one before is revoked.

    Raises InvalidInput; NotAllowedNow where nobody grants access to this kind of source; LostRace.
    Opens its own transaction.
    """
    if not 1 <= hours <= MAX_HOURS:
        raise InvalidInput({"hours": [f"Must be from 1 to {MAX_HOURS}."]})
    source = locked(source)
    if way(source) is None:
        raise NotAllowedNow("Nobody grants access to this source: it has credentials of its own.")
    token = secrets.token_urlsafe(32)
    _revoke(source, actor)
    link = ConsentLink.objects.create(
        source=source,
        token_hash=_hash(token),
        made_by=actor.user,
        made_by_name=actor.name,
        expires_at=timezone.now() + dt.timedelta(hours=hours),
    )
    until = link.expires_at.isoformat(timespec="seconds")
    audit(actor, "consent_link.create", source, {"expiresAt": until})
    return link, token


def address(token: str, *, here: str) -> str:
    """Return what to send to the person: the page's address, and the token where no server and no
    log sees it. `here`: where the service is, where PUBLIC_URL does not say."""
    return f"{settings.PUBLIC_URL or here.rstrip('/')}{reverse('connect')}#{token}"


@in_transaction
def revoke(source: IngestionSource, *, actor: Actor) -> int:
    """Revoke the source's open link; return how many there were. Raises LostRace. Opens its own
    transaction."""
    return _revoke(locked(source), actor)


def open_link(source: IngestionSource) -> ConsentLink | None:
    """Return the link that somebody may use now."""
    found = _unused(source).select_related("source", "made_by").first()
    return found if found and state(found) is LinkState.OPEN else None


def by_token(token: str) -> ConsentLink | None:
    """Return the link, whatever its state; None where there is none, or no source any more."""
    return _links().filter(token_hash=_hash(token)).first()


def by_id(pk: uuid.UUID) -> ConsentLink | None:
    return _links().filter(pk=pk).first()


def state(link: ConsentLink) -> LinkState:
    """Tell whether a link is of use. It goes with what its maker may do."""
    if link.used_at is not None:
        return LinkState.USED
    if link.revoked_at is not None or not _may_still(link):
        return LinkState.REVOKED
    return LinkState.OPEN if link.expires_at > timezone.now() else LinkState.EXPIRED


def as_shown(link: ConsentLink) -> str:
    """Return a text that is another one for any other link, and after any change of its source."""
    return _hash(f"{link.pk} {configuration.version(link.source)}")


def begin(link: ConsentLink, *, browser: str, seen: str, redirect_uri: str) -> str:
    """Return the provider's address for this browser alone.

    `seen`: what `as_shown` said when the person was shown it. Raises NotOpen, ChangedMeanwhile,
    NotAllowedNow.
    """
    _require_as_seen(link, seen)
    return consent.begin(
        link.source, by=_bearer(link, browser), redirect_uri=redirect_uri, seen=seen
    )


def finish(
    link: ConsentLink,
    *,
    browser: str,
    state: str,
    code: str,
    refusal: str = "",
    address: str | None,
) -> IngestionSource:
    """Store what the provider gave to this browser, and use the link up.

    Raises NotOpen, ChangedMeanwhile, and what `consent.redeem` raises. Network outside, transaction
    inside.
    """
    _require_open(link)
    source, fields, seen = consent.redeem(
        by=_bearer(link, browser), state=state, code=code, refusal=refusal
    )
    return _use(link, source, fields, seen=seen, address=address)


def give(link: ConsentLink, secret: str, *, seen: str, address: str | None) -> Iterator[trial.Step]:
    """Try a secret that the person typed; where mail can be read with it, store it and use the link
    up. Yields as `trial.steps` does.

    `seen`: what `as_shown` said when the person was shown it: it is given to no other server.
    Raises NotOpen, ChangedMeanwhile, InvalidInput. Network outside, transaction inside.
    """
    _require_as_seen(link, seen)
    source = link.source
    fields = {registry.get(source.provider).config.owners_secret: secret}
    works = False
    for step in trial.steps(
        provider=source.provider, provider_config=fields, options=source.options, source=source
    ):
        works = step.ok
        yield step
    if works:
        _use(link, source, fields, seen=seen, address=address)


@in_transaction
def _use(
    link: ConsentLink,
    source: IngestionSource,
    fields: Mapping[str, Any],
    *,
    seen: str,
    address: str | None,
) -> IngestionSource:
    source = locked(source)
    link = _links().select_for_update(of=("self",)).get(pk=link.pk)
    _require_as_seen(link, seen)
    link.used_at, link.used_from = timezone.now(), address
    link.save(update_fields=["used_at", "used_from"])
    actor = Actor(f"whoever had the link of {link.made_by_name}"[:200], address=address)
    source = configuration.reconnect(source, fields, actor=actor)
    audit(actor, "consent_link.use", source, {})
    return source


def _revoke(source: IngestionSource, actor: Actor) -> int:
    """Call under the source's row lock."""
    number = _unused(source).update(revoked_at=timezone.now())
    if number:
        audit(actor, "consent_link.revoke", source, {})
    return number


def _unused(source: IngestionSource) -> models.QuerySet[ConsentLink]:
    return ConsentLink.objects.filter(source=source, used_at=None, revoked_at=None)


def _links() -> models.QuerySet[ConsentLink]:
    found = ConsentLink.objects.filter(source__deleted_at=None)
    return found.select_related("source", "made_by")


def _may_still(link: ConsentLink) -> bool:
    user = link.made_by
    if user is None:
        return True
    owns = user.is_active and user.pk == link.source.owner_id
    return owns or user.has_perm("ingestion.change_ingestionsource")


def _require_open(link: ConsentLink) -> None:
    if (found := state(link)) is not LinkState.OPEN:
        raise NotOpen(found)


def _require_as_seen(link: ConsentLink, seen: str) -> None:
    _require_open(link)
    if seen != as_shown(link):
        raise ChangedMeanwhile


def _bearer(link: ConsentLink, browser: str) -> str:
    return f"{link.pk} {_hash(browser)}"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
