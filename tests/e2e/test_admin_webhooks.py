"""The pages of webhooks in a real browser: made, tested, given a new secret, deleted."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import expect

from ingestion.models import AuditEvent, WebhookEndpoint
from ingestion.services.audit import Actor
from ingestion.services.operations import webhooks
from tests.e2e.conftest import Visitor
from tests.servers import people, receiver
from tests.servers.receiver import Receiver

PAGES = "/admin/ingestion/webhookendpoint/"
ACTOR = Actor.system("tests")


@pytest.fixture
def at() -> Iterator[Receiver]:
    with receiver.running() as running:
        yield running


def test_a_webhook_is_made_tested_and_given_a_new_secret(
    operator: Visitor, at: Receiver, wait_for: Callable[..., Any]
) -> None:
    page = operator.go(f"{PAGES}add/")
    page.fill("[name=url]", "nonsense")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Must begin with https://")).to_be_visible()
    page.fill("[name=url]", at.url)
    page.get_by_label("run.finished").check()
    operator.shoot("webhook-add")
    page.get_by_role("button", name="Save").click()
    shown = page.get_by_label("Secret")
    expect(shown).to_be_visible()
    operator.shoot("webhook-secret")
    secret = shown.input_value()
    page.get_by_role("link", name="I have copied it").click()
    expect(page.locator("[name=url]")).to_have_value(at.url)
    assert secret not in page.content()

    page.get_by_role("button", name="Save and send a test").click()
    expect(page.get_by_text("A test is on its way")).to_be_visible()
    wait_for(lambda: at.came)
    assert at.came[0].verified(secret)["type"] == "webhook.test"
    wait_for(lambda: WebhookEndpoint.objects.get().last_delivered_at)
    page.reload()
    expect(page.get_by_text("It answered 204.", exact=True)).to_be_visible()
    operator.shoot("webhook")
    operator.shoot("webhook-narrow", width=400)

    page.get_by_role("button", name="Save and make a new secret").click()
    expect(shown).to_be_visible()
    assert shown.input_value() != secret
    operator.go(PAGES)
    expect(page.locator("#result_list")).to_contain_text("webhook.test: It answered 204.")
    operator.shoot("webhooks")
    operator.shoot("webhooks-narrow", width=400)
    actions = AuditEvent.objects.filter(action__startswith="webhook.").order_by("pk")
    assert list(actions.values_list("action", flat=True)) == [
        *("webhook.create", "webhook.test", "webhook.rotate"),
    ]
    assert WebhookEndpoint.objects.get().events == [
        *("source.error", "run.finished", "archive.corrupt"),
    ]


@pytest.mark.django_db
def test_a_webhook_is_its_owners_alone_to_change(owner: User, client: Client) -> None:
    """Another address would be told of the owner's sources."""
    url = "https://hooks.example.com/"
    made, _ = webhooks.create(owner, url=url, events=["run.finished"], actor=ACTOR)
    staff = people.staff("keeper", *(f"{verb}_webhookendpoint" for verb in _VERBS))
    client.force_login(staff)
    address = f"{PAGES}{made.pk}/change/"
    assert client.get(address).status_code == 200
    form = {"url": "https://elsewhere.example.com/", "events": ["run.finished"], "enabled": "on"}
    assert client.post(address, form).status_code == 403
    made.refresh_from_db()
    assert made.url == url
    nobody = people.staff("nobody")
    client.force_login(nobody)
    assert client.get(address).status_code == 403
    assert client.get(PAGES).status_code == 403


_VERBS = ("view", "add", "change", "delete")
