"""Telling what rules owe: one mail, or one delivery of a webhook, for all that is owed, or a ping
each minute.

    notices (services.alerts) -> due work: the rule -> mail -> sent, marked in one transaction
      -> or tried again, ever later, for as long as the mail server is away: then all in one mail

A worker that dies between sending and marking tells it again, with the same Message-ID. What is
sent is what the rule's owner may see at that moment. A webhook's delivery is written in the
transaction that marks, and is work of its own (`operations.webhooks`) from then on.
"""

import datetime as dt
import uuid

import structlog
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from ingestion import queries
from ingestion.models import Alert, AlertNotice, AlertRule, WebhookDelivery
from ingestion.models.webhook import RULE_EVENT
from ingestion.services.audit import Actor
from ingestion.services.operations import posting, webhooks
from ingestion.services.operations.alerting import digest, mail, words
from ingestion.services.transactions import in_transaction

log = structlog.get_logger(__name__)

#: After a mail the next one waits so long: what goes on happening is told together as well.
_APART = dt.timedelta(minutes=5)
#: After each failure; the last one again and again, for nothing is given up.
_WAITS_SECONDS = (15, 30, 60, 120, 300, 600)
#: Of the service behind a ping, a period of one minute and a grace of a few is what to set.
PING_EVERY = dt.timedelta(minutes=1)
#: So much is told in one mail; a list of more helps nobody, and the pages have it.
_MOST_NOTICES = 2_000
_KEPT = dt.timedelta(days=90)

#: Which rules have something to send, for the table of due work. What happens together is told
#: together: the first waits ten seconds for the others.
DUE = """enabled AND not_before <= now() AND (way = 'ping' OR digest_at <= now()
    OR EXISTS (SELECT 1 FROM ingestion_alertnotice n
                WHERE n.rule_id = ingestion_alertrule.id AND n.sent_at IS NULL
                  AND n.created_at <= now() - interval '10 seconds'))"""


def tell(pk: uuid.UUID) -> None:
    """Send what a rule owes. Network outside, transaction inside."""
    rules = AlertRule.objects.select_related("owner", "webhook")
    rule = rules.filter(pk=pk, enabled=True, owner__is_active=True, not_before__lte=Now()).first()
    if rule is None:
        # Its owner is gone; or it was handed out twice, and somebody else has just told it.
        due = AlertRule.objects.filter(pk=pk, not_before__lte=Now())
        due.update(not_before=Now() + _APART)
    elif rule.way == AlertRule.Way.PING:
        _done(rule, ping(rule), wait=PING_EVERY)
    elif _tell_notices(rule):
        _send_digest(rule)


def test(rule: AlertRule, *, actor: Actor) -> mail.Sent:
    """Send a test now, whatever is owed; return what came of it in words. Network."""
    if rule.way == AlertRule.Way.PING:
        return ping(rule)
    if rule.way == AlertRule.Way.WEBHOOK:
        why = _wrong_with_webhook(rule)
        if rule.webhook is None or why:
            return mail.Sent(ok=False, text=why)
        answer = webhooks.test(rule.webhook, actor=actor)
        return mail.Sent(answer.ok, answer.text)
    return mail.send(words.of_test(rule, open_alerts(rule)), rule.recipients)


def ping(rule: AlertRule) -> mail.Sent:
    """Tell a service such as healthchecks.io that all is well, or by /fail what is not. Network.

    healthchecks.io/docs/http_api: a POST, whose body it keeps. What a URL has after "?" stays.
    """
    opened = open_alerts(rule)
    answer = post_ping(rule.url, wrong=words.of_ping(opened))
    told = f"Told that {'something needs somebody' if opened else 'all is well'}."
    return mail.Sent(answer.ok, f"{told if answer.ok else 'Not told.'} {answer.text}")


def post_ping(url: str, *, wrong: str) -> posting.Answer:
    """Post that all is well, or what is wrong. Network."""
    address, mark, query = url.partition("?")
    address = f"{address.rstrip('/')}/fail" if wrong else address
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    return posting.post(f"{address}{mark}{query}", wrong or "All is well.", headers)


def open_alerts(rule: AlertRule) -> list[Alert]:
    """Return what is open of what a rule is for, the newest first, as its owner may see it."""
    found = queries.visible_alerts(rule.owner).filter(ended_at=None, kind__in=rule.kinds)
    if rule.sources is not None:
        found = found.filter(source__in=rule.sources)
    return list(found)


def failing() -> QuerySet[AlertRule]:
    """Return the rules whose last try failed, for `doctor`."""
    return AlertRule.objects.filter(enabled=True, attempts__gt=0)


@in_transaction
def forget_old() -> int:
    """Delete what was over long ago, and notices that could not be sent for as long; return how
    many. Idempotent."""
    long_ago = Now() - _KEPT
    notices, _ = AlertNotice.objects.filter(created_at__lt=long_ago).delete()
    return notices + Alert.objects.filter(ended_at__lt=long_ago).delete()[0]


def _tell_notices(rule: AlertRule) -> bool:
    """Send what is owed; tell whether there is nothing left to wait for."""
    owed = list(
        rule.notices.filter(sent_at=None)
        .select_related("alert", "source")
        .order_by("created_at", "pk")[:_MOST_NOTICES]
    )
    if not owed:
        return True
    seen = set(visible(rule.owner).filter(rule=rule, sent_at=None).values_list("pk", flat=True))
    shown = [notice for notice in owed if notice.pk in seen]
    sent = _told(rule, shown)
    if not (sent.ok or sent.partly):
        _try_again(rule, sent.text)
        return False
    _mark_sent(rule, owed, sent, shown=shown)
    return True


@in_transaction
def _mark_sent(
    rule: AlertRule, owed: list[AlertNotice], sent: mail.Sent, *, shown: list[AlertNotice]
) -> None:
    """The rule first, as who changes or deletes it does."""
    _done(rule, sent, wait=_APART)
    AlertNotice.objects.filter(pk__in=[notice.pk for notice in owed]).update(sent_at=Now())
    if shown and rule.way == AlertRule.Way.WEBHOOK and rule.webhook is not None:
        WebhookDelivery.objects.create(
            endpoint=rule.webhook, event=RULE_EVENT, data=words.of_delivery(rule, shown)
        )


def _told(rule: AlertRule, shown: list[AlertNotice]) -> mail.Sent:
    """Send a mail; of a webhook, say whether it can be given to it. Network."""
    if not shown:
        return mail.Sent(ok=True, text="Nothing that its owner may still see.")
    if rule.way == AlertRule.Way.MAIL:
        return mail.send(words.of_notices(rule, shown), rule.recipients)
    why = _wrong_with_webhook(rule)
    return mail.Sent(not why, why or "Given to the webhook, whose page says what came of it.")


def _wrong_with_webhook(rule: AlertRule) -> str:
    if rule.webhook is None:
        return "Its webhook was deleted. Choose another."
    return "" if rule.webhook.enabled else "Its webhook is disabled. Enable it, or choose another."


def visible(user: User) -> QuerySet[AlertNotice]:
    """Return the notices, of any rule, that a user may still see."""
    ours = Q(source__in=queries.visible_sources(user))
    return AlertNotice.objects.filter(ours | Q(source=None) if queries.sees_service(user) else ours)


def _send_digest(rule: AlertRule) -> None:
    if rule.digest_at is None or rule.digest_at > timezone.now():
        return
    sent = mail.send(digest.of(rule), rule.recipients)
    if not (sent.ok or sent.partly):
        _try_again(rule, sent.text)
        return
    with transaction.atomic():
        AlertRule.objects.filter(pk=rule.pk, digest_at=rule.digest_at).update(
            digest_at=digest.next_at(rule.digest, timezone.now())
        )
        _done(rule, sent, wait=_APART)


def _done(rule: AlertRule, sent: mail.Sent, *, wait: dt.timedelta) -> None:
    changes: dict[str, object] = {"last_result": sent.text, "last_result_at": Now()}
    changes["attempts"] = 0 if sent.ok else F("attempts") + 1
    if sent.ok or sent.partly:
        changes["last_sent_at"] = Now()
    AlertRule.objects.filter(pk=rule.pk).update(
        not_before=Now() + wait, handed_out_at=None, **changes
    )


def _try_again(rule: AlertRule, text: str) -> None:
    wait = _WAITS_SECONDS[min(rule.attempts, len(_WAITS_SECONDS) - 1)]
    sent = mail.Sent(ok=False, text=f"{text}{words.TRIED_AGAIN}")
    _done(rule, sent, wait=dt.timedelta(seconds=wait))
    log.warning("alert_not_sent", rule=str(rule.pk), attempts=rule.attempts + 1)
