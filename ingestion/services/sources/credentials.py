"""The credentials of a source: opening a connector with them, and the check that they read mail."""

import dataclasses
import datetime as dt
import math
from typing import Any

import structlog
from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from connectors import errors, registry
from connectors.base import Connector
from connectors.config import Environment
from connectors.types import Identity
from ingestion.models import IngestionSource, Run
from ingestion.services.audit import SYSTEM, Actor
from ingestion.services.engine import backoff, runs, throttle, trouble
from ingestion.services.engine.trouble import Action, Trouble
from ingestion.services.sources import refresh_tokens, verbs
from ingestion.services.sources.status import locked, move
from ingestion.services.transactions import in_transaction
from ingestion.states import RunKind, SourceStatus

log = structlog.get_logger(__name__)

_CONSENT_NEEDED = "consent_needed"
_CONSENT_AWAITED = dt.timedelta(days=1)
_CHECK_BACKOFF_SECONDS = (10, 30, 60, 120, 300, 600)


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of the credentials found, in words for people; with the trouble, where any."""

    message: str
    trouble: Trouble | None = None

    @property
    def ok(self) -> bool:
        return self.trouble is None

    @property
    def code(self) -> str:
        """ "ok", or the trouble's: a code of connectors.errors."""
        return self.trouble.code if self.trouble else "ok"


def environment(source: IngestionSource) -> Environment:
    """Return what the deployment decides for a connector of this source."""
    return dataclasses.replace(deployment(), exchanging=refresh_tokens.exchanging(source))


def deployment() -> Environment:
    """Return what the deployment decides for any connector; nobody keeps exchanged secrets."""
    return Environment(
        forbid_private_addresses=settings.FORBID_PRIVATE_ADDRESSES,
        connections_per_account=settings.IMAP_CONNECTIONS_PER_ACCOUNT,
        timeout_seconds=settings.NETWORK_TIMEOUT_SECONDS,
        max_message_bytes=settings.MAX_MESSAGE_BYTES,
        extra_ca_file=settings.EXTRA_CA_FILE,
        endpoints=settings.PROVIDER_ENDPOINTS,
        quotas=settings.PROVIDER_QUOTAS,
        throttle=throttle.shared(),
    )


def connect(source: IngestionSource, *, patience_seconds: float = math.inf) -> Connector:
    """Return a connector with the stored credentials; use it as a context manager. With less
    patience it waits no longer for an answer.

    Opens no connection yet. Raises ConfigError, CredentialsUnreadable; Fatal where the provider's
    package is gone.
    """
    own = environment(source)
    quick = dataclasses.replace(own, timeout_seconds=min(own.timeout_seconds, patience_seconds))
    return registry.build(source.provider, _config(source), quick)


def _config(source: IngestionSource) -> dict[str, Any]:
    return {**source.config, **source.secrets}


def check(source: IngestionSource, *, actor: Actor = SYSTEM) -> Verdict:
    """Prove at the provider that mail can be read; move the status accordingly. Takes up to 15 s.

    A provider that can't be reached now changes no status: the check is due again, with backoff.
    A verdict about credentials that were changed while it was asked for changes nothing. Network
    outside, transaction inside. Raises LostRace where the source was deleted meanwhile.
    """
    source.refresh_from_db()
    asked_about = source.credentials_version
    try:
        identity = _ask_provider(source)
    except Exception as error:
        what = trouble.of(error)
        if what.action is Action.BUG:
            log.exception("check_bug", source=str(source.pk), error=type(error).__name__)
        verdict = Verdict(what.text, what)
    else:
        verdict = Verdict(f"{identity.account}: {identity.detail}".rstrip(": "))
    _act_on(source, asked_about, verdict, actor)
    return verdict


def _ask_provider(source: IngestionSource) -> Identity:
    provider = registry.get(source.provider)
    if provider.config.parse(_config(source)).awaits_consent():
        text = (
            "Its owner is to give the password: make a link for them."
            if provider.config.owners_secret
            else f"Sign in with {provider.label} to grant access."
        )
        raise errors.NeedsReauth(text, code=_CONSENT_NEEDED)
    with connect(source) as connector:
        return connector.check()


@in_transaction
def _act_on(source: IngestionSource, asked_about: int, verdict: Verdict, actor: Actor) -> None:
    source = locked(source)
    if source.credentials_version != asked_about:
        return
    is_pending = source.status == SourceStatus.PENDING_AUTH
    if verdict.trouble is None:
        if source.status == SourceStatus.ERROR:
            verbs.recheck(source, reason="Checked by hand.", actor=actor)
            is_pending = True
        if is_pending:
            _proven(source, verdict, actor)
    elif verdict.trouble.code == _CONSENT_NEEDED:
        if is_pending:
            _await_consent(source, verdict)
    elif verdict.trouble.action is Action.RETRY:
        if is_pending:
            _check_again_later(source, verdict.trouble, actor)
    elif source.status not in (SourceStatus.ERROR, SourceStatus.PAUSED):
        verbs.fail(source, verdict.message, code=verdict.code, actor=actor)


def _proven(source: IngestionSource, verdict: Verdict, actor: Actor) -> None:
    said = source.status_message
    source.check_attempts = 0
    source.proven_at = timezone.now()
    source.save(update_fields=["check_attempts", "proven_at"])
    to = SourceStatus.PAUSED if source.hold else verbs.natural_status(source)
    move(source, to, reason=f"Credentials work. {verdict.message}", actor=actor)
    if to == SourceStatus.AUTH_SUCCESS and (source.auto_import or _import_was_begun(source)):
        verbs.begin_run(source, RunKind.IMPORT, actor)
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
    verbs.say(source, verdict.message, code=verdict.code)
    source.save(update_fields=["check_not_before"])


def _check_again_later(source: IngestionSource, what: Trouble, actor: Actor) -> None:
    source.check_attempts += 1
    if source.check_attempts > len(_CHECK_BACKOFF_SECONDS):
        reason = f"Gave up after {source.check_attempts} tries: {what.text}"
        verbs.fail(source, reason, code=what.code, actor=actor)
        return
    wait = backoff.spread(
        _CHECK_BACKOFF_SECONDS[source.check_attempts - 1], server_seconds=what.retry_after_seconds
    )
    source.check_not_before = Now() + wait
    source.save(update_fields=["check_attempts", "check_not_before"])
    text = f"{what.text} Tried again in {wait.total_seconds():.0f} s."
    verbs.say(source, text, code=what.code)
