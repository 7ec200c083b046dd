"""The page of somebody who owns a source and is no staff."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from ingestion.models import AuditEvent, Run
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration
from tests.documents import a_file, indexed
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers import people

pytestmark = pytest.mark.django_db
HTML = (
    b"Subject: Zebrafish\r\nFrom: Ada <ada@example.com>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed; boundary=x\r\n\r\n"
    b"--x\r\nContent-Type: text/html\r\n\r\n<p>Hello</p>\r\n"
    b"--x\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename=a.csv\r\n\r\n1,2\r\n--x--\r\n"
)
MAIL = b"Subject: Zebrafish %d\r\nFrom: Ada <ada@example.com>\r\n\r\nbody"


@pytest.fixture
def client(owner: User) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def shown(answer: Any) -> str:
    return " ".join(answer.content.decode().split())


def test_an_owner_sees_how_it_is_and_what_came_last(
    client: Client, owner: User, other_user: User, archive_dir: object
) -> None:
    source, theirs = a_source(owner, status="active"), a_source(other_user, "Theirs")
    archived(a_folder(a_mailbox(source)), *(MAIL % n for n in range(7)))
    archived(a_folder(a_mailbox(theirs)), b"Subject: Quokka\r\n\r\n")
    assert f'href="/sources/{source.pk}/"' in shown(client.get("/account/"))
    page = shown(client.get(f"/sources/{source.pk}/"))
    assert page.count("Zebrafish") == 5
    assert 'href="/admin/mail/"' in page
    assert "Quokka" not in page
    assert client.get(f"/sources/{theirs.pk}/").status_code == 404
    [listed] = AuditEvent.objects.filter(action="message.list")
    assert (listed.changes["how"], listed.changes["shown"]) == ("own", 5)


def test_an_owner_reads_and_searches_their_mail_and_nobody_elses(
    client: Client, owner: User, other_user: User, archive_dir: object
) -> None:
    [mine] = archived(a_folder(a_mailbox(a_source(owner))), HTML)
    [theirs] = archived(
        a_folder(a_mailbox(a_source(other_user, "Theirs"), "bob@example.com")), HTML
    )
    owner.user_permissions.add(Permission.objects.get(codename="add_export"))
    for message in (mine, theirs):
        indexed(message, "Hello zebrafish", attachments=(a_file("a.csv"),))
    found = shown(client.get("/admin/mail/?q=zebrafish&show=facets"))
    assert "1 message" in found
    page = shown(client.get(f"/admin/mail/{mine.pk}/"))
    assert "ada@example.com" in page
    assert "Theirs" not in found + page
    assert "bob@example.com" not in found + page
    # What is for staff alone is not offered: each address on the page opens.
    for path in sorted(set(re.findall(r'(?:href|src)="(/(?!static/)[^"#?]*)', page))):
        answer: Any = client.get(path)
        assert (answer.status_code, bool(b"".join(answer))) == (200, True), path
    read = AuditEvent.objects.filter(action="message.read", user=owner)
    assert {"page", "raw", "html", "source", "attachment"} <= {e.changes["how"] for e in read}
    parts = ("", "raw/", "source/", "html/", "attachments/1/", "attachments/1/preview/")
    for part in parts:
        assert client.get(f"/admin/ingestion/message/{theirs.pk}/{part}").status_code in {302, 404}
    assert client.get(f"/admin/mail/{theirs.pk}/").status_code == 404
    saved = {"name": "Fish", "query": "zebrafish", "back": "/admin/mail/?q=zebrafish"}
    assert "Saved as “Fish”" in shown(client.post("/admin/mail/searches/", saved, follow=True))


def test_nobody_reads_mail_without_signing_in(owner: User, archive_dir: object) -> None:
    [message] = archived(a_folder(a_mailbox(a_source(owner))), HTML)
    for path in ("/admin/mail/", f"/admin/ingestion/message/{message.pk}/raw/"):
        answer: Any = Client().get(path)
        assert answer["Location"] == f"/admin/login/?next={path}"


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
