"""What people and programs do with a source: create, change, check, pause, resume, delete.

Status changes only through `sources.status.move`, by the table of moves in `ingestion.states`.
"""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

import structlog
from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Least, Now
from django.utils import timezone

from connectors import errors as provider_errors
from connectors import registry
from connectors.config import Config, ConfigError, Environment
from ingestion.crypto import Secrets
from ingestion.errors import InvalidInput, NotAllowedNow
from ingestion.models import IngestionSource, Mailbox, Run
from ingestion.services.audit import SYSTEM, Actor, audit
from ingestion.services.engine import backoff, folders, runs, throttle
from ingestion.services.sources import options as source_options
from ingestion.services.sources import refresh_tokens
from ingestion.services.sources.options import Options
from ingestion.services.sources.status import locked, move
from ingestion.states import CLIENT_MOVES, RunKind, SourceStatus

log = structlog.get_logger(__name__)

_MAX_NAME_CHARS = 200
_GIVE_AGAIN = "Give it again: {} changed, and a stored secret goes only to where it was given for."
_CONSENT_NEEDED = "consent_needed"
_CONSENT_AWAITED = dt.timedelta(days=1)
_CHECK_BACKOFF_SECONDS = (10, 30, 60, 120, 300, 600)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the credentials found. `code`: "ok" or a code of connectors.errors.

    `passing`: time alone may change it, so that it makes no error of the source.
    `retry_after_seconds`: not to be asked again before, where the provider said so.
    """

    ok: bool
    code: str
    message: str
    passing: bool = False
    retry_after_seconds: float | None = None


def environment(source: IngestionSource) -> Environment:
    """Return what the deployment decides for a connector of this source."""
    return Environment(
        forbid_private_addresses=settings.FORBID_PRIVATE_ADDRESSES,
        connections_per_account=settings.IMAP_CONNECTIONS_PER_ACCOUNT,
        timeout_seconds=settings.NETWORK_TIMEOUT_SECONDS,
        max_message_bytes=settings.MAX_MESSAGE_BYTES,
        extra_ca_file=settings.EXTRA_CA_FILE,
        endpoints=settings.PROVIDER_ENDPOINTS,
        quotas=settings.PROVIDER_QUOTAS,
        exchanging=refresh_tokens.exchanging(source),
        throttle=throttle.shared(),
    )


# -- create and change -------------------------------------------------------------------------


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
    _collect(errors, _check_name, name)
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


def update(source: IngestionSource, *, changes: Mapping[str, Any], actor: Actor) -> IngestionSource:
    """Change some of name, provider, providerConfig, options, status (the API's names).

    A secret that is missing or empty keeps its stored value, where it still goes to the server that
    it was given for. Changed credentials are checked again. Raises InvalidInput, NotAllowedNow,
    LostRace. Opens its own transaction.
    """
    with transaction.atomic():
        source = locked(source)
        _apply_changes(source, changes, actor)
        if "status" in changes:
            _client_move(source, changes["status"], actor)
    source.refresh_from_db()
    return source


def reconnect(
    source: IngestionSource, fields: Mapping[str, Any], *, actor: Actor
) -> IngestionSource:
    """Store what a sign-in gave (see connectors.base.Consent) and have it checked, also where it is
    what was stored before. Raises InvalidInput, LostRace. Opens its own transaction.
    """
    with transaction.atomic():
        source = locked(source)
        _apply_changes(source, {"providerConfig": dict(fields)}, actor)
        _recheck(source, reason=f"Signed in by {actor.name}.", actor=actor)
    source.refresh_from_db()
    return source


def public_config(source: IngestionSource) -> dict[str, Any]:
    """Return providerConfig without secrets, plus "<secret>Set" for each that can be read."""
    fields = list(registry.get(source.provider).config.fields())
    stored = stored_secrets(source)
    shown = {f.name: source.config.get(f.name, f.default) for f in fields if not f.secret}
    return shown | {f"{f.name}Set": bool(stored.get(f.name)) for f in fields if f.secret}


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


def _apply_changes(source: IngestionSource, changes: Mapping[str, Any], actor: Actor) -> None:
    errors: dict[str, list[str]] = {}
    noted: dict[str, Any] = {}
    if "name" in changes:
        _collect(errors, _check_name, changes["name"])
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
        _recheck(source, reason="Credentials changed.", actor=actor)


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


def _check_name(name: Any) -> None:
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


# -- status ------------------------------------------------------------------------------------


def _client_move(source: IngestionSource, to: Any, actor: Actor) -> None:
    try:
        wanted = SourceStatus(to)
    except ValueError:
        known = ", ".join(SourceStatus.values)
        raise InvalidInput({"status": [f"Must be one of: {known}."]}) from None
    here = SourceStatus(source.status)
    if wanted == here:
        return
    allowed = CLIENT_MOVES[here]
    if here == SourceStatus.PAUSED:
        allowed = frozenset({_natural(source)})
    if wanted not in allowed:
        names = ", ".join(sorted(allowed)) or "none"
        raise NotAllowedNow(f"From {here} a client may move to: {names}. Not to {wanted}.")
    if wanted == SourceStatus.PAUSED:
        _pause(source, actor)
    else:
        _resume(source, actor)


def pause(source: IngestionSource, *, actor: Actor) -> IngestionSource:
    """Stop all work; running work stops within one page. Twice is fine. Opens its own transaction.

    Raises NotAllowedNow for a source whose credentials are not proven yet.
    """
    with transaction.atomic():
        source = locked(source)
        if source.status != SourceStatus.PAUSED:
            _pause(source, actor)
    source.refresh_from_db()
    return source


def _pause(source: IngestionSource, actor: Actor) -> None:
    if source.status == SourceStatus.PENDING_AUTH:
        raise NotAllowedNow(
            "The source's credentials are still being checked. Pause it when that is done."
        )
    source.hold = True
    source.save(update_fields=["hold"])
    move(source, SourceStatus.PAUSED, reason=f"Paused by {actor.name}.", actor=actor)
    audit(actor, "source.pause", source, {})


def resume(source: IngestionSource, *, actor: Actor) -> IngestionSource:
    """Go on where pause or an error stopped. A source that runs is left alone.

    Opens its own transaction.
    """
    with transaction.atomic():
        source = locked(source)
        if source.status in (SourceStatus.PAUSED, SourceStatus.ERROR):
            _resume(source, actor)
    source.refresh_from_db()
    return source


def _resume(source: IngestionSource, actor: Actor) -> None:
    source.hold = False
    source.save(update_fields=["hold"])
    to = _natural(source)
    if to == SourceStatus.PENDING_AUTH:
        _recheck(source, reason=f"Resumed by {actor.name}.", actor=actor)
    else:
        move(source, to, reason=f"Resumed by {actor.name}.", actor=actor)
    runs.make_due_now(source)
    IngestionSource.objects.filter(pk=source.pk, next_sync_at__gt=Now()).update(next_sync_at=Now())
    audit(actor, "source.resume", source, {})


def _natural(source: IngestionSource) -> SourceStatus:
    """Where a source stands that nothing holds back."""
    if source.proven_at is None:
        return SourceStatus.PENDING_AUTH
    if source.imported_at is not None:
        return SourceStatus.ACTIVE
    importing = Run.objects.filter(source=source, finished_at=None).exists()
    return SourceStatus.IMPORTING if importing else SourceStatus.AUTH_SUCCESS


def _recheck(source: IngestionSource, *, reason: str, actor: Actor) -> None:
    """Go to pending_auth, due at once; a check that passes returns to where the source was."""
    source.proven_at = None
    source.check_attempts = 0
    source.rung_at = None
    source.check_not_before = Now()
    source.credentials_version += 1  # what was asked before says nothing of what is asked now
    source.save(
        update_fields=[
            "proven_at",
            "check_attempts",
            "rung_at",
            "check_not_before",
            "credentials_version",
        ]
    )
    if source.status != SourceStatus.PENDING_AUTH:
        move(source, SourceStatus.PENDING_AUTH, reason=reason, actor=actor)


# -- the check of the credentials --------------------------------------------------------------


def verify(source: IngestionSource, *, actor: Actor = SYSTEM) -> Verdict:
    """Prove at the provider that mail can be read; move the status accordingly. Takes up to 15 s.

    A provider that can't be reached now changes nothing: the check is due again, with backoff. So
    does a verdict about credentials that were changed while it was asked for. Network outside,
    transaction inside.
    """
    source.refresh_from_db()
    verdict = _ask_provider(source)
    with transaction.atomic():
        now = locked(source)
        if now.credentials_version == source.credentials_version:
            _act_on(now, verdict, actor)
    return verdict


def _ask_provider(source: IngestionSource) -> Verdict:
    provider = registry.get(source.provider)
    try:
        config = {**source.config, **source.secrets}
        if provider.config.parse(config).awaits_consent():
            return Verdict(
                False, _CONSENT_NEEDED, f"Sign in with {provider.label} to grant access."
            )
        with registry.build(source.provider, config, environment(source)) as connector:
            identity = connector.check()
    except provider_errors.Retryable as error:
        return Verdict(
            False,
            error.code,
            str(error),
            passing=True,
            retry_after_seconds=error.retry_after_seconds,
        )
    except provider_errors.ConnectorError as error:
        return Verdict(False, error.code, str(error))
    except ConfigError as error:
        return Verdict(False, "invalid_config", f"The configuration is not valid: {error}.")
    except Exception as error:
        log.exception("check_bug", source=str(source.pk), error=type(error).__name__)
        return Verdict(False, "internal_error", bug_message(error))
    return Verdict(True, "ok", f"{identity.account}: {identity.detail}".rstrip(": "))


def bug_message(error: Exception) -> str:
    """Say that something is our fault. Not the error's own text, which may quote anything."""
    name = type(error).__name__
    return f"Internal error ({name}): a bug. The log has the details."


def _act_on(source: IngestionSource, verdict: Verdict, actor: Actor) -> None:
    if verdict.ok:
        if source.status == SourceStatus.ERROR:
            _recheck(source, reason="Checked by hand.", actor=actor)
        if source.status == SourceStatus.PENDING_AUTH:
            _proven(source, verdict, actor)
        return
    if verdict.code == _CONSENT_NEEDED:
        if source.status == SourceStatus.PENDING_AUTH:
            _await_consent(source, verdict)
        return
    if verdict.passing:
        if source.status == SourceStatus.PENDING_AUTH:
            _check_again_later(source, verdict, actor)
        return
    if source.status not in (SourceStatus.ERROR, SourceStatus.PAUSED):
        fail(source, verdict.message, actor=actor)


def _proven(source: IngestionSource, verdict: Verdict, actor: Actor) -> None:
    said = source.status_message
    source.check_attempts = 0
    source.proven_at = timezone.now()
    source.save(update_fields=["check_attempts", "proven_at"])
    to = SourceStatus.PAUSED if source.hold else _natural(source)
    move(source, to, reason=f"Credentials work. {verdict.message}", actor=actor)
    if to == SourceStatus.AUTH_SUCCESS and (source.auto_import or _import_was_begun(source)):
        _start(source, RunKind.IMPORT, actor)
    runs.make_due_now(source)
    # What the check said of a server that was away is over.
    told = IngestionSource.objects.filter(pk=source.pk, last_sync_status_message=said)
    told.update(last_sync_status_message=source.status_message)


def _import_was_begun(source: IngestionSource) -> bool:
    """Tell whether an error ended the first import: it goes on as soon as credentials work."""
    return Run.objects.filter(source=source, kind=RunKind.IMPORT).exists()


def _await_consent(source: IngestionSource, verdict: Verdict) -> None:
    """Nothing is due until a person signed in: `reconnect` makes the check due again."""
    source.check_not_before = timezone.now() + _CONSENT_AWAITED
    _say(source, verdict.message)
    source.save(update_fields=["check_not_before"])


def _say(source: IngestionSource, message: str) -> None:
    """Tell why nothing is archived yet, also where clients look for what the last sync did."""
    source.status_message = source.last_sync_status_message = message
    source.save(update_fields=["status_message", "last_sync_status_message"])


def _check_again_later(source: IngestionSource, verdict: Verdict, actor: Actor) -> None:
    source.check_attempts += 1
    if source.check_attempts > len(_CHECK_BACKOFF_SECONDS):
        reason = f"Gave up after {source.check_attempts} tries: {verdict.message}"
        fail(source, reason, actor=actor)
        return
    wait = backoff.spread(
        _CHECK_BACKOFF_SECONDS[source.check_attempts - 1],
        server_seconds=verdict.retry_after_seconds,
    )
    source.check_not_before = Now() + wait
    source.save(update_fields=["check_attempts", "check_not_before"])
    _say(source, f"{verdict.message} Tried again in {wait.total_seconds():.0f} s.")


def fail(source: IngestionSource, reason: str, *, actor: Actor | str) -> None:
    """Move to error and end the unfinished run: an operator must act. Call inside a transaction."""
    source.proven_at = None
    source.save(update_fields=["proven_at"])
    move(source, SourceStatus.ERROR, reason=reason, actor=actor)
    _say(source, reason)
    runs.finish_unfinished(source, failed=True, message=reason)


# -- import and sync ---------------------------------------------------------------------------


def start_import(source: IngestionSource, *, actor: Actor) -> Run:
    """Start the import, or return the run that is under way. Opens its own transaction.

    From pending_auth or error the credentials are checked first. Raises NotAllowedNow when paused.
    """
    with transaction.atomic():
        return _start(locked(source), RunKind.IMPORT, actor)


def start_sync(source: IngestionSource, *, actor: Actor) -> Run:
    """Sync now, or return the run that is under way; a source never imported imports. What such a
    run is done with is followed again, so that what came since is had too.

    Raises NotAllowedNow when paused. Opens its own transaction.
    """
    with transaction.atomic():
        source = locked(source)
        kind = RunKind.SYNC if source.imported_at else RunKind.IMPORT
        run = _start(source, kind, actor)
        runs.follow_again(source)
        return run


def _start(source: IngestionSource, kind: RunKind, actor: Actor) -> Run:
    """The row lock on the source makes two of these wait for each other."""
    if source.status == SourceStatus.PAUSED:
        raise NotAllowedNow("The source is paused. Resume it first.")
    if source.status == SourceStatus.ERROR:
        _recheck(source, reason=f"Started by {actor.name}.", actor=actor)
    run, created = runs.start(source, kind=kind, actor=actor.name)
    if created:
        audit(actor, f"source.{kind}", source, {"run": str(run.pk)})
        if kind == RunKind.IMPORT and source.status == SourceStatus.AUTH_SUCCESS:
            move(source, SourceStatus.IMPORTING, reason="Import started.", actor=actor)
    runs.make_due_now(source)
    return run


# -- delete ------------------------------------------------------------------------------------


def delete(source: IngestionSource, *, actor: Actor) -> None:
    """Take the source out of every answer at once; `sources.deletion` removes the rest.

    Idempotent. Opens its own transaction.
    """
    with transaction.atomic():
        source = locked(source)
        source.deleted_at = timezone.now()
        source.secrets = Secrets()  # of no more use, so it is not kept while the rest goes
        source.save(update_fields=["deleted_at", "secrets"])
        # Every worker that holds a lease of this source finds its token gone at the next commit.
        Mailbox.objects.filter(source=source).update(
            lease_token=F("lease_token") + 1, lease_expires_at=None, run=None
        )
        audit(actor, "source.delete", source, {"name": source.name})
