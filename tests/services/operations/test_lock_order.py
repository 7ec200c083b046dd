"""Whoever tells and whoever changes what is told of lock rows in one order: nobody is broken off."""

import datetime as dt
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone

from ingestion.models import AlertNotice, AlertRule, WebhookDelivery, WebhookEndpoint
from ingestion.models.webhook import Event
from ingestion.services.audit import Actor
from ingestion.services.operations import webhooks
from ingestion.services.operations.alerting import rules, sending
from tests.servers import receiver
from tests.servers.receiver import Receiver
from tests.services.test_deadlocks import crossing

pytestmark = pytest.mark.django_db(transaction=True)

ACTOR = Actor.system("tests")
RULE = "SELECT 1 FROM ingestion_alertrule FOR NO KEY UPDATE"
NOTICE = "SELECT 1 FROM ingestion_alertnotice FOR UPDATE"
WEBHOOK = "SELECT 1 FROM ingestion_webhookendpoint FOR NO KEY UPDATE"
DELIVERY = "SELECT 1 FROM ingestion_webhookdelivery FOR UPDATE"


@pytest.fixture(autouse=True)
def never_again(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is begun again, either."""
    caplog.set_level(logging.INFO)
    yield
    assert not [r for r in caplog.get_records("call") if "deadlock" in r.getMessage()]


@pytest.fixture
def at() -> Iterator[Receiver]:
    with receiver.running() as running:
        yield running


@pytest.fixture
def webhook(admin_user: User, at: Receiver) -> WebhookEndpoint:
    return webhooks.create(admin_user, url=at.url, events=Event.values, actor=ACTOR)[0]


@pytest.fixture
def delivery(webhook: WebhookEndpoint) -> WebhookDelivery:
    return WebhookDelivery.objects.create(endpoint=webhook, event=Event.RUN_FINISHED, data={})


@pytest.fixture
def rule(admin_user: User, webhook: WebhookEndpoint) -> AlertRule:
    given = {"name": "One", "way": "webhook", "webhook": webhook, "kinds": ["archive.idle"]}
    made = rules.create(admin_user, given=given, actor=ACTOR)
    AlertNotice.objects.create(
        rule=made,
        kind="archive.idle",
        change="began",
        message="Nothing comes.",
        created_at=timezone.now() - dt.timedelta(minutes=1),
    )
    return made


def test_a_webhook_may_be_disabled_while_it_is_told(delivery: WebhookDelivery) -> None:
    with crossing(WEBHOOK, DELIVERY):
        webhooks.deliver(delivery.pk)
    assert WebhookDelivery.objects.get().outcome == "delivered"


def test_a_webhook_may_be_disabled_while_telling_it_fails(
    at: Receiver, delivery: WebhookDelivery
) -> None:
    at.status = 500
    with crossing(WEBHOOK, DELIVERY):
        webhooks.deliver(delivery.pk)
    assert WebhookDelivery.objects.get().attempts == 1


def test_what_is_owed_while_a_webhook_is_disabled_is_not_told(
    at: Receiver, webhook: WebhookEndpoint
) -> None:
    with transaction.atomic():
        with ThreadPoolExecutor(1) as other:  # meanwhile, in a session of its own
            other.submit(_disable, webhook).result()
        late = WebhookDelivery.objects.create(endpoint=webhook, event=Event.RUN_FINISHED, data={})
    webhooks.deliver(late.pk)
    late.refresh_from_db()
    assert (late.outcome, at.came) == ("given_up", [])


def _disable(webhook: WebhookEndpoint) -> None:
    try:
        webhooks.change(webhook, enabled=False, actor=ACTOR)
    finally:
        connection.close()


def test_a_webhook_may_be_deleted_while_it_is_told(
    webhook: WebhookEndpoint, delivery: WebhookDelivery
) -> None:
    with crossing(WEBHOOK, DELIVERY):
        webhooks.delete(webhook, actor=ACTOR)
    assert not WebhookDelivery.objects.filter(pk=delivery.pk).exists()


def test_a_webhook_may_be_deleted_while_a_rule_tells_by_it(
    webhook: WebhookEndpoint, rule: AlertRule
) -> None:
    with crossing(RULE, WEBHOOK):
        webhooks.delete(webhook, actor=ACTOR)
    rule.refresh_from_db()
    assert rule.webhook is None


def test_a_rule_may_be_disabled_while_it_tells(rule: AlertRule) -> None:
    with crossing(RULE, NOTICE):
        sending.tell(rule.pk)
    assert AlertNotice.objects.get().sent_at is not None
    assert WebhookDelivery.objects.count() == 1


def test_a_rule_may_be_deleted_while_it_tells(rule: AlertRule) -> None:
    with crossing(RULE, NOTICE):
        rules.delete(rule, actor=ACTOR)
    assert not AlertNotice.objects.exists()
