"""GET /emails/{id}, its attachments and its bytes: who may, and what they say."""

import hashlib
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from rest_framework.test import APIClient

from ingestion.models import AuditEvent, Folder, Message, Placement
from ingestion.services.audit import Actor
from ingestion.services.operations import api_keys
from tests.documents import a_file, indexed
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.messages import CSV, RICH, in_conversation

pytestmark = pytest.mark.django_db
BELOW = ("", "?html=true", "/attachments/2", "/raw")


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("owner")


@pytest.fixture
def folder(owner: User, archive_dir: object) -> Folder:
    return a_folder(a_mailbox(a_source(owner)))


@pytest.fixture
def message(folder: Folder) -> Message:
    return in_conversation(folder)[1]


def _client(user: User) -> APIClient:
    client = APIClient()
    client.force_authenticate(user)
    return client


def _with_key(user: User, *scopes: str) -> APIClient:
    actor = Actor.system("tests")
    _, plain = api_keys.create(user, name="program", scopes=[*scopes], actor=actor)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {plain}")
    return client


def _get(client: APIClient, message: Message, below: str = "", **headers: str) -> Any:
    answer: Any = client.get(f"/api/v1/emails/{message.pk}{below}", headers=headers)
    answer.body = b"".join(answer) if answer.streaming else answer.content
    return answer


# -- who -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", BELOW)
def test_only_who_may_see_the_mail_gets_any_of_it(message: Message, below: str) -> None:
    def answered(user: User) -> int:
        return int(_get(_client(user), message, below).status_code)

    assert _get(APIClient(), message, below).status_code == 401
    stranger = User.objects.create_user("stranger")
    assert answered(stranger) == 404
    operator = User.objects.create_user("operator", is_staff=True)
    operator.user_permissions.add(Permission.objects.get(codename="view_ingestionsource"))
    assert answered(operator) == 404
    operator.user_permissions.add(Permission.objects.get(codename="view_message"))
    assert answered(User.objects.get(pk=operator.pk)) == 200
    assert answered(message.mailbox.source.owner) == 200


def test_a_key_without_export_sees_what_is_indexed_and_no_content(
    owner: User, message: Message
) -> None:
    reads = _with_key(owner, "read")
    said = _get(reads, message).json()
    assert (said["subject"], said["text"], said["html"]) == ("Offer", None, None)
    assert not AuditEvent.objects.filter(action="message.read").exists()
    for below in BELOW[1:]:
        refused = _get(reads, message, below)
        assert refused.status_code == 403
        assert "export" in refused.json()["errors"][0]["detail"]
    exports = _with_key(owner, "read", "export")
    assert _get(exports, message).json()["text"] == "The plain words."
    assert _get(exports, message, "/raw").status_code == 200


def test_each_look_at_the_content_is_audited(owner: User, message: Message) -> None:
    for below in BELOW:
        _get(_client(owner), message, below)
    reads = AuditEvent.objects.filter(action="message.read").order_by("id")
    assert [event.changes["how"] for event in reads] == ["api", "api", "attachment", "raw"]


# -- what ----------------------------------------------------------------------------------------


def test_an_email_says_what_it_says_where_it_was_and_what_it_answers(
    owner: User, folder: Folder
) -> None:
    first, message = in_conversation(folder)
    Placement.objects.filter(message=message).update(labels=["Shop"])
    said = _get(_client(owner), message).json()
    assert (said["text"], said["indexed"]) == ("The plain words.", True)
    assert said["headers"] == {"replyTo": "help@example.com"}
    assert [one["id"] for one in said["thread"]] == [str(first.pk)]
    assert said["placements"][0]["labels"] == ["Shop"]
    _, table = said["attachments"]
    assert (table["number"], table["name"], table["sizeBytes"]) == (2, "Preise März.csv", len(CSV))
    assert table["sha256"] == hashlib.sha256(CSV).hexdigest()


def test_html_comes_sanitised_and_remote_pictures_only_on_request(
    owner: User, message: Message
) -> None:
    html = _get(_client(owner), message, "?html=true").json()["html"]
    assert html["remote"] == 1
    assert "<b>now</b>" in html["markup"]
    assert "data:image/png;base64," in html["markup"]
    for unsafe in ("script", "onclick", "tracker.example"):
        assert unsafe not in html["markup"]
    remote = _get(_client(owner), message, "?html=true&remote=true").json()["html"]
    assert "https://tracker.example/p.gif" in remote["markup"]
    assert _get(_client(owner), message, "?remote=true").status_code == 400
    assert _get(_client(owner), message, "?html=perhaps").status_code == 400


def test_an_email_that_is_not_indexed_yet_is_read_all_the_same(owner: User, folder: Folder) -> None:
    (message,) = archived(folder, RICH)
    said = _get(_client(owner), message).json()
    assert (said["indexed"], said["text"], said["thread"]) == (False, "The plain words.", [])
    assert said["headers"]["inReplyTo"] == "<1@example.com>"
    assert len(said["attachments"]) == 2
    unread = _get(_with_key(owner, "read"), message).json()
    assert (unread["headers"], unread["attachments"]) == ({}, [])


def test_attachments_are_known_from_the_index_without_a_look_at_the_bytes(
    owner: User, folder: Folder
) -> None:
    (message,) = archived(folder, RICH)
    indexed(message, attachments=(a_file("a.pdf"),))
    said = _get(_with_key(owner, "read"), message).json()
    assert [(one["number"], one["name"]) for one in said["attachments"]] == [(1, "a.pdf")]


def test_the_conversation_holds_no_mail_of_another_mailbox(owner: User, folder: Folder) -> None:
    _, message = in_conversation(folder)
    in_conversation(a_folder(a_mailbox(folder.mailbox.source, "other@example.com")))
    in_conversation(a_folder(a_mailbox(a_source(User.objects.create_user("stranger"), "Theirs"))))
    assert len(_get(_client(owner), message).json()["thread"]) == 1


# -- files ---------------------------------------------------------------------------------------


def test_an_attachment_is_what_was_attached_and_no_page(owner: User, message: Message) -> None:
    client = _client(owner)
    answer = _get(client, message, "/attachments/2")
    assert answer.body == CSV
    assert answer["ETag"] == f'"{hashlib.sha256(CSV).hexdigest()}"'
    assert answer["Content-Disposition"] == "attachment; filename*=utf-8''Preise%20M%C3%A4rz.csv"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Security-Policy"].startswith("sandbox;")
    part = _get(client, message, "/attachments/2", Range="bytes=2-5")
    assert (part.status_code, part.body) == (206, CSV[2:6])
    tag = {"If-None-Match": answer["ETag"]}
    assert _get(client, message, "/attachments/2", **tag).status_code == 304
    for number in (0, 3, 999_999):
        assert _get(client, message, f"/attachments/{number}").status_code == 404


def test_the_bytes_go_on_where_a_download_broke_off(owner: User, message: Message) -> None:
    client = _client(owner)
    tag = f'"{message.sha256_hex}"'
    rest = _get(client, message, "/raw", Range="bytes=100-", **{"If-Range": tag})
    assert (rest.status_code, rest.body) == (206, RICH[100:])
    assert rest["Content-Range"] == f"bytes 100-{len(RICH) - 1}/{len(RICH)}"
    beyond = _get(client, message, "/raw", Range=f"bytes={len(RICH)}-")
    assert (beyond.status_code, beyond.json()["errors"][0]["code"]) == (
        416,
        "range_not_satisfiable",
    )
    head = client.head(f"/api/v1/emails/{message.pk}/raw")
    assert (head.status_code, head["Content-Length"]) == (200, str(len(RICH)))
