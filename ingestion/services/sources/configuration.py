"""What a source is configured to be: created, changed, shown. The secret half is stored encrypted,
and goes only to where it was given for; changed credentials are checked again.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.functions import Coalesce, Least, Now

from connectors import registry
from connectors.config import Config, ConfigError
from ingestion import expiry
from ingestion.crypto import Secrets
from ingestion.errors import ChangedMeanwhile, InvalidInput
from ingestion.models import IngestionSource, Mailbox
from ingestion.services.audit import Actor, audit
from ingestion.services.engine import folders, runs
from ingestion.services.sources import options as source_options
from ingestion.services.sources import verbs
from ingestion.services.sources.options import Options
from ingestion.services.sources.status import locked
from ingestion.services.transactions import in_transaction

_MAX_NAME_CHARS = 200
_GIVE_AGAIN = "Give it again: {} changed, and a stored secret goes only to where it was given for."


def create(
    *,
    owner: User,
    name: str,
    provider: str,
    provider_config: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    auto_import: bool = False,
    actor: Actor,
) -> IngestionSource:
    """Store a source; its credentials are checked in the background. Raises InvalidInput.

    Opens its own transaction.
    """
    errors: dict[str, list[str]] = {}
    _collect(errors, check_name, name)
    config = _collect(errors, _check_config, provider, provider_config)
    parsed = _collect(errors, source_options.parse, options or {})
    if errors or config is None or parsed is None:
        raise InvalidInput(errors)
    with transaction.atomic():
        source = IngestionSource.objects.create(
            owner=owner,
            name=name,
            provider=provider,
            config=_public_part(config),
            secrets=_secret_part(config),  # type: ignore[misc] # the field is untyped
            options=parsed.as_json(),
            auto_import=auto_import,
        )
        audit(actor, "source.create", source, {"name": name, "provider": provider})
    source.refresh_from_db()
    return source


@in_transaction
def update(
    source: IngestionSource,
    *,
    changes: Mapping[str, Any],
    expected: str | None = None,
    actor: Actor,
) -> IngestionSource:
    """Change some of name, provider, providerConfig, options, status (the API's names).

    A secret that is missing or empty keeps its stored value, where it still goes to the server that
    it was given for. Changed credentials are checked again. `expected`: only where it is still of
    this `version`. Raises InvalidInput, NotAllowedNow, LostRace, ChangedMeanwhile. Opens its own
    transaction.
    """
    source = locked(source)
    if expected is not None and expected != version(source):
        raise ChangedMeanwhile
    if "status" in changes:  # first: it is a move from the status that the client read
        verbs.move_for_client(source, changes["status"], actor)
    _apply_changes(source, _without_old_expiry(source, changes), actor)
    source.refresh_from_db()
    return source


@in_transaction
def reconnect(
    source: IngestionSource, fields: Mapping[str, Any], *, actor: Actor
) -> IngestionSource:
    """Store what a sign-in gave (see connectors.base.Consent) and have it checked, also where it is
    what was stored before. Raises InvalidInput, LostRace. Opens its own transaction.
    """
    source = locked(source)
    _apply_changes(source, {"providerConfig": dict(fields)}, actor)
    verbs.recheck(source, reason=f"Signed in by {actor.name}.", actor=actor)
    source.refresh_from_db()
    return source


def version(source: IngestionSource) -> str:
    """Return a text that is another one after any change that people make: to what a source is
    configured to be. What workers write, its progress and status, does not count."""
    configured = [
        source.name,
        source.provider,
        source.config,
        source.options,
        source.credentials_version,
        source.hold,
    ]
    return hashlib.sha256(json.dumps(configured, sort_keys=True).encode()).hexdigest()[:32]


def public_config(source: IngestionSource) -> dict[str, Any]:
    """Return providerConfig without secrets, plus "<secret>Set" for each that can be read."""
    fields = list(registry.get(source.provider).config.fields())
    stored = source.secrets.names
    shown = {f.name: source.config.get(f.name, f.default) for f in fields if not f.secret}
    return shown | {f"{f.name}Set": f.name in stored for f in fields if f.secret}


def stored_secrets(source: IngestionSource) -> Mapping[str, str]:
    """Return the stored secrets; none where no key reads them, so that new ones can be given."""
    return source.secrets if source.secrets.readable else {}


def checked_config(provider: Any, given: Any, source: IngestionSource | None = None) -> Config:
    """Parse a providerConfig as `create` does, or as `update` of `source` does.

    Raises InvalidInput. For forms that show what is wrong before they save.
    """
    if source is None or provider != source.provider or not isinstance(given, Mapping):
        return _check_config(provider, given)
    config = _check_config(provider, _merged(source, given))
    _refuse_misdirected(source, given)
    return config


def _without_old_expiry(source: IngestionSource, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Forget when the secret expires where another is given: only who says so knows about that."""
    given, options = changes.get("providerConfig"), changes.get("options", {})
    if not source.options.get(expiry.OPTION) or not isinstance(given, Mapping):
        return changes
    secret = {f.name for f in registry.get(source.provider).config.fields() if f.secret}
    stored = stored_secrets(source)
    is_new = changes.get("provider", source.provider) != source.provider or any(
        given.get(name) not in (None, "", stored.get(name)) for name in secret
    )
    if not is_new or not isinstance(options, Mapping) or expiry.OPTION in options:
        return changes
    return {**changes, "options": {**options, expiry.OPTION: None}}


def _apply_changes(source: IngestionSource, changes: Mapping[str, Any], actor: Actor) -> None:
    errors: dict[str, list[str]] = {}
    noted: dict[str, Any] = {}
    if "name" in changes:
        _collect(errors, check_name, changes["name"])
        noted["name"] = [source.name, changes["name"]]
        source.name = changes["name"]
    provider = changes.get("provider", source.provider)
    new_config: Config | None = None
    if provider != source.provider and "providerConfig" not in changes:
        errors["providerConfig"] = ["A changed provider needs a whole providerConfig."]
    elif "providerConfig" in changes:
        new_config = _collect(errors, checked_config, provider, changes["providerConfig"], source)
    if "options" in changes:
        given_options = changes["options"]
        if isinstance(given_options, Mapping):
            given_options = {**source.options, **given_options}
        parsed = _collect(errors, source_options.parse, given_options)
        if parsed is not None:
            noted["options"] = [source.options, parsed.as_json()]
            source.options = parsed.as_json()
    if errors:
        raise InvalidInput(errors)
    credentials_changed = new_config is not None and (
        provider != source.provider
        or _public_part(new_config) != source.config
        or _secret_part(new_config) != stored_secrets(source)
    )
    changed = ["name", "options", "updated_at"]
    if credentials_changed and new_config is not None:
        changed += ["provider", "config", "secrets"]
        noted["providerConfig"] = _changed_names(source, new_config)
        _set_credentials(source, provider, new_config)
    source.save(update_fields=changed)
    _bring_forward(source)
    audit(actor, "source.update", source, noted)
    if credentials_changed:
        runs.list_again(source)  # another account has other mailboxes
        verbs.recheck(source, reason="Credentials changed.", actor=actor)


def _set_credentials(source: IngestionSource, provider: str, config: Config) -> None:
    """Does not save the source."""
    if provider != source.provider or config.is_elsewhere(source.config):
        folders.distrust(Mailbox.objects.filter(source=source))
    source.provider = provider
    source.config = _public_part(config)
    source.secrets = _secret_part(config)


def _bring_forward(source: IngestionSource) -> None:
    """Let an interval that was made shorter count from the last sync, not from the next."""
    interval = Options.of(source.options).sync_interval
    IngestionSource.objects.filter(pk=source.pk, next_sync_at__isnull=False).update(
        next_sync_at=Least("next_sync_at", Coalesce("last_sync_finished_at", Now()) + interval)
    )


def _merged(source: IngestionSource, given: Mapping[str, Any]) -> dict[str, Any]:
    config = registry.get(source.provider).config
    secret = {f.name for f in config.fields() if f.secret}
    chosen = {k: v for k, v in given.items() if k not in secret or v not in (None, "")}
    stored = {**source.config, **stored_secrets(source)}
    dropped = config.superseded(chosen, stored) - set(chosen)
    return {name: value for name, value in stored.items() if name not in dropped} | chosen


def _refuse_misdirected(source: IngestionSource, given: Mapping[str, Any]) -> None:
    """Raise InvalidInput where a stored secret would go to another place than it was given for."""
    config = registry.get(source.provider).config
    stored = {**source.config, **stored_secrets(source)}
    dropped = config.superseded({k: v for k, v in given.items() if v not in (None, "")}, stored)
    errors = {
        f"providerConfig.{name}": [_GIVE_AGAIN.format(" and ".join(changed))]
        for name, changed in config.misdirected(given, stored).items()
        if name not in dropped
    }
    if errors:
        raise InvalidInput(errors)


def _changed_names(source: IngestionSource, config: Config) -> dict[str, Any]:
    """What the audit says of changed credentials: old and new values, secrets only by name."""
    noted: dict[str, Any] = {}
    stored = stored_secrets(source)
    for f in config.fields():
        new = getattr(config, f.name)
        old = (stored if f.secret else source.config).get(f.name, f.default)
        if new != old:
            noted[f.name] = "changed" if f.secret else [old, new]
    return noted


def check_name(name: Any) -> None:
    """Raises InvalidInput where no source can be called so."""
    if not isinstance(name, str) or not name.strip():
        raise InvalidInput({"name": ["Must be a text that is not empty."]})
    if len(name) > _MAX_NAME_CHARS:
        raise InvalidInput({"name": [f"Must be at most {_MAX_NAME_CHARS} characters."]})
    if not name.isprintable():  # terminals act on C1 controls, and pages on those of direction
        raise InvalidInput({"name": ["Must not contain control characters."]})


def _check_config(provider: Any, given: Any) -> Config:
    if not isinstance(provider, str) or provider not in registry.PROVIDERS:
        known = ", ".join(registry.PROVIDERS)
        raise InvalidInput({"provider": [f"Unknown provider. Known providers: {known}."]})
    if not isinstance(given, Mapping):
        raise InvalidInput({"providerConfig": ["Must be an object."]})
    given = dict(given)
    if given.pop("type", provider) != provider:
        raise InvalidInput({"providerConfig.type": ["Must equal the provider, or be left out."]})
    try:
        return registry.PROVIDERS[provider].config.parse(given)
    except ConfigError as error:
        raise InvalidInput({f"providerConfig.{k}": v for k, v in error.errors.items()}) from error


def _collect(errors: dict[str, list[str]], check: Any, *args: Any) -> Any:
    try:
        return check(*args)
    except InvalidInput as error:
        errors.update(error.errors)
        return None


def _public_part(config: Config) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in config.fields() if not f.secret}


def _secret_part(config: Config) -> Secrets:
    values = {f.name: getattr(config, f.name) for f in config.fields() if f.secret}
    return Secrets({name: value for name, value in values.items() if value})
