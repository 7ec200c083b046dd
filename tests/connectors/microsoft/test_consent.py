"""One mailbox, of a person who signs in."""

import hashlib
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User as Owner
from django.test import Client
from django.urls import reverse

from ingestion.errors import InvalidInput, NotAllowedNow
from ingestion.models import (
    IngestionSource,
    Mailbox,
    Message,
    Placement,
)
from ingestion.services.engine import sync
from ingestion.services.sources import (
    configuration,
    consent,
    consent_links,
    credentials,
    discovery,
    verbs,
)
from tests.servers.command_line import CommandLine
from tests.servers.graph import GraphServer, User
from tests.servers.graph.sources import (
    ACTOR,
    body,
    box,
    fill,
    finish,
    imported,
    synced,
)

Make = Callable[..., IngestionSource]


@pytest.fixture
def person(server: GraphServer, alice: User) -> dict[str, Any]:
    return {"tenantId": "common", "email": alice.mail}


def test_a_person_signs_in_with_the_browser_and_the_mailbox_is_archived(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any]
) -> None:
    fill(box(alice), 3)
    redirect_uri = "https://mail.example/api/v1/oauth/callback"
    server.login.redirect_uris.add(redirect_uri)
    source = make(**person)
    verdict = credentials.check(source, actor=ACTOR)
    assert verdict.code == "consent_needed"
    owner = source.owner
    url = consent.begin(source, by=owner, redirect_uri=redirect_uri)
    bob = server.tenant.add_user("bob")
    wrong = server.login.sign_in(url, bob)
    with pytest.raises(InvalidInput, match="bob"):
        consent.finish(user=owner, **wrong, actor=ACTOR)
    url = consent.begin(source, by=owner, redirect_uri=redirect_uri)
    consent.finish(user=owner, **server.login.sign_in(url, alice), actor=ACTOR)
    source.refresh_from_db()
    given = source.secrets["refreshToken"]
    assert imported(source).message == "3 archived."
    assert [mailbox.address for mailbox in Mailbox.objects.all()] == [alice.mail]
    # The next access token costs the refresh token, and the new one is stored.
    server.login.expire_tokens()
    box(alice).deliver(body(9))
    assert synced(source).message == "1 archived."
    source.refresh_from_db()
    assert source.secrets["refreshToken"] != given
    assert source.secrets["refreshToken"] in server.login.refresh_tokens
    assert source.secrets["clientSecret"] == server.login.client_secret


def test_a_person_without_a_user_signs_in_by_a_link(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any]
) -> None:
    fill(box(alice), 2)
    redirect_uri = "https://mail.example/api/v1/oauth/callback"
    server.login.redirect_uris.add(redirect_uri)
    source = make(**person)
    link, _ = consent_links.make(source, actor=ACTOR)
    seen = consent_links.as_shown(link)

    def signed_in(who: User) -> dict[str, Any]:
        url = consent_links.begin(link, browser="hers", seen=seen, redirect_uri=redirect_uri)
        return dict(server.login.sign_in(url, who), address="192.0.2.7")

    with pytest.raises(InvalidInput, match="bob"):
        bob = server.tenant.add_user("bob")
        consent_links.finish(link, browser="hers", **signed_in(bob))
    with pytest.raises(InvalidInput, match="Begin it again"):
        consent_links.finish(link, browser="another", **signed_in(alice))
    consent_links.finish(link, browser="hers", **signed_in(alice))
    source.refresh_from_db()
    assert imported(source).message == "2 archived."
    link.refresh_from_db()
    with pytest.raises(consent_links.NotOpen):
        signed_in(alice)


def test_a_sign_in_ends_after_ten_minutes_and_its_state_is_kept_nowhere(
    make: Make, person: dict[str, Any], settings: Any
) -> None:
    source = make(**person)
    url = consent.begin(source, by=source.owner, redirect_uri="https://mail.example/back")
    [state] = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["state"]
    client: Any = redis.Redis.from_url(settings.REDIS_URL)
    name = hashlib.sha256(state.encode()).hexdigest()
    [key] = client.keys(f"*consent:{name}")
    assert 590_000 < client.pttl(key) <= 600_000
    assert state.encode() not in client.get(key)
    client.delete(key)  # as Redis does then
    with pytest.raises(InvalidInput, match="expired"):
        consent.finish(user=source.owner, state=state, code="code", actor=ACTOR)


def test_without_redis_nobody_can_sign_in_and_is_told_so(
    make: Make, person: dict[str, Any], settings: Any
) -> None:
    source = make(**person)
    away = {"BACKEND": "django.core.cache.backends.redis.RedisCache"}
    settings.CACHES = {"default": away | {"LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(NotAllowedNow, match="Redis"):
        consent.begin(source, by=source.owner, redirect_uri="https://mail.example/back")
    with pytest.raises(NotAllowedNow, match="Redis"):
        consent.finish(user=source.owner, state="state", code="code", actor=ACTOR)


def test_a_person_who_gets_another_main_address_is_still_the_same(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any]
) -> None:
    fill(box(alice), 1)
    source = make(**person, refreshToken=server.login.refresh_token_of(alice))
    imported(source)
    alice.aliases, alice.mail = (str(alice.mail),), "alice.b@contoso.example"
    alice.principal_name = "alice.b@contoso.example"
    box(alice).deliver(body(9))
    assert synced(source).message == "1 archived."
    assert credentials.check(source, actor=ACTOR).ok
    assert Mailbox.objects.get().address == "alice.b@contoso.example"


def test_a_person_signs_in_by_typing_in_a_code(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any], settings: Any
) -> None:
    fill(box(alice), 2)
    server.login.is_public_client = True
    source = make(**person, clientSecret="")
    prompt = consent.begin_device(source)
    assert not consent.finish_device(source, prompt, actor=ACTOR)
    server.login.enter_device_code(prompt.user_code, alice)
    command = CommandLine(settings.ARCHIVE_DIR)
    assert command.here("sign_in_source", "Nobody").code == 2
    server.login.signs_in_at_once = alice
    done = command.here("sign_in_source", "Contoso", "--json")
    assert (done.code, "type in the code" in done.stderr) == (0, True)
    assert done.json() == {"sourceId": str(source.pk), "signedIn": True}
    source.refresh_from_db()
    assert imported(source).message == "2 archived."


def test_nobody_types_in_a_code_for_a_tenant_or_for_an_application_with_a_secret(
    server: GraphServer, make: Make, settings: Any, alice: User
) -> None:
    make()
    refused = CommandLine(settings.ARCHIVE_DIR).here("sign_in_source", "Contoso")
    assert refused.code == 1
    assert "without a client secret" in refused.stderr


def test_a_rotated_secret_does_not_replace_a_newer_one(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any]
) -> None:
    first = server.login.refresh_token_of(alice)
    source = make(**person, refreshToken=first)
    exchanging = credentials.environment(source).exchanging
    reconnected = server.login.refresh_token_of(alice)
    with exchanging() as secrets:
        configuration.reconnect(source, {"refreshToken": reconnected}, actor=ACTOR)
        secrets["refreshToken"] = "rotated-of-the-first"
    source.refresh_from_db()
    assert source.secrets["refreshToken"] == reconnected
    for rotated in ("second", "third"):
        with exchanging() as secrets:
            secrets["refreshToken"] = rotated
        source.refresh_from_db()
        assert source.secrets["refreshToken"] == rotated


@pytest.mark.parametrize("is_namesake", [False, True])
def test_of_another_person_nothing_comes_into_the_mailbox_that_a_run_still_owes(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any], is_namesake: bool
) -> None:
    fill(box(alice), 3)
    source = make(**person, refreshToken=server.login.refresh_token_of(alice))
    imported(source)
    run = verbs.start_sync(source, actor=ACTOR)
    discovery.discover(run.pk)
    hers = Mailbox.objects.get()
    other = server.tenant.add_user("bob")
    if is_namesake:
        del server.tenant.users[alice.id]
        other.mail = alice.mail
    box(other).deliver(body(9))
    given = {"email": other.mail, "refreshToken": server.login.refresh_token_of(other)}
    configuration.update(source, changes={"providerConfig": given}, actor=ACTOR)
    assert credentials.check(source, actor=ACTOR).ok
    sync.sync_mailbox(hers.pk)
    assert Message.objects.count() == 3
    assert Placement.objects.filter(removed_at=None).count() == 3
    discovery.discover(run.pk)
    assert finish(source).messages_new == 1
    assert Message.objects.filter(mailbox=hers).count() == 3


def test_the_admin_shows_a_code_to_type_in_and_signs_in_once_that_is_done(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any], admin_user: Owner
) -> None:
    fill(box(alice), 2)
    server.login.is_public_client = True
    source = make(**person, clientSecret="")
    client = Client()
    client.force_login(admin_user)
    page = reverse("admin:ingestion_ingestionsource_change", args=[source.pk])
    assert "Sign in with a code" in client.get(page).content.decode()
    code_page = reverse("admin:ingestion_source_type_in_code", args=[source.pk])
    assert client.get(code_page).status_code == 405
    shown = client.post(code_page)
    context: Any = shown.context_data
    prompt, text = context["prompt"], shown.content.decode()
    assert prompt.user_code in text
    assert prompt.secret not in text
    sealed = {"prompt": context["sealed"]}
    early = client.post(code_page, sealed)
    assert "has not been typed in yet" in early.content.decode()
    server.login.enter_device_code(prompt.user_code, alice)
    for forged in ("no-such-seal", sealed["prompt"][:-4] + "AAAA"):
        client.post(code_page, {"prompt": forged})
        source.refresh_from_db()
        assert "refreshToken" not in source.secrets
    done = client.post(code_page, sealed)
    assert (done.status_code, done["Location"]) == (302, page)
    source.refresh_from_db()
    assert source.secrets["refreshToken"] in server.login.refresh_tokens
    assert imported(source).message == "2 archived."


def test_a_sealed_code_is_of_use_for_its_source_and_user_alone(
    server: GraphServer, make: Make, alice: User, person: dict[str, Any], admin_user: Owner
) -> None:
    server.login.is_public_client = True
    source = make(**person, clientSecret="")
    prompt = consent.begin_device(source)
    sealed = consent.seal(prompt, source=source, user=admin_user)
    assert consent.unseal(sealed, source=source, user=admin_user) == prompt
    with pytest.raises(InvalidInput):
        consent.unseal(sealed, source=source, user=source.owner)
