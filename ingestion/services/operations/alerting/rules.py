"""Rules: what people do with who is told of what. A rule sees what its owner may see.

Row locks are taken in one order: the rule, its notices, its webhook (`operations.webhooks`).
"""

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from ingestion import queries
from ingestion.errors import InvalidInput, LostRace
from ingestion.models import AlertKind, AlertRule, IngestionSource
from ingestion.services.audit import Actor, audit
from ingestion.services.operations import posting
from ingestion.services.operations.alerting import digest, sending
from ingestion.services.operations.alerting.mail import Sent
from ingestion.services.transactions import in_transaction

MAX_OF_A_USER = 50
_MAX_RECIPIENTS = 20
#: What people give, by the names of its columns.
FIELDS = (
    *("name", "enabled", "way", "recipients", "url", "webhook", "kinds", "sources", "digest"),
)


def create(user: User, *, given: Mapping[str, Any], actor: Actor) -> AlertRule:
    """Make a rule of what is given, by the names of its columns. Raises InvalidInput. Opens its own
    transaction."""
    rule = AlertRule(owner=user, **_known(given))
    errors = wrong_with(rule)
    if not errors and AlertRule.objects.filter(owner=user).count() >= MAX_OF_A_USER:
        errors["name"] = [f"You have {MAX_OF_A_USER} rules. Delete one first."]
    if errors:
        raise InvalidInput(errors)
    rule.digest_at = digest.next_at(rule.digest, timezone.now())
    with transaction.atomic():
        rule.save()
        audit(actor, "alert_rule.create", None, _about(rule))
    rule.refresh_from_db()
    return rule


@in_transaction
def change(rule: AlertRule, *, given: Mapping[str, Any], actor: Actor) -> AlertRule:
    """Change what is given. What it owed before is told by it as it is now; one that is disabled
    owes nothing more. Raises InvalidInput, and LostRace where it was deleted. Opens its own
    transaction."""
    mine = AlertRule.objects.filter(pk=rule.pk)
    try:  # what others change at the same time stays changed
        rule.refresh_from_db(from_queryset=mine.select_for_update(no_key=True))
    except AlertRule.DoesNotExist:
        raise LostRace("The rule was deleted.") from None
    before = rule.digest
    for name, value in _known(given).items():
        setattr(rule, name, value)
    if errors := wrong_with(rule):
        raise InvalidInput(errors)
    changes = {name: getattr(rule, name) for name in FIELDS}
    if rule.digest != before:
        changes["digest_at"] = digest.next_at(rule.digest, timezone.now())
    # Whatever was in the way may be mended now.
    mine.update(**changes, not_before=Now(), attempts=0, handed_out_at=None)
    if not rule.enabled:
        rule.notices.filter(sent_at=None).delete()
    audit(actor, "alert_rule.update", None, _about(rule))
    rule.refresh_from_db()
    return rule


@in_transaction
def delete(rule: AlertRule, *, actor: Actor) -> None:
    """Forget a rule and what it owes. Opens its own transaction."""
    mine = AlertRule.objects.filter(pk=rule.pk)
    list(mine.select_for_update().values_list("pk", flat=True))
    audit(actor, "alert_rule.delete", None, _about(rule))
    mine.delete()


def test(rule: AlertRule, *, actor: Actor) -> Sent:
    """Send a test now, and return what came of it. Network outside, its own transaction."""
    with transaction.atomic():
        audit(actor, "alert_rule.test", None, _about(rule))
    sent = sending.test(rule, actor=actor)
    AlertRule.objects.filter(pk=rule.pk).update(
        last_result=f"Test: {sent.text}", last_result_at=Now()
    )
    return sent


def where(rule: AlertRule) -> str:
    """Say where it tells: of a URL the host alone, for the rest of it may be a secret."""
    if rule.way == AlertRule.Way.MAIL:
        return ", ".join(rule.recipients)
    if rule.way == AlertRule.Way.PING:
        return posting.host(rule.url)
    return posting.host(rule.webhook.url) if rule.webhook else "no webhook"


def wrong_with(rule: AlertRule) -> dict[str, list[str]]:
    """Return what is wrong with a rule, by field."""
    errors: dict[str, list[str]] = {}
    if not rule.name.strip() or not rule.name.isprintable() or len(rule.name) > 100:
        errors["name"] = ["Must be a text of at most 100 characters on one line."]
    if not set(rule.kinds) <= set(AlertKind.values):
        errors["kinds"] = [f"Must be some of: {', '.join(AlertKind.values)}."]
    elif not rule.kinds and not rule.digest:
        errors["kinds"] = ["Choose at least one, or a digest."]
    if rule.sources is not None and (wrong := _wrong_with_sources(rule.owner, rule.sources)):
        errors["sources"] = [wrong]
    if rule.digest and rule.way != AlertRule.Way.MAIL:
        errors["digest"] = ["A digest goes by e-mail."]
    if rule.way == AlertRule.Way.PING and set(rule.kinds) == {AlertKind.IMPORT_FINISHED}:
        errors["kinds"] = ["A ping tells what lasts: choose something that can be over."]
    field, wrong = _wrong_with_way(rule)
    return errors | ({field: [wrong]} if wrong else {})


def _wrong_with_way(rule: AlertRule) -> tuple[str, str]:
    """Return the field that names whom it tells, and what is wrong with that."""
    match rule.way:
        case AlertRule.Way.MAIL:
            return "recipients", _wrong_with_recipients(rule.recipients)
        case AlertRule.Way.WEBHOOK:
            is_theirs = rule.webhook is not None and rule.webhook.owner_id == rule.owner_id
            return "webhook", "" if is_theirs else "Choose one of your webhooks."
        case AlertRule.Way.PING:
            return "url", posting.wrong_with(rule.url) or ""
    return "way", f"Must be one of: {', '.join(AlertRule.Way.values)}."


def _wrong_with_sources(user: User, sources: Collection[uuid.UUID]) -> str:
    """Those that were deleted meanwhile are no error."""
    if not sources:
        return "Choose at least one, or all."
    known = IngestionSource.objects.filter(deleted_at=None, pk__in=sources)
    hidden = known.exclude(pk__in=queries.visible_sources(user).values("pk"))
    return "Must be sources that you may see." if hidden.exists() else ""


def _wrong_with_recipients(recipients: Collection[str]) -> str:
    if not 1 <= len(recipients) <= _MAX_RECIPIENTS:
        return f"Give 1 to {_MAX_RECIPIENTS} addresses."
    for address in recipients:
        try:
            validate_email(address)
        except ValidationError:
            return f"{address[:100]} is no address of e-mail."
    return ""


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in FIELDS if name in given}


def _about(rule: AlertRule) -> dict[str, object]:
    """What the audit says."""
    about: dict[str, object] = {"rule": str(rule.pk), "name": rule.name, "way": rule.way}
    return about | {"to": where(rule), "kinds": rule.kinds, "enabled": rule.enabled}
