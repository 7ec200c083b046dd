"""The page of somebody who owns a source and is no staff."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from ingestion.models import AuditEvent, Message, Run
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers import people

pytestmark = pytest.mark.django_db
MAIL = b"Subject: Zebrafish %d\r\nFrom: Ada <ada@example.com>\r\n\r\nbody"


@pytest.fixture
def client(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def shown(answer: Any) -> str:
    return " ".join(answer.content.decode().split())


def test_an_owner_sees_how_it_is_and_takes_out_their_mail(
    client: Client, owner: User, other_user: User, archive_dir: object
) -> None:
    source, theirs = a_source(owner, status="active"), a_source(other_user, "Theirs")
    folder = a_folder(a_mailbox(source))
    archived(folder, *(MAIL % n for n in range(30)))
    archived(a_folder(a_mailbox(theirs)), b"Subject: Quokka\r\n\r\n")
    assert f'href="/sources/{source.pk}/"' in shown(client.get("/account/"))
    page = shown(client.get(f"/sources/{source.pk}/"))
    assert page.count("Zebrafish") == 2 * 25
    older = page.partition('href="?cursor=')[2].partition('"')[0]
    assert shown(client.get(f"/sources/{source.pk}/?cursor={older}")).count("Zebrafish") == 2 * 5
    assert client.get(f"/sources/{source.pk}/?cursor=x").status_code == 404
    assert "Quokka" not in page
    assert client.get(f"/sources/{theirs.pk}/").status_code == 404
    listed = AuditEvent.objects.filter(action="message.list")
    assert [event.changes["how"] for event in listed] == ["own"] * 2
    message = Message.objects.filter(mailbox__source=source)[0]
    raw = client.get(f"/api/v1/emails/{message.pk}/raw")
    assert b"".join(raw).startswith(b"Subject: Zebrafish")
    assert AuditEvent.objects.latest("pk").action == "message.read"


def test_staff_who_may_read_no_mail_read_none_of_their_own_source(archive_dir: object) -> None:
    operator = people.staff("operator", "view_ingestionsource")
    source = a_source(operator)
    archived(a_folder(a_mailbox(source)), MAIL % 1)
    client = Client()
    client.force_login(operator)
    page = shown(client.get(f"/sources/{source.pk}/"))
    assert ("Sync now" in page, "Zebrafish" in page) == (True, False)


def test_an_owner_has_it_synced(client: Client, owner: User, other_user: User) -> None:
    source, theirs = a_source(owner, status="active"), a_source(other_user, status="active")
    page = client.post(f"/sources/{source.pk}/sync/", follow=True)
    assert "looked for new mail now" in shown(page)
    assert [run.source_id for run in Run.objects.all()] == [source.pk]
    assert client.post(f"/sources/{theirs.pk}/sync/").status_code == 404
    assert client.get(f"/sources/{source.pk}/sync/").status_code == 405
    assert Run.objects.count() == 1
    source.status = "paused"
    source.save()
    refused = shown(client.post(f"/sources/{source.pk}/sync/", follow=True))
    assert "disabled" in refused


def test_an_owner_grants_access_anew_where_it_is_tried_first(client: Client, owner: User) -> None:
    config = {"host": "imap.example.com", "username": "ada@example.com", "passwordByOwner": True}
    source = configuration.create(
        owner=owner,
        name="Mine",
        provider="generic_imap",
        provider_config=config,
        actor=Actor.system("tests"),
    )
    assert "Give a new password" in shown(client.get(f"/sources/{source.pk}/"))
    answer: Any = client.post(f"/sources/{source.pk}/grant/")
    path, _, token = answer["Location"].partition("#")
    assert (answer.status_code, path) == (302, "/connect/")
    client.post("/connect/open/", {"token": token})
    assert "imap.example.com" in shown(client.get("/connect/"))
    assert AuditEvent.objects.get(action="consent_link.create").user == owner
