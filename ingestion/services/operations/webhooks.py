"""Webhooks: what people do with an endpoint, and the delivery of what it wants to be told of.

    an event is a row (services.events) -> due work -> POST, signed (standardwebhooks.com)
      -> delivered | tried again, ever later, for three days | given up, and that is told

The endpoint's address is a person's: it is asked as `operations.posting` asks.

Row locks are taken in one order: alert rules, the endpoint, its deliveries.
"""

import base64
import dataclasses
import datetime as dt
import json
import secrets
import uuid
from collections.abc import Collection, Sequence

import structlog
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F, Manager, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from standardwebhooks import Webhook

from ingestion import feed, queries
from ingestion.crypto import Secrets
from ingestion.errors import CredentialsUnreadable, InvalidInput, LostRace
from ingestion.models import WebhookDelivery, WebhookEndpoint
from ingestion.models.webhook import TEST_EVENT, Event
from ingestion.services.audit import Actor, audit
from ingestion.services.operations import posting
from ingestion.services.operations.posting import Answer
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

Outcome = WebhookDelivery.Outcome

MAX_OF_A_USER = 20
#: How long the secret of before is good for too: receivers are changed after us.
_ROTATION = dt.timedelta(days=1)
#: After each try that failed, as standardwebhooks.com recommends: three days in all.
_WAITS_SECONDS = (5, 60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
#: The doorbell says only that there is something to ask for: once its server is back, that is told
#: within minutes. Given up after as long.
_RING_WAITS_SECONDS = (5, 60, *[300] * (sum(_WAITS_SECONDS) // 300))
#: The feed rings at most so often; what changes meanwhile is told by the same ring.
_RING_SECONDS = 5
#: A server that does not answer is left alone for so long, whatever else there is to tell it: each
#: try takes a thread up to 15 s, and the owner's other webhooks wait for it.
_SILENT_SECONDS = 60
#: So the tries of each delivery may be few; for no longer than they would take all together.
_TRIED_FOR = dt.timedelta(seconds=sum(_WAITS_SECONDS))
#: How long deliveries are kept to be looked at.
_KEPT = dt.timedelta(days=30)
_GONE = 410
_DELETED = "The webhook was deleted."
_DISABLED = "It was disabled before this was delivered."
_OWNER_GONE = "Its owner was switched off before this was delivered."
_NOT_SEEN = "Its owner may not see the source any more."

#: Which deliveries are to be tried, for the table of due work. Who asks for a test waits for it.
DUE = """outcome = 'pending' AND not_before <= now() AND (event = 'webhook.test' OR NOT EXISTS
    (SELECT 1 FROM ingestion_webhookendpoint e WHERE e.id = endpoint_id AND e.silent_until > now()))
"""


# -- what people do ----------------------------------------------------------------------------


def create(
    user: User, *, url: str, events: Collection[str], actor: Actor
) -> tuple[WebhookEndpoint, str]:
    """Return a new endpoint and its secret, which nothing can show again. Raises InvalidInput.
    Opens its own transaction."""
    errors = wrong_with(url, events)
    if not errors and WebhookEndpoint.objects.filter(owner=user).count() >= MAX_OF_A_USER:
        errors["url"] = [f"You have {MAX_OF_A_USER} webhooks. Delete one first."]
    if errors:
        raise InvalidInput(errors)
    secret, place = _new_secret(), feed.last()
    with transaction.atomic():
        made = WebhookEndpoint.objects.create(
            owner=user,
            url=url,
            events=_ordered(events),
            secrets=Secrets({"secret": secret}),  # type: ignore[misc] # the field is untyped
            rung_xid=place.xid,
            rung_id=place.id,
        )
        audit(actor, "webhook.create", None, _about(made))
    made.refresh_from_db()
    return made, secret


def change(
    endpoint: WebhookEndpoint,
    *,
    url: str | None = None,
    events: Collection[str] | None = None,
    enabled: bool | None = None,
    actor: Actor,
) -> WebhookEndpoint:
    """Change what is given. One that is enabled again is told of what happens from now on; one
    that is disabled is told nothing more. Raises InvalidInput, and LostRace where it was deleted.
    Opens its own transaction."""
    changes: dict[str, object] = {}
    if url is not None and url != endpoint.url:
        changes["url"] = url
    if events is not None and _ordered(events) != endpoint.events:
        changes["events"] = _ordered(events)
    if enabled is not None and enabled != endpoint.enabled:
        changes["enabled"] = enabled
    errors = wrong_with(url or endpoint.url, endpoint.events if events is None else events)
    if errors:
        raise InvalidInput(errors)
    if changes.get("enabled") or "events" in changes:
        place = feed.last()
        changes |= {"rung_xid": place.xid, "rung_id": place.id}
    if changes:
        with transaction.atomic():
            if not WebhookEndpoint.objects.filter(pk=endpoint.pk).update(**changes):
                raise LostRace(_DELETED)
            endpoint.refresh_from_db()
            if not endpoint.enabled:
                _give_up(endpoint.deliveries, _DISABLED)
            audit(actor, "webhook.update", None, _about(endpoint))
    return endpoint


def rotate_secret(endpoint: WebhookEndpoint, *, actor: Actor) -> str:
    """Return a new secret, which nothing can show again. For a day what is sent is signed with the
    one before as well. Raises LostRace where it was deleted. Opens its own transaction."""
    secret = _new_secret()
    with transaction.atomic():
        found = WebhookEndpoint.objects.select_for_update().filter(pk=endpoint.pk).first()
        if found is None:
            raise LostRace(_DELETED)
        before = found.secrets["secret"] if found.secrets.readable else None
        found.secrets = Secrets({"secret": secret} | ({"before": before} if before else {}))
        found.rotated_at = timezone.now()
        found.save(update_fields=["secrets", "rotated_at"])
        audit(actor, "webhook.rotate", None, _about(found))
    return secret


@in_transaction
def delete(endpoint: WebhookEndpoint, *, actor: Actor) -> None:
    """Forget an endpoint and what was to be delivered to it. Opens its own transaction."""
    mine = WebhookEndpoint.objects.filter(pk=endpoint.pk)
    for rows in (endpoint.alert_rules.order_by("pk").select_for_update(), mine.select_for_update()):
        list(rows.values_list("pk", flat=True))
    audit(actor, "webhook.delete", None, _about(endpoint))
    mine.delete()


def test(endpoint: WebhookEndpoint, *, actor: Actor) -> Answer:
    """Send a test now, within half a minute, and return what came of it. Network outside, its own
    transactions."""
    # Should this process die: nobody tries it again.
    delivery = _test(endpoint, Outcome.GIVEN_UP, actor)
    delivery.refresh_from_db()
    answer = _send(delivery)
    _finish(delivery, Outcome.DELIVERED if answer.ok else Outcome.GIVEN_UP, answer.text)
    return answer


def test_soon(endpoint: WebhookEndpoint, *, actor: Actor) -> None:
    """Have a test sent within seconds, once. Opens its own transaction."""
    _test(endpoint, Outcome.PENDING, actor)


def _test(endpoint: WebhookEndpoint, outcome: Outcome, actor: Actor) -> WebhookDelivery:
    about = {"message": "A test, sent because somebody asked for it."}
    with transaction.atomic():
        audit(actor, "webhook.test", None, _about(endpoint))
        return WebhookDelivery.objects.create(
            endpoint=endpoint, event=TEST_EVENT, data=about, outcome=outcome
        )


def _ordered(events: Collection[str]) -> list[str]:
    return [event for event in Event.values if event in events]


def _new_secret() -> str:
    """Make one of 32 bytes, in the form that standardwebhooks.com gives it."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _about(endpoint: WebhookEndpoint) -> dict[str, object]:
    """What the audit says: the host alone, for an address may have a token in it."""
    host = posting.host(endpoint.url)
    about = {"webhook": str(endpoint.pk), "host": host, "events": endpoint.events}
    return about | {"enabled": endpoint.enabled}


def shown_url(endpoint: WebhookEndpoint, user: User) -> str:
    """Return its address as this user may see it: of somebody else's the host alone."""
    return endpoint.url if endpoint.owner_id == user.pk else posting.host(endpoint.url)


def wrong_with(url: str, events: Collection[str]) -> dict[str, list[str]]:
    """Return what is wrong with what somebody gives, by field."""
    errors: dict[str, list[str]] = {}
    if (problem := posting.wrong_with(url)) is not None:
        errors["url"] = [problem]
    if not set(events) <= set(Event.values):
        errors["events"] = [f"Must be some of: {', '.join(Event.values)}."]
    return errors


# -- delivery ----------------------------------------------------------------------------------


def deliver(pk: uuid.UUID) -> None:
    """Try a delivery that is due, once. Network outside, transaction inside."""
    rows = WebhookDelivery.objects.select_related("endpoint__owner")
    delivery = rows.filter(pk=pk, outcome=Outcome.PENDING, not_before__lte=Now()).first()
    if delivery is None:
        return
    endpoint = delivery.endpoint
    if not endpoint.owner.is_active:
        _give_up(endpoint.deliveries, _OWNER_GONE)
        return
    if not endpoint.enabled and delivery.event != TEST_EVENT:
        _give_up(endpoint.deliveries, _DISABLED)  # owed by who did not see that yet
        return
    about = delivery.source_id
    if about is not None and queries.hidden_sources(endpoint.owner).filter(pk=about).exists():
        _give_up(endpoint.deliveries.filter(source_id=about), _NOT_SEEN)
        return
    answer = _send(delivery)
    attempts = delivery.attempts + 1
    rings = delivery.event == Event.ARCHIVE_CHANGED
    waits_seconds = _RING_WAITS_SECONDS if rings else _WAITS_SECONDS
    if answer.ok:
        _finish(delivery, Outcome.DELIVERED, answer.text)
    elif answer.status == _GONE:
        _finish(delivery, Outcome.GIVEN_UP, answer.text)
        _disable(endpoint)
    elif delivery.event == TEST_EVENT:
        _finish(delivery, Outcome.GIVEN_UP, answer.text)
    elif attempts > len(waits_seconds):
        text = f"{answer.text} Given up after {attempts} tries."
        _finish(delivery, Outcome.GIVEN_UP, text)
        log.warning(
            "webhook_given_up", webhook=str(delivery.endpoint_id), event_type=delivery.event
        )
    else:
        wait = max(waits_seconds[attempts - 1], answer.wait_seconds or 0.0)
        _try_again(delivery, answer.text, dt.timedelta(seconds=wait))
    if answer.status is None:
        _leave_alone(endpoint)


def ring(pk: uuid.UUID) -> None:
    """Owe `archive.changed` to an endpoint whose owner may see something new in the feed. Opens its
    own transaction."""
    endpoint = WebhookEndpoint.objects.select_related("owner").filter(pk=pk).first()
    if endpoint is None:
        return
    before = feed.Place(endpoint.rung_xid, endpoint.rung_id)
    found, place, cursor = feed.news(endpoint.owner, before)
    with transaction.atomic():
        if found and endpoint.owner.is_active:
            WebhookDelivery.objects.create(
                endpoint=endpoint, event=Event.ARCHIVE_CHANGED, data={"cursor": cursor}
            )
        WebhookEndpoint.objects.filter(pk=pk).update(
            rung_xid=place.xid,
            rung_id=place.id,
            ring_not_before=Now() + dt.timedelta(seconds=_RING_SECONDS),
            handed_out_at=None,
        )


@in_transaction
def forget_old() -> int:
    """Delete deliveries that ended long ago; return how many. Idempotent."""
    return WebhookDelivery.objects.filter(finished_at__lt=Now() - _KEPT).delete()[0]


def payload(delivery: WebhookDelivery) -> str:
    """Write the body, the same at each try."""
    body = {
        "type": delivery.event,
        "timestamp": delivery.created_at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z"),
        "data": delivery.data,
    }
    return json.dumps(body, separators=(",", ":"))


def _send(delivery: WebhookDelivery) -> Answer:
    endpoint, body = delivery.endpoint, payload(delivery)
    now = timezone.now()  # UTC: sign() takes whatever it is given for that
    try:
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.pk.hex,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(
                Webhook(secret).sign(delivery.pk.hex, now, body) for secret in _secrets(endpoint)
            ),
        }
    except CredentialsUnreadable:
        return Answer("No key in ENCRYPTION_KEYS reads its secret. Give it a new one.")
    answer = posting.post(endpoint.url, body, headers)
    if answer.status == _GONE:
        text = "It answered 410 Gone: it wants to be told nothing more."
        return dataclasses.replace(answer, text=text)
    return answer


def _secrets(endpoint: WebhookEndpoint) -> Sequence[str]:
    """Return what to sign with, the newest first."""
    kept = endpoint.secrets
    rotated = endpoint.rotated_at
    if "before" in kept and rotated is not None and timezone.now() - rotated < _ROTATION:
        return kept["secret"], kept["before"]
    return (kept["secret"],)


def _finish(delivery: WebhookDelivery, outcome: Outcome, text: str) -> None:
    with transaction.atomic():
        _say(delivery, text, delivered=outcome == Outcome.DELIVERED)
        WebhookDelivery.objects.filter(pk=delivery.pk).update(
            attempts=F("attempts") + 1, outcome=outcome, result=text, finished_at=Now()
        )


def _try_again(delivery: WebhookDelivery, text: str, wait: dt.timedelta) -> None:
    with transaction.atomic():
        _say(delivery, f"{text} It is tried again.", delivered=False)
        WebhookDelivery.objects.filter(pk=delivery.pk, outcome=Outcome.PENDING).update(
            attempts=F("attempts") + 1, result=text, not_before=Now() + wait, handed_out_at=None
        )


def _leave_alone(endpoint: WebhookEndpoint) -> None:
    silent_until = Now() + dt.timedelta(seconds=_SILENT_SECONDS)
    with transaction.atomic():
        WebhookEndpoint.objects.filter(pk=endpoint.pk).update(silent_until=silent_until)
        old = endpoint.deliveries.filter(created_at__lt=Now() - _TRIED_FOR)
        _give_up(old, "Given up after three days: its server did not answer.")


def _say(delivery: WebhookDelivery, text: str, *, delivered: bool) -> None:
    changes: dict[str, object] = {
        "last_result": f"{delivery.event}: {text}",
        "last_result_at": Now(),
    }
    if delivered:
        changes["last_delivered_at"] = Now()
    WebhookEndpoint.objects.filter(pk=delivery.endpoint_id).update(**changes)


def _disable(endpoint: WebhookEndpoint) -> None:
    with transaction.atomic():
        WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
            enabled=False,
            last_result="Disabled: its server answered 410 Gone, which asks for no more. Enable it"
            " when the server wants it again.",
        )
        _give_up(endpoint.deliveries, "Its server wants to be told nothing more.")
    log.warning("webhook_disabled", webhook=str(endpoint.pk))


def _give_up(rows: "QuerySet[WebhookDelivery] | Manager[WebhookDelivery]", why: str) -> None:
    rows.filter(outcome=Outcome.PENDING).update(
        outcome=Outcome.GIVEN_UP, result=why, finished_at=Now()
    )


def given_up(since: dt.timedelta) -> int:
    """How many deliveries were given up of late, tests apart."""
    recent = Q(outcome=Outcome.GIVEN_UP, finished_at__gt=Now() - since)
    return WebhookDelivery.objects.filter(recent).exclude(event=TEST_EVENT).count()
