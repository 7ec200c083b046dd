"""The ways to connect: each leads to a form that makes what its provider takes."""

import contextlib
import json
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from connectors.registry import PROVIDERS
from ingestion.admin import account_list, connecting
from ingestion.admin.source_form import field_name
from ingestion.models import IngestionSource
from ingestion.places import FULL
from ingestion.services.sources import ways
from tests.e2e.rows import a_source
from tests.servers import imap_source
from tests.servers.dovecot import Account, Dovecot

ADD = "/admin/ingestion/ingestionsource/add/"
TRY = "/admin/ingestion/ingestionsource/try/"
WAYS = ways.all_ways()
IMAP = {
    f"generic_imap__{name}": value
    for name, value in {
        "host": "h.example",
        "port": "993",
        "username": "u",
        "password": "p",
    }.items()
}


@pytest.fixture
def client(transactional_db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.slug)
def test_a_way_asks_for_fields_that_its_provider_has(way: ways.Way) -> None:
    known = {field.name for field in PROVIDERS[way.provider].config.fields()}
    assert set(way.fields) <= known
    assert set(way.preset) <= known
    required = {f.name for f in PROVIDERS[way.provider].config.fields() if f.required}
    assert required <= {*way.fields, *way.preset}
    assert way.needs <= set(way.fields)
    assert all(step.url.startswith("https://") for step in way.steps if step.url)
    told = ways.steps(way, redirect_uri="https://mail.example.com/back")
    assert not any("{" in step.copy for step in told)


def test_every_provider_has_a_way() -> None:
    assert {way.provider for way in WAYS} == set(PROVIDERS)


def test_a_form_shows_the_fields_of_its_way_and_the_address_to_copy(client: Client) -> None:
    tiles = client.get(ADD).content.decode()
    assert all(f"?way={way.slug}" in tiles for way in WAYS)
    page = client.get(f"{ADD}?way=gmail").content.decode()
    assert 'data-copy="http://testserver/api/v1/oauth/callback"' in page
    assert field_name("google", "clientId") in page
    assert field_name("google", "serviceAccountKeyJson") not in page
    assert "generic_imap__" not in page
    tenant = client.get(f"{ADD}?way=tenant").content.decode()
    secret, expires, next_one = (
        tenant.index(f'name="{name}"')
        for name in (
            *("microsoft__clientSecret", "options__credentialsExpireOn"),
            "microsoft__certificatePem",
        )
    )
    assert secret < expires < next_one
    assert "?way=gmail" in client.get(f"{ADD}?way=no-such-way").content.decode()


def test_what_a_way_knows_is_stored_without_being_asked(client: Client) -> None:
    typed = {
        "name": "Phone", "provider": "generic_imap", "options__syncIntervalSeconds": "300",
        "generic_imap__username": "alice", "generic_imap__password": "app-password",
    }  # fmt: skip
    client.post(f"{ADD}?way=icloud", typed)
    source = IngestionSource.objects.get()
    known = {"host": "imap.mail.me.com", "port": 993, "secure": True, "username": "alice"}
    assert known.items() <= source.config.items()
    refused = client.post(f"{ADD}?way=icloud", typed | {"generic_imap__password": ""})
    assert "password" in refused.content.decode()
    assert IngestionSource.objects.count() == 1


def test_a_form_speaks_of_its_fields_as_it_shows_them(client: Client) -> None:
    typed = {"name": "x", "provider": "generic_imap", "options__syncIntervalSeconds": "300"}
    both = {f"generic_imap__{name}": "on" for name in ("secure", "startTls")}
    page = client.post(f"{ADD}?way=imap", typed | both | IMAP).content.decode()
    assert "or “STARTTLS”." in page
    assert "or startTls" not in page


def tried(client: Client, address: str, form: dict[str, Any]) -> list[dict[str, Any]]:
    answer: Any = client.post(address, form)
    assert answer.status_code == 200
    return [json.loads(line) for line in b"".join(answer.streaming_content).splitlines()]


def test_what_is_typed_is_tried_and_not_stored(client: Client, dovecot: Dovecot) -> None:
    account: Account = dovecot.account(b"Subject: one\r\n\r\nbody\r\n")
    config = {k: v for k, v in imap_source.config(account).items() if v is not False}
    form = {field_name("generic_imap", name): value for name, value in config.items()}
    form |= {"provider": "generic_imap", "options__syncIntervalSeconds": "300"}  # no name yet
    steps = tried(client, f"{TRY}?way=imap", form)
    assert [step["ok"] for step in steps] == [True] * 6
    wrong = tried(client, f"{TRY}?way=imap", form | {"generic_imap__port": "none"})
    assert [(step["ok"], step["title"]) for step in wrong] == [(False, "Port")]
    assert not IngestionSource.objects.exists()
    source = imap_source.create(account)
    kept = form | {"generic_imap__password": ""}
    stored = tried(client, f"/admin/ingestion/ingestionsource/{source.pk}/try/", kept)
    assert stored[-1]["ok"], stored


def test_what_its_owner_grants_later_can_not_be_tried_yet(client: Client) -> None:
    typed = {"provider": "generic_imap", "options__syncIntervalSeconds": "300"}
    form = typed | IMAP | {"generic_imap__password": "", "generic_imap__passwordByOwner": "on"}
    [said] = tried(client, f"{TRY}?way=imap", form)
    assert (said["warns"], said["title"]) == (True, "Not yet")
    assert "make a link for its owner" in said["text"]


def test_one_user_tries_few_at_a_time(client: Client) -> None:
    form = IMAP | {"provider": "generic_imap", "options__syncIntervalSeconds": "300"}
    accounts = {"text": "name,host,username,password\nA,192.0.2.1,a,p\n", "lines": "2"}
    many = "/admin/ingestion/ingestionsource/add-many/test/"
    user = User.objects.get()
    source = a_source(user)
    with contextlib.ExitStack() as held:
        for places, number in ((connecting.trials, 2), (account_list.tests, 1)):
            for _ in range(number):
                held.enter_context(places.place(user.pk))
        assert [step["text"] for step in tried(client, f"{TRY}?way=imap", form)] == [FULL]
        assert tried(client, many, accounts) == [{"error": FULL}]
        marked = {"action": "verify_selected", "_selected_action": [str(source.pk)]}
        verify = {"verb": "verify"} | marked
        for path in (f"{source.pk}/do/", ""):
            page = client.post(f"/admin/ingestion/ingestionsource/{path}", verify, follow=True)
            assert FULL in page.content.decode(), path
    wrong = tried(client, f"{TRY}?way=imap", form | {"generic_imap__port": "none"})
    assert [step["title"] for step in wrong] == ["Port"]


def test_another_provider_is_tried_without_what_is_stored_for_the_one_before(
    client: Client,
) -> None:
    typed = {"name": "Box", "provider": "generic_imap", "options__syncIntervalSeconds": "300"}
    client.post(f"{ADD}?way=imap", typed | IMAP)
    source = IngestionSource.objects.get()
    google = {"google__clientId": "id", "google__clientSecret": "secret"}
    form = typed | IMAP | google | {"provider": "google"}
    [said] = tried(client, f"/admin/ingestion/ingestionsource/{source.pk}/try/", form)
    assert (said["title"], said["text"][:14]) == ("Not yet", "Save it first:")


def test_what_a_way_can_not_do_without_is_asked_for_at_its_field(client: Client) -> None:
    typed = {"provider": "google", "options__syncIntervalSeconds": "300"}
    said = tried(client, f"{TRY}?way=gmail", typed)
    required = "This field is required."
    assert [(line["title"], line["text"]) for line in said] == [
        ("OAuth client id", required), ("OAuth client secret", required),
    ]  # fmt: skip


def test_only_who_may_add_or_change_sources_tries(client: Client, dovecot: Dovecot) -> None:
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_ingestionsource"))
    client.force_login(viewer)
    assert client.post(TRY, {}).status_code == 403
    assert client.get(ADD).status_code == 403
    assert client.get(TRY).status_code == 405
