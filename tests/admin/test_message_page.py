"""A message's page and what belongs to it, without a browser: who may, and what is told browsers."""

import datetime as dt
import uuid
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ingestion.admin import message_files, reading
from ingestion.admin.reading import details, neighbours
from ingestion.models import AuditEvent, Folder, Message, Placement
from tests.documents import indexed
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.messages import CSV, PNG, RICH, in_conversation

BELOW = ("change/", "raw/", "source/", "html/", "attachments/2/", "attachments/2/preview/")
FRAMES = ("source/", "html/", "attachments/1/preview/", "attachments/2/preview/")


def _client(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def _get(client: Client, message: Message, below: str = "change/") -> Any:
    answer: Any = client.get(f"/admin/ingestion/message/{message.pk}/{below}")
    answer.body = b"".join(answer) if answer.streaming else answer.content
    return answer


def _allowed(user: User, *codenames: str) -> User:
    user.is_staff = True
    user.save()
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return User.objects.get(pk=user.pk)


@pytest.fixture
def folder(admin_user: User, archive_dir: object) -> Folder:
    return a_folder(a_mailbox(a_source(admin_user)))


@pytest.fixture
def message(folder: Folder) -> Message:
    return in_conversation(folder)[1]


# -- who -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", BELOW)
def test_only_who_may_see_the_mail_gets_any_of_it(
    message: Message, other_user: User, admin_user: User, below: str
) -> None:
    def answered(user: User) -> int:
        return int(_get(_client(user), message, below).status_code)

    refused = 302 if below == "change/" else 404  # Django's: it says that there is none
    assert _get(Client(), message, below).url.startswith("/admin/login/")
    assert answered(other_user) == refused
    assert answered(_allowed(other_user, "view_ingestionsource")) == 403
    assert answered(_allowed(other_user, "view_message")) == refused
    assert answered(_allowed(other_user, "view_ingestionsource", "view_message")) == 200
    assert answered(admin_user) == 200
    message.mailbox.source.deleted_at = timezone.now()
    message.mailbox.source.save()
    assert answered(admin_user) == refused


def test_each_look_is_audited(message: Message, admin_user: User) -> None:
    client = _client(admin_user)
    for below in (*BELOW, "html/?remote=1"):
        _get(client, message, below)
    reads = AuditEvent.objects.filter(action="message.read").order_by("id")
    assert [event.changes["how"] for event in reads] == [
        *("page", "raw", "source", "html", "attachment", "preview", "html with remote pictures")
    ]


# -- what browsers are told ----------------------------------------------------------------------


@pytest.mark.parametrize("below", FRAMES)
def test_a_frame_obeys_nothing(message: Message, admin_user: User, below: str) -> None:
    answer = _get(_client(admin_user), message, below)
    policy = dict.fromkeys(answer["Content-Security-Policy"].split("; "))
    for rule in (
        *("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"),
        *("frame-ancestors 'self'", f"sandbox {message_files.SANDBOX}"),
    ):
        assert rule in policy
    assert "allow-scripts" not in answer["Content-Security-Policy"]
    assert "allow-same-origin" not in answer["Content-Security-Policy"]
    assert answer["Referrer-Policy"] == "no-referrer"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["X-Frame-Options"] == "SAMEORIGIN"
    assert "no-store" in answer["Cache-Control"]


def test_pictures_are_fetched_for_the_view_that_asked_for_them_alone(
    message: Message, admin_user: User
) -> None:
    client = _client(admin_user)
    remote = _get(client, message, "html/?remote=1")
    assert "img-src data: https:; " in remote["Content-Security-Policy"]
    assert b"tracker.example/p.gif" in remote.body
    again = _get(client, message, "html/")
    assert "https:" not in again["Content-Security-Policy"]
    assert b"tracker.example/p.gif" not in again.body


def test_previews_are_pictures_or_text_whatever_they_are_called(
    message: Message, admin_user: User
) -> None:
    client = _client(admin_user)
    picture, table = (_get(client, message, f"attachments/{n}/preview/") for n in (1, 2))
    assert (picture["Content-Type"], picture.body) == ("image/png", PNG)
    assert (table["Content-Type"], table.body) == ("text/plain; charset=utf-8", CSV)


def test_source_is_the_text_of_the_bytes_without_what_a_page_obeys(
    folder: Folder, admin_user: User
) -> None:
    body = "Subject: x\r\n\r\n<script>alert(1)</script>\u202e\r\n" + "y" * 600_000
    (message,) = archived(folder, body.encode())
    shown = _get(_client(admin_user), message, "source/")
    assert shown["Content-Type"] == "text/plain; charset=utf-8"
    assert shown.body.startswith(b"Subject: x\n\n<script>alert(1)</script> \n")
    assert b"[The first 500,000 of 600,044 bytes." in shown.body


# -- the page ------------------------------------------------------------------------------------


def test_the_page_says_whom_it_names_what_it_answers_and_where_it_was(
    message: Message, admin_user: User
) -> None:
    Placement.objects.filter(message=message).update(labels=["Shop"], removed_at=timezone.now())
    page = _get(_client(admin_user), message).content.decode()
    for shown in ("Reply to", "help@example.com", "1 remote picture was not loaded", "Preise März"):
        assert shown in page
    assert "removed <time" in page
    assert "Ask</bdi>" in page
    assert "<b>now</b>" not in page


def test_a_message_that_is_not_indexed_is_shown_all_the_same(
    folder: Folder, admin_user: User
) -> None:
    (message,) = archived(folder, RICH)
    page = _get(_client(admin_user), message).content.decode()
    assert "The plain words." in page
    assert "not indexed yet" in page


def test_hundreds_of_recipients_are_folded(folder: Folder, admin_user: User) -> None:
    everybody = ", ".join(f"p{n}@example.com" for n in range(300))
    (message,) = archived(folder, f"From: a@b.example\r\nTo: {everybody}\r\n\r\nx".encode())
    _, to = details(admin_user, message)["people"]
    assert (to.label, len(to.shown), len(to.folded)) == ("To", 8, 292)


def test_neighbours_are_of_the_list_that_one_came_from(folder: Folder, admin_user: User) -> None:
    now = timezone.now()
    found = archived(folder, *(f"Subject: {n}\r\n\r\n{n}".encode() for n in range(4)))
    for number, message in enumerate(found):
        text = "invoice" if number != 2 else "other"
        indexed(message, text, date=now - dt.timedelta(days=number))

    def ids(q: str, *, at: int = 1) -> list[str]:
        message = Message.objects.select_related("document").get(pk=found[at].pk)
        return [
            str(uuid.UUID(url.split("/")[4])) for _, _, url in neighbours(admin_user, message, q)
        ]

    assert ids("") == [str(found[0].pk), str(found[2].pk)]
    assert ids("invoice") == [str(found[0].pk), str(found[3].pk)]
    assert ids("invoice", at=3) == [str(found[1].pk)]
    assert ids('"unclosed') == []
    message = Message.objects.get(pk=found[1].pk)
    assert neighbours(admin_user, message, "invoice")[0][2].endswith("?q=invoice")


def test_the_page_costs_the_same_whatever_the_conversation(
    message: Message, admin_user: User
) -> None:
    client = _client(admin_user)
    _get(client, message)

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert _get(client, message).status_code == 200
        return len(queries)

    def another(number: int) -> None:
        place = a_folder(message.mailbox, f"F{number}")
        (other,) = archived(place, f"Subject: {number}\r\n\r\nx".encode())
        indexed(other, "x", thread=7)

    another(0)  # so that there is a newer one and an older one
    few = cost()
    for number in range(1, 6):
        another(number)
    assert cost() == few


def test_of_a_long_conversation_the_eldest_are_listed_and_that_is_said(
    message: Message, admin_user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _client(admin_user)
    place = a_folder(message.mailbox, "Others")
    bodies = [f"Subject: number {number}\r\n\r\nx".encode() for number in range(3)]
    for number, other in enumerate(archived(place, *bodies)):
        indexed(other, "x", thread=7, date=timezone.now() + dt.timedelta(days=1 + number))
    told = "The eldest {} others are listed."
    for most, count, more in ((4, "5 messages", False), (3, "4+ messages", True)):
        monkeypatch.setattr(reading, "_MAX_IN_THREAD", most)
        page = _get(client, message).body.decode()
        assert f">{count}<" in page
        assert (told.format(most) in page) == more
        assert ("number 2" in page) != more
