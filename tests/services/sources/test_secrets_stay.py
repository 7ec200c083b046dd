"""A stored secret goes only to the server that it was given for, whoever changes the settings."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User

from connectors import registry
from ingestion.admin import source_form
from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration, credentials
from tests.servers.imap_script import ImapScript

pytestmark = pytest.mark.django_db
ACTOR = Actor.system("tests")
IMAP = {"host": "imap.example.com", "username": "ada@example.com", "password": "the-stored-one"}
OAUTH = {
    "clientId": "client", "clientSecret": "another-stored-one",
    "tokenUrl": "https://login.example.com/token",
}  # fmt: skip
IMAP_OAUTH = {
    "host": "imap.example.com", "username": "ada@example.com", "refreshToken": "the-stored-one",
    **OAUTH,
}  # fmt: skip
IMAP_TOKEN = {"host": "imap.example.com", "username": "ada@example.com", "accessToken": "stored"}
TENANT = {"tenantId": "a.example.com", "clientId": "client", "clientSecret": "the-stored-one"}
GMAIL = {
    "clientId": "client", "clientSecret": "the-stored-one", "email": "ada@example.com",
    "refreshToken": "another-stored-one",
}  # fmt: skip


def stored(owner: User, provider: str, config: dict[str, Any]) -> IngestionSource:
    return configuration.create(
        owner=owner, name="Ada", provider=provider, provider_config=config, actor=ACTOR
    )


def refused(source: IngestionSource, changes: dict[str, Any]) -> set[str]:
    """The fields at which a change of the configuration is refused."""
    try:
        configuration.update(source, changes={"providerConfig": changes}, actor=ACTOR)
    except InvalidInput as error:
        return {path.removeprefix("providerConfig.") for path in error.errors}
    return set()


@pytest.mark.parametrize(
    ("config", "changes", "asks_for"),
    [
        (IMAP, {"host": "thief.example.com"}, {"password"}),
        (IMAP, {"port": 1143}, {"password"}),
        (IMAP, {"username": "other"}, {"password"}),
        (IMAP, {"secure": False}, {"password"}),
        (IMAP, {"secure": False, "startTls": True}, {"password"}),
        (IMAP, {"allowInsecureCert": True}, {"password"}),
        (IMAP, {"host": "thief.example.com", "password": ""}, {"password"}),
        (IMAP, {"host": "thief.example.com", "password": None}, {"password"}),
        (IMAP, {"host": "imap.example.com", "port": 993, "secure": True}, set()),
        (IMAP, {"host": "other.example.com", "password": "given again"}, set()),
        ({**IMAP, "allowInsecureCert": True}, {"allowInsecureCert": False}, set()),
        ({**IMAP, "secure": False}, {"secure": True}, set()),
        (IMAP_OAUTH, {"host": "thief.example.com"}, {"refreshToken"}),
        (IMAP_OAUTH, {"tokenUrl": "https://thief.example.com/"}, {"refreshToken", "clientSecret"}),
        (
            IMAP_OAUTH,
            {"tokenUrl": "https://thief.example.com/", "refreshToken": "x"},
            {"clientSecret"},
        ),
        (IMAP_OAUTH, {"host": "thief.example.com", "password": "x"}, set()),  # the others go
        (IMAP_OAUTH, {"accessToken": "x"}, set()),
        (IMAP_TOKEN, {**OAUTH, "refreshToken": "x"}, set()),
        (IMAP_TOKEN, {"password": "x"}, set()),
        (IMAP, {"accessToken": "x"}, set()),
        (IMAP, {**OAUTH, "refreshToken": "x"}, set()),
        (IMAP, {"accessToken": "x", "password": "y"}, {"accessToken"}),
    ],
)
def test_imap(
    owner: User, config: dict[str, Any], changes: dict[str, Any], asks_for: set[str]
) -> None:
    source = stored(owner, "generic_imap", config)
    assert refused(source, changes) == asks_for
    source.refresh_from_db()
    if asks_for:
        assert source.config["host"] == "imap.example.com"
        assert set(source.secrets) == {
            f for f in config if f in ("password", "refreshToken", "clientSecret")
        }


@pytest.mark.parametrize("field", ["tenantId", "clientId", "cloud"])
def test_microsoft(owner: User, field: str) -> None:
    value = "usgov" if field == "cloud" else "b.example.com"
    assert refused(stored(owner, "microsoft", TENANT), {field: value}) == {"clientSecret"}


def test_google_and_another_client_has_no_old_token(owner: User) -> None:
    source = stored(owner, "google", GMAIL)
    assert refused(source, {"clientId": "thief"}) == {"clientSecret"}
    assert refused(source, {"clientId": "other", "clientSecret": "its own"}) == set()
    source.refresh_from_db()
    assert "refreshToken" not in source.secrets


def test_every_secret_that_is_sent_says_where_it_may_go() -> None:
    """A service account's key is signed with, and sent nowhere."""
    free = {
        (slug, field.name)
        for slug, provider in registry.PROVIDERS.items()
        for field in provider.config.fields()
        if field.secret and not field.goes_with
    }
    # What is superseded where its client or person changes is dropped, not kept.
    assert free == {
        ("google", "serviceAccountKeyJson"),
        ("google", "refreshToken"),
        ("microsoft", "refreshToken"),
    }


def test_the_admins_form_asks_at_the_field(owner: User) -> None:
    source = stored(owner, "generic_imap", IMAP)
    form = source_form.form_class()(instance=source)
    data = {name: form.get_initial_for_field(field, name) for name, field in form.fields.items()}
    data = {name: "" if value is None else value for name, value in data.items()}
    changed = source_form.form_class()(
        data | {"generic_imap__host": "thief.example.com"}, instance=source
    )
    assert not changed.is_valid()
    assert "Give it again" in str(changed.errors["generic_imap__password"])


@pytest.fixture
def thief() -> Iterator[ImapScript]:
    with ImapScript() as server:
        yield server


def test_a_thief_with_the_right_to_change_settings_hears_nothing(
    owner: User, thief: ImapScript
) -> None:
    source = stored(owner, "generic_imap", IMAP)
    place = {"host": "127.0.0.1", "port": thief.port, "secure": False}
    assert refused(source, place) == {"password"}
    assert refused(source, {**place, "username": IMAP["username"]}) == {"password"}
    credentials.check(IngestionSource.objects.get(pk=source.pk), actor=ACTOR)
    assert thief.commands == []
