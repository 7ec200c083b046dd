"""Alerts by the running service: told by a real mail server whatever is killed, made in a browser."""

import datetime as dt
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.db.models import F
from playwright.sync_api import expect

from ingestion.models import Alert, AlertRule, AuditEvent, IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.operations.alerting import rules
from tests.e2e import rows
from tests.e2e.conftest import Visitor
from tests.servers import people, smtp
from tests.servers.smtp import Mailbox
from tests.servers.stack import Service

LONG_AGO = dt.timedelta(seconds=11)
ACTOR = Actor.system("tests")
PAGES = "/admin/ingestion/alertrule/"


@pytest.fixture
def inbox(running_mail: Mailbox) -> Mailbox:
    running_mail.forget()
    return running_mail


def a_rule(user: User, *kinds: str) -> AlertRule:
    given = {"name": "Ops", "recipients": ["ops@example.com"], "kinds": kinds}
    return rules.create(user, given=given, actor=ACTOR)


def test_a_control_process_that_is_killed_in_the_middle_tells_it_all_the_same(
    service: Service, owner: User, inbox: Mailbox, wait_for: Callable[..., Any]
) -> None:
    """It dies when the mail server has the message, and before it could remember that."""
    rule = a_rule(owner, "source.attention")
    control = service.pid("control")

    def die() -> None:
        inbox.on_data = None
        os.kill(control, signal.SIGKILL)

    inbox.on_data = die
    rows.a_source(owner, "Alice", status="error", status_message="The password was refused.")
    wait_for(lambda: rule.notices.update(created_at=F("created_at") - LONG_AGO))
    wait_for(lambda: inbox.came)
    AlertRule.objects.update(handed_out_at=None)
    wait_for(lambda: AlertRule.objects.get().last_sent_at, 120)
    assert service.pid("control") != control
    assert len(inbox.came) == 2
    assert {mail["Message-ID"] for mail in inbox.came} == {inbox.came[0]["Message-ID"]}
    assert "The password was refused." in smtp.text(inbox.came[0])
    assert not rule.notices.filter(sent_at=None).exists()


def test_alerts_are_listed_for_who_may_see_their_source(
    api: httpx.Client, owner: User, other_user: User, make_key: Callable[..., str],
    wait_for: Callable[..., Any],
) -> None:  # fmt: skip
    source = rows.a_source(owner, "Alice", status="error", status_message="Refused.")
    wait_for(Alert.objects.filter(source=source).exists)
    [alert] = api.get("/alerts", params={"open": True}).json()
    assert (alert["kind"], alert["sourceId"]) == ("source.attention", str(source.pk))
    assert (alert["sourceName"], alert["message"]) == ("Alice", "Refused.")
    assert alert["endedAt"] is None
    assert api.get("/alerts", params={"open": False}).json() == []
    assert api.get("/alerts", params={"kind": "index.stuck"}).json() == []
    assert api.get("/alerts", params={"kind": "nothing"}).status_code == 400
    others = {"Authorization": f"Bearer {make_key(other_user)}"}
    assert api.get("/alerts", headers=others).json() == []
    Alert.objects.update(source=None)
    assert api.get("/alerts").json() == []
    looks = people.staff("looks", "view_ingestionsource")
    headers = {"Authorization": f"Bearer {make_key(looks)}"}
    found = api.get("/alerts", params={"kind": "source.attention"}, headers=headers).json()
    [of_service] = found  # of a busy machine there may be others
    assert of_service["sourceName"] is None


def test_a_rule_is_made_and_tested_and_what_came_of_it_is_said(
    operator: Visitor, owner: User, inbox: Mailbox, wait_for: Callable[..., Any]
) -> None:
    broken = rows.a_source(owner, "Alice", status="error", status_message="Refused.")
    rows.a_source(owner, "Bob")
    page = operator.go(f"{PAGES}add/")
    page.fill("[name=name]", "On call")
    expect(page.locator("[name=url]")).to_be_hidden()
    page.fill("[name=recipients]", "ops@example.com, nonsense")
    operator.shoot("alert-rule-add")
    operator.shoot("alert-rule-add-narrow", width=400)
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("nonsense is no address of e-mail.")).to_be_visible()
    page.fill("[name=recipients]", "ops@example.com, two@example.com")
    page.get_by_label("Only these").check()
    page.select_option("[name=sources]", label="Alice")
    page.get_by_label("Every Monday").check()
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Save and send a test").click()
    expect(page.get_by_text("Test: Sent to 2 addresses.").first).to_be_visible()
    [test] = inbox.came
    assert inbox.recipients == [["ops@example.com", "two@example.com"]]
    assert 'This is a test of the rule "On call".' in smtp.text(test)
    inbox.refuse = "550 5.1.1 Nobody here"
    page.get_by_role("button", name="Save and send a test").click()
    expect(page.get_by_text("takes no mail for ops@example.com (550 5.1.1").first).to_be_visible()
    operator.shoot("alert-rule")
    operator.shoot("alert-rule-narrow", width=400)
    rule = AlertRule.objects.get()
    assert rule.sources == [broken.pk]
    assert rule.digest_at is not None
    operator.go(PAGES)
    expect(page.locator("#result_list")).to_contain_text("E-mail to ops@example.com")
    operator.shoot("alert-rules")
    operator.shoot("alert-rules-narrow", width=400)
    wait_for(Alert.objects.filter(source=broken).exists)
    operator.go("/admin/ingestion/alert/")
    expect(page.locator("#result_list")).to_contain_text("Refused.")
    operator.shoot("alerts")
    operator.shoot("alerts-narrow", width=400)
    operator.go(f"/admin/ingestion/alert/{Alert.objects.get(source=broken).pk}/change/")
    operator.shoot("alert")
    actions = AuditEvent.objects.filter(action__startswith="alert_rule.").order_by("pk")
    assert list(actions.values_list("action", flat=True))[:2] == [
        *("alert_rule.create", "alert_rule.update"),
    ]
    assert IngestionSource.objects.filter(status="error").count() == 1
