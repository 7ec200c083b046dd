"""Who tells, and who changes, beside somebody who deletes what is told, or changed: the one learns
it in words, and all else is as if it had been deleted before."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from django.contrib.auth.models import User
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from ingestion.errors import Corrupt, LostRace
from ingestion.models import (
    Alert,
    AlertNotice,
    AlertRule,
    AuditEvent,
    SavedSearch,
    WebhookDelivery,
    WebhookEndpoint,
)
from ingestion.models.webhook import Event
from ingestion.packs.store import store
from ingestion.services.archive import reading, verify
from ingestion.services.audit import Actor
from ingestion.services.operations import saved_searches, webhooks
from ingestion.services.operations.alerting import rules
from tests.e2e import rows
from tests.servers import people
from tests.services.test_deadlocks import crossing

pytestmark = pytest.mark.django_db(transaction=True)

ACTOR = Actor.system("tests")
_BOTH = ["archive.corrupt", "archive.idle"]


def deleted_meanwhile(model: type[Model]) -> AbstractContextManager[None]:
    """Have another session delete all of them, and commit that once somebody waits for it."""
    return crossing(f"DELETE FROM {model._meta.db_table}", "SELECT 1")


@pytest.fixture
def root() -> User:
    return people.superuser("root")


@pytest.fixture
def webhook(root: User) -> WebhookEndpoint:
    return webhooks.create(root, url="https://a.example", events=Event.values, actor=ACTOR)[0]


@pytest.fixture
def rule(root: User) -> AlertRule:
    given = {"name": "One", "way": "mail", "recipients": ["a@example.com"], "kinds": _BOTH}
    return rules.create(root, given=given, actor=ACTOR)


@pytest.mark.parametrize("name", ["webhookendpoint", "alertrule"])
def test_a_page_says_that_what_it_saves_was_deleted_meanwhile(
    root: User, webhook: WebhookEndpoint, rule: AlertRule, name: str
) -> None:
    row: Model = {"webhookendpoint": webhook, "alertrule": rule}[name]
    client = Client()
    client.force_login(root)
    address = reverse(f"admin:ingestion_{name}_change", args=[row.pk])
    given = client.get(address).context["adminform"].form.initial
    changed = {"url": "https://b.example"} if name == "webhookendpoint" else {"name": "Two"}
    typed = {field: value for field, value in (given | changed).items() if value is not None}
    with deleted_meanwhile(type(row)):
        answer = client.post(address, typed, follow=True)
    assert answer.status_code == 200
    said = [str(message) for message in answer.context["messages"]]
    assert any(text.startswith("Not saved. The ") and "was deleted" in text for text in said), said


@pytest.mark.parametrize("model", [WebhookEndpoint, AlertRule])
def test_a_verification_that_finds_damage_is_told_to_all_who_are_left(
    owner: User, webhook: WebhookEndpoint, rule: AlertRule, model: type[Model]
) -> None:
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    rows.archived(folder, b"Subject: 1\r\n\r\n")
    store().delete_source(folder.mailbox.source_id)
    with deleted_meanwhile(model):
        assert not verify.verify_archive(on_problem=lambda _: None).ok
    assert Alert.objects.get().kind == "archive.corrupt"
    told = AlertNotice if model is WebhookEndpoint else WebhookDelivery
    assert told.objects.exists()


def test_damage_that_a_reader_meets_is_told_to_all_who_are_left(
    owner: User, webhook: WebhookEndpoint, rule: AlertRule
) -> None:
    source = rows.a_source(owner)
    with deleted_meanwhile(WebhookEndpoint):
        reading.announce_damage(source, Corrupt("It is damaged."))
    assert AlertNotice.objects.count() == 1
    assert not WebhookDelivery.objects.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda row: webhooks.change(row, url="https://b.example", actor=ACTOR),
        lambda row: webhooks.rotate_secret(row, actor=ACTOR),
    ],
    ids=["change", "rotate"],
)
def test_a_webhook_that_is_deleted_meanwhile_is_not_changed(
    webhook: WebhookEndpoint, change: Callable[[WebhookEndpoint], object]
) -> None:
    with deleted_meanwhile(WebhookEndpoint), pytest.raises(LostRace, match="was deleted"):
        change(webhook)


def test_a_rule_that_is_deleted_meanwhile_is_not_changed(rule: AlertRule) -> None:
    with deleted_meanwhile(AlertRule), pytest.raises(LostRace, match="was deleted"):
        rules.change(rule, given={"name": "Two"}, actor=ACTOR)
    assert not AuditEvent.objects.filter(action="alert_rule.update").exists()


def test_what_two_change_of_a_rule_is_both_changed(rule: AlertRule) -> None:
    pause = "UPDATE ingestion_alertrule SET enabled = false"
    with crossing(pause, "SELECT 1"):
        rules.change(rule, given={"name": "Two"}, actor=ACTOR)
    assert (rule.name, rule.enabled) == ("Two", False)


def test_a_saved_search_that_is_deleted_meanwhile_does_not_come_back(root: User) -> None:
    saved = saved_searches.save(root, name="One", query="invoice", actor=ACTOR)
    with deleted_meanwhile(SavedSearch), pytest.raises(LostRace, match="was deleted"):
        saved_searches.rename(saved, name="Two", actor=ACTOR)
    assert not SavedSearch.objects.exists()
