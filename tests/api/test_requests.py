"""What every request may ask for: to be done once, only where nothing changed, and its own id."""

import re
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from ingestion.models import AnsweredRequest, IngestionSource, Mailbox, Run
from ingestion.services.operations import answered
from tests.e2e.rows import a_mailbox, a_source
from tests.servers import people
from tests.services.test_deadlocks import MAILBOX, SOURCE, crossing

pytestmark = pytest.mark.django_db
SOURCES = "/api/v1/ingestion"
BODY = {
    "name": "Alice",
    "provider": "generic_imap",
    "providerConfig": {"host": "imap.example.com", "username": "alice", "password": "s3cret-word"},
}


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("owner")


def client_of(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


@pytest.fixture
def client(owner: User) -> APIClient:
    return client_of(owner)


def create(client: APIClient, key: str, body: Any = BODY) -> Any:
    return client.post(SOURCES, body, format="json", headers={"Idempotency-Key": key})


# -- Idempotency-Key ---------------------------------------------------------------------------


def test_a_request_that_is_repeated_is_done_once_and_answered_alike(client: APIClient) -> None:
    first, again = create(client, "k1"), create(client, "k1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert (first.get("Idempotent-Replayed"), again["Idempotent-Replayed"]) == (None, "true")
    assert create(client, "k2").json()["id"] != first.json()["id"]
    assert IngestionSource.objects.count() == 2
    assert "s3cret-word" not in str(list(AnsweredRequest.objects.values()))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["", "with a key"])
def test_a_request_that_met_a_deadlock_is_begun_again(
    client: APIClient, owner: User, headers: dict[str, str]
) -> None:
    source = a_source(owner)
    run = Run.objects.create(source=source, kind="sync", actor="test")
    a_mailbox(source, run=run)
    with crossing(MAILBOX, SOURCE):
        answer = client.post(f"{SOURCES}/{source.pk}/sync", headers=headers)
    assert answer.status_code == 202, answer.json()
    assert AnsweredRequest.objects.count() == len(headers)
    assert Mailbox.objects.get().not_before <= timezone.now()


def test_a_key_is_of_one_request_of_one_user(client: APIClient) -> None:
    create(client, "k")
    other = create(client, "k", BODY | {"name": "Bob"})
    assert (other.status_code, other.json()["errors"][0]["code"]) == (422, "idempotency_key_reused")
    source = IngestionSource.objects.get()
    elsewhere = client.post(f"{SOURCES}/{source.pk}/pause", headers={"Idempotency-Key": "k"})
    assert elsewhere.status_code == 422
    assert create(client_of(User.objects.create_user("other")), "k").status_code == 201
    for wrong in ("", "a b", "x" * 256, "\u00e4"):
        assert create(client, wrong).status_code == 400, wrong


def test_what_was_refused_is_not_remembered_nor_what_is_a_day_old(client: APIClient) -> None:
    refused = create(client, "k", BODY | {"provider": "none"})
    assert refused.status_code == 400
    assert create(client, "k").status_code == 201
    with connection.cursor() as cursor:
        cursor.execute("UPDATE ingestion_answeredrequest SET at = at - interval '25 hours'")
    assert create(client, "k", BODY | {"name": "Bob"}).status_code == 201
    assert answered.forget() == 0
    with connection.cursor() as cursor:
        cursor.execute("UPDATE ingestion_answeredrequest SET at = at - interval '25 hours'")
    assert answered.forget() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_at_the_same_time_one_is_done(transactional_db: None) -> None:
    owner = people.user("owner")
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(create(client_of(owner), "k"))
        finally:
            connection.close()

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert IngestionSource.objects.count() == 1


# -- If-Match ----------------------------------------------------------------------------------


def test_a_change_on_top_of_what_is_no_more_is_refused(client: APIClient, owner: User) -> None:
    source = a_source(owner=owner)
    address = f"{SOURCES}/{source.pk}"
    seen = client.get(address)["ETag"]
    IngestionSource.objects.update(message_count=7, status_message="Progress is no change.")
    assert client.get(address)["ETag"] == seen
    mine = client.put(address, {"name": "Mine"}, format="json", headers={"If-Match": seen})
    assert (mine.status_code, mine["ETag"] != seen) == (200, True)
    theirs = client.put(address, {"name": "Theirs"}, format="json", headers={"If-Match": seen})
    assert (theirs.status_code, theirs.json()["errors"][0]["code"]) == (412, "changed_meanwhile")
    assert client.get(address).json()["name"] == "Mine"
    for agreed in (mine["ETag"], "*"):
        put = client.put(address, {"name": "Last"}, format="json", headers={"If-Match": agreed})
        assert put.status_code == 200


# -- what every answer tells -------------------------------------------------------------------


def test_every_answer_tells_its_id_and_how_many_requests_are_left(
    client: APIClient, settings: Any
) -> None:
    settings.API_REQUESTS_PER_MINUTE = 1_000_000
    own = client.get(SOURCES, headers={"X-Request-ID": "mine-1"})
    assert own["X-Request-ID"] == "mine-1"
    assert own["RateLimit-Policy"] == '"user";q=1000000;w=60'
    assert own["RateLimit"].startswith('"user";r=9999')
    for strange in ("a b", "x" * 65, "\x1b[31m"):
        made = client.get(SOURCES, headers={"X-Request-ID": strange})["X-Request-ID"]
        assert made != strange
        assert len(made) == 36


def test_an_error_leads_to_what_its_code_means(client: APIClient) -> None:
    refused = client.post(SOURCES, {}, format="json")
    assert refused["Link"] == '</api/docs/errors#required>; rel="help"'
    page = Client().get("/api/docs/errors").content.decode()
    for code in ("required", "not_allowed_now", "scope_not_delegated"):
        assert page.count(f'<code id="{code}">') == 1
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 60
    assert re.findall("<script.*?>", page) == re.findall(
        r"<script src=\"/static/[^\"]+/theme\.js\">", page
    )
    assert ".md)" not in page


def test_each_field_that_is_wrong_is_told_of(client: APIClient) -> None:
    """What is sent back as it was read, too: it is known, and not to be written."""
    read = create(client, "k").json()
    given = read | {"providerConfig": {"host": "h" * 1000, "port": "x", "passwordSet": True}}
    answer = client.put(f"{SOURCES}/{read['id']}", given, format="json")
    told = {error["attr"]: error["detail"] for error in answer.json()["errors"]}
    writable = {"name", "provider", "providerConfig", "options", "status"}
    assert told == dict.fromkeys(read.keys() - writable, "This field is read-only.")
    given = {name: given[name] for name in writable - {"status"}} | {"options": {"since": 5}}
    answer = client.put(f"{SOURCES}/{read['id']}", given, format="json")
    assert {error["attr"] for error in answer.json()["errors"]} >= {
        *("providerConfig.host", "providerConfig.port", "options.since"),
    }
