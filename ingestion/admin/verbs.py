"""What an operator can do to a source: the buttons of its page and the bulk actions of the list.

Each verb calls the service that the API calls, and says in words what came of it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from django.db import connection

from ingestion import dispatching
from ingestion.errors import NotAllowedNow, ServiceError
from ingestion.models import IngestionSource, Run
from ingestion.services.audit import Actor
from ingestion.services.engine import failures as failed_messages
from ingestion.services.sources import consent, consent_links, credentials, verbs
from ingestion.states import RunKind, SourceStatus

#: A check waits up to 15 s for the provider, so many are made side by side, and not too many.
MAX_CHECKS = 20
#: Where a source that people sign in for waits for that, most likely.
_SIGN_IN_FIRST = frozenset({SourceStatus.PENDING_AUTH, SourceStatus.ERROR})


@dataclasses.dataclass(frozen=True, slots=True)
class Verb:
    """`call` returns what happened, for people; raises ServiceError where it is refused."""

    slug: str
    label: str
    icon: str
    call: Callable[[IngestionSource, Actor], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    source: IngestionSource
    ok: bool
    text: str


class ProviderRefusedError(ServiceError):
    """A check of the credentials that failed, as a refusal."""

    code = "verdict"


def _verify(source: IngestionSource, actor: Actor) -> str:
    verdict = credentials.check(source, actor=actor)
    if not verdict.ok:
        raise ProviderRefusedError(verdict.message)
    return f"The credentials work. {verdict.message}"


def _import(source: IngestionSource, actor: Actor) -> str:
    verbs.start_import(source, actor=actor)
    return "The import is under way."


def _sync(source: IngestionSource, actor: Actor) -> str:
    run = verbs.start_sync(source, actor=actor)
    if run.kind == RunKind.IMPORT:
        return "It was never imported, so the import is under way."
    return "The sync is under way."


def _pause(source: IngestionSource, actor: Actor) -> str:
    verbs.pause(source, actor=actor)
    return "Paused. Running work stops at the next page and keeps all it has."


def _resume(source: IngestionSource, actor: Actor) -> str:
    if source.status not in (SourceStatus.PAUSED, SourceStatus.ERROR):
        raise NotAllowedNow("It is not paused, so there is nothing to resume.")
    now = verbs.resume(source, actor=actor)
    if now.status == SourceStatus.PENDING_AUTH:
        return "Resumed. Its credentials are being checked first."
    return "Resumed."


def _retry(source: IngestionSource, actor: Actor) -> str:
    number = failed_messages.retry(source, actor=actor)
    if not number:
        raise NotAllowedNow("It has no failed messages, so there is nothing to retry.")
    return f"{number:,} failed {'message is' if number == 1 else 'messages are'} tried again now."


VERBS: Mapping[str, Verb] = {
    verb.slug: verb
    for verb in (
        Verb("verify", "Verify", "verified_user", _verify),
        Verb("import", "Import", "download", _import),
        Verb("sync", "Sync", "sync", _sync),
        Verb("pause", "Pause", "pause", _pause),
        Verb("resume", "Resume", "play_arrow", _resume),
        Verb("retry", "Retry failed", "replay", _retry),
    )
}


def perform(verb: Verb, source: IngestionSource, *, actor: Actor) -> Outcome:
    """Do it, and have what it made due found now; a refusal is an outcome, anything else a bug."""
    try:
        text = verb.call(source, actor)
    except ServiceError as refusal:
        return Outcome(source, ok=False, text=str(refusal))
    dispatching.on_commit(source)
    return Outcome(source, ok=True, text=text)


def perform_all(verb: Verb, chosen: Sequence[IngestionSource], *, actor: Actor) -> list[Outcome]:
    """Do it to each, in order. Checks of credentials wait for providers side by side."""
    if verb.slug != "verify":
        return [perform(verb, source, actor=actor) for source in chosen]

    def check(source: IngestionSource) -> Outcome:
        try:
            return perform(verb, source, actor=actor)
        finally:
            connection.close()  # this thread's own

    with ThreadPoolExecutor(max_workers=MAX_CHECKS) as pool:
        return list(pool.map(check, chosen[:MAX_CHECKS]))


def refusals(source: IngestionSource, *, run: Run | None, failures: int) -> dict[str, str]:
    """Return why each verb makes no sense now, "" where it does; the service has the last word."""
    paused = source.status == SourceStatus.PAUSED
    pending = source.status == SourceStatus.PENDING_AUTH
    paused_first = started = "The source is paused. Resume it first." if paused else ""
    if run is not None and not started:
        started = f"{run.get_kind_display()} is under way."
    imported = "It is imported already. Sync it." if source.imported_at else ""
    stopped = paused or source.status == SourceStatus.ERROR
    return {
        "verify": "",
        "import": started or imported,
        "sync": started or ("" if source.imported_at else "Import it first."),
        "pause": "It is paused already."
        if paused
        else "Its credentials are still being checked."
        if pending
        else "",
        "resume": "" if stopped else "It is not paused.",
        "retry": paused_first or ("" if failures else "No message failed."),
    }


def is_to_sign_in(source: IngestionSource) -> bool:
    """Tell whether the operator most likely came to sign in at the provider."""
    return source.status in _SIGN_IN_FIRST and consent.signs_in(source)


def is_to_make_link(source: IngestionSource) -> bool:
    """Tell whether the operator most likely came for a link for the owner of the account."""
    return source.status in _SIGN_IN_FIRST and consent_links.is_awaited(source)


def next_step(source: IngestionSource) -> str:
    """Return the verb that an operator most likely came for; "" where it is none of them."""
    if is_to_sign_in(source) or is_to_make_link(source):
        return ""
    steps: dict[str, str] = {
        SourceStatus.PENDING_AUTH: "verify",
        SourceStatus.AUTH_SUCCESS: "import",
        SourceStatus.ACTIVE: "sync",
        SourceStatus.PAUSED: "resume",
        SourceStatus.ERROR: "resume",
    }
    return steps.get(source.status, "")
