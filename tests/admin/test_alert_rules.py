"""The form of an alert rule: what is typed is what the rule is, and only its owner changes it."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from ingestion.errors import InvalidInput
from ingestion.models import AlertRule
from ingestion.services.audit import Actor
from ingestion.services.operations import webhooks
from ingestion.services.operations.alerting import rules
from tests.e2e import rows
from tests.servers import people

PAGES = "/admin/ingestion/alertrule/"
TYPED: dict[str, Any] = {
    "name": "On call", "way": "mail", "recipients": "a@example.com; b@example.com", "url": "",
    "kinds": ["source.attention"], "which": "all", "digest": "daily", "enabled": "on",
}  # fmt: skip
ACTOR = Actor.system("tests")
pytestmark = pytest.mark.django_db


@pytest.fixture
def client(owner: User) -> Client:
    User.objects.filter(pk=owner.pk).update(is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(owner)
    return client


def test_a_rule_is_made_changed_and_deleted(client: Client, owner: User) -> None:
    source = rows.a_source(owner)
    assert client.post(f"{PAGES}add/", TYPED).status_code == 302
    rule = AlertRule.objects.get()
    assert rule.recipients == ["a@example.com", "b@example.com"]
    assert (rule.owner, rule.sources, rule.digest) == (owner, None, "daily")
    chosen = TYPED | {"which": "chosen", "sources": [str(source.pk)], "digest": ""}
    assert client.post(f"{PAGES}{rule.pk}/change/", chosen).status_code == 302
    rule.refresh_from_db()
    assert (rule.sources, rule.digest, rule.digest_at) == ([source.pk], "", None)
    ping = TYPED | {"way": "ping", "url": "https://hc.example.com/x"}
    client.post(f"{PAGES}{rule.pk}/change/", ping)
    rule.refresh_from_db()
    assert (rule.way, rule.digest) == ("ping", "")
    client.post(f"{PAGES}{rule.pk}/change/", chosen)
    page = client.get(f"{PAGES}{rule.pk}/change/").content.decode()
    assert f'value="{source.pk}" selected' in page
    client.post(f"{PAGES}{rule.pk}/delete/", {"post": "yes"})
    assert not AlertRule.objects.exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"recipients": ""}, "Give 1 to 20 addresses."),
        ({"recipients": "a@example.com\nBcc:x"}, "is no address of e-mail"),
        ({"kinds": [], "digest": ""}, "Choose at least one, or a digest."),
        ({"which": "chosen"}, "Choose at least one, or all."),
        ({"way": "ping", "digest": "", "url": "ftp://x"}, "Must begin with https://"),
        ({"way": "webhook"}, "Choose one of your webhooks."),
    ],
)
def test_what_is_wrong_is_told_at_its_field(
    client: Client, wrong: dict[str, Any], told: str
) -> None:
    page = client.post(f"{PAGES}add/", TYPED | wrong)
    assert page.status_code == 200
    assert told in page.content.decode()


def test_a_rule_is_its_owners_alone_to_change(client: Client, owner: User) -> None:
    given = {"name": "Mine", "recipients": ["a@example.com"], "kinds": ["source.attention"]}
    rule = rules.create(owner, given=given, actor=ACTOR)
    verbs = ("view", "add", "change", "delete")
    client.force_login(people.staff("keeper", *(f"{verb}_alertrule" for verb in verbs)))
    assert client.get(f"{PAGES}{rule.pk}/change/").status_code == 200
    elsewhere = TYPED | {"recipients": "evil@example.com"}
    assert client.post(f"{PAGES}{rule.pk}/change/", elsewhere).status_code == 403
    client.force_login(people.staff("nobody"))
    assert client.get(PAGES).status_code == 403


def test_only_ones_own_webhooks_are_offered(client: Client, owner: User, other_user: User) -> None:
    mine, theirs = (
        webhooks.create(user, url=f"https://{user}.example.com/x", events=[], actor=ACTOR)[0]
        for user in (owner, other_user)
    )
    assert "other_user.example.com" not in client.get(f"{PAGES}add/").content.decode()
    wrong = client.post(f"{PAGES}add/", TYPED | {"way": "webhook", "webhook": str(theirs.pk)})
    assert wrong.status_code == 200
    given = {"name": "x", "way": "webhook", "webhook": theirs, "kinds": ["source.attention"]}
    with pytest.raises(InvalidInput):
        rules.create(owner, given=given, actor=ACTOR)
    client.post(f"{PAGES}add/", TYPED | {"way": "webhook", "webhook": str(mine.pk)})
    assert AlertRule.objects.get().webhook == mine


def test_only_sources_that_one_may_see_are_offered(client: Client, other_user: User) -> None:
    hidden = rows.a_source(other_user, "Somebody else's")
    client.force_login(people.staff("keeper", "view_alertrule", "add_alertrule"))
    page = client.post(f"{PAGES}add/", TYPED | {"which": "chosen", "sources": [str(hidden.pk)]})
    assert page.status_code == 200
    assert "Somebody else" not in page.content.decode()
    assert not AlertRule.objects.exists()


def test_what_it_told_is_shown_of_sources_that_its_owner_may_still_see(other_user: User) -> None:
    keeper = people.staff("keeper", *(f"{verb}_alertrule" for verb in ("view", "change")))
    given = {"name": "Mine", "recipients": ["a@example.com"], "kinds": ["source.attention"]}
    rule = rules.create(keeper, given=given, actor=ACTOR)
    for owner, name in ((keeper, "Sales"), (other_user, "Somebody else's")):
        rule.notices.create(
            kind="source.attention", change="began", source=rows.a_source(owner, name), message="x"
        )
    client = Client()
    client.force_login(keeper)
    page = client.get(f"{PAGES}{rule.pk}/change/").content.decode()
    assert ("Sales" in page, "Somebody else" in page) == (True, False)
