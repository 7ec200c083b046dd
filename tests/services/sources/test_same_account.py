"""The same account twice: said to whoever may know it, and refused to nobody."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from connectors.registry import PROVIDERS
from ingestion.models import ApiKey, IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration, same_account
from tests.servers import people
from tests.servers.command_line import CommandLine

ACTOR = Actor.system("test")
HERE = {"host": "imap.example.com", "username": "alice@example.com", "password": "p"}


def imap(owner: User, name: str, **changes: Any) -> IngestionSource:
    return configuration.create(
        owner=owner, name=name, provider="generic_imap", provider_config=HERE | changes, actor=ACTOR
    )


@pytest.mark.parametrize(
    ("provider", "one", "other", "same"),
    [
        ("generic_imap", HERE, {"host": "IMAP.example.com.", "username": "Alice@Example.com"}, True),
        ("generic_imap", HERE, HERE | {"port": 143, "secure": False}, True),
        ("generic_imap", HERE, HERE | {"port": 1993}, False),
        ("generic_imap", HERE | {"username": "alice"}, HERE | {"username": "Alice"}, False),
        ("generic_imap", HERE, HERE | {"host": "mail.example.com"}, False),
        ("google", {"email": "a@gmail.com"}, {"email": "A@gmail.com", "clientId": "x"}, True),
        ("google", {"impersonatedAdminEmail": "a@x.org"}, {"impersonatedAdminEmail": "b@X.org"}, True),
        ("google", {"email": "a@x.org"}, {"impersonatedAdminEmail": "a@x.org"}, False),
        ("microsoft", {"tenantId": "X.org"}, {"tenantId": "x.org"}, True),
        ("microsoft", {"tenantId": "x.org", "email": "a@x.org"}, {"tenantId": "x.org"}, False),
    ],
)  # fmt: skip
def test_an_account_is_what_its_provider_takes_for_one(
    provider: str, one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    account = PROVIDERS[provider].config.account
    assert account(one)
    assert (account(one) == account(other)) is same


@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_of_an_account_that_is_not_known_nothing_is_said(provider: str, owner: User) -> None:
    assert PROVIDERS[provider].config.account({}) == ""
    IngestionSource.objects.create(owner=owner, name="Recovered", provider=provider)
    assert same_account.Known(None).warnings(provider, {}) == []


def test_whom_a_source_is_named_to(owner: User, other_user: User) -> None:
    theirs = imap(other_user, "Theirs")
    mine = imap(owner, "Mine")
    [named] = same_account.of_source(mine, user=None)
    assert "“Theirs” archives this account too" in named
    assert same_account.of_source(mine, user=other_user) == [named]
    assert same_account.of_source(mine, user=people.superuser("root")) == [named]
    # An unproven account may be anybody's: its owner is not asked about by others.
    assert same_account.of_source(mine, user=owner) == []
    IngestionSource.objects.filter(pk=mine.pk).update(proven_at="2026-01-01T00:00Z")
    mine.refresh_from_db()
    [unnamed] = same_account.of_source(mine, user=owner)
    assert "Theirs" not in unnamed
    assert "that you may not see" in unnamed
    IngestionSource.objects.filter(pk=theirs.pk).update(deleted_at="2026-01-01T00:00Z")
    assert same_account.of_source(mine, user=None) == []


def test_the_api_and_the_admin_warn_and_do_it(owner: User, client: Client) -> None:
    imap(owner, "First")
    key = ApiKey.objects.create(user=owner, name="tests", scopes=["read", "write"])[1]
    body = {"name": "Second", "provider": "generic_imap", "providerConfig": HERE}
    made: Any = client.post(
        "/api/v1/ingestion", body, content_type="application/json",
        headers={"Authorization": f"Bearer {key}"},
    )  # fmt: skip
    assert made.status_code == 201
    assert made.json()["warnings"] == [
        "The source “First” archives this account too: its mail is kept twice."
    ]
    client.force_login(people.superuser("root"))
    form = {
        "name": "Third", "provider": "generic_imap", "options__syncIntervalSeconds": "300",
        **{f"generic_imap__{name}": value for name, value in (HERE | {"port": 993}).items()},
    }  # fmt: skip
    page: Any = client.post("/admin/ingestion/ingestionsource/add/?way=imap", form, follow=True)
    assert "“First” archives this account too" in page.content.decode()
    assert IngestionSource.objects.count() == 3


def test_the_command_warns_and_does_it(manage: CommandLine) -> None:
    imap(people.superuser("root"), "First")
    config = '{"host": "imap.example.com", "username": "alice@example.com", "password": "p"}'
    added = manage.here("add_source", "Second", "--config", config, "--json")
    assert (added.code, len(added.json()["warnings"])) == (0, 1)
    assert "“First” archives this account too" in added.stderr
