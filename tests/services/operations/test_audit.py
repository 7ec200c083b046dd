"""Who came, who may do what since when, which key acted, and who looked at mail."""

import csv
import datetime as dt
import getpass
import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

import ingestion
from ingestion.admin import history
from ingestion.models import ApiKey, AuditEvent, Folder
from ingestion.services.audit import SYSTEM, Actor, audit
from ingestion.services.operations import api_keys, groups
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived
from tests.servers import people
from tests.servers.command_line import CommandLine

pytestmark = pytest.mark.django_db
RIGHT = "the-root-of-the-tests"
ADDRESS = "198.51.100.7"


@pytest.fixture(autouse=True)
def quick(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def root() -> User:
    user = User.objects.create_superuser("root", password=RIGHT)
    people.forget_all()
    return user


@pytest.fixture
def client(root: User) -> Client:
    client = Client(REMOTE_ADDR=ADDRESS)
    client.force_login(root)
    people.forget_all()
    return client


def recorded() -> list[tuple[str, str, str | None]]:
    return [(e.action, e.actor, e.address) for e in AuditEvent.objects.order_by("id")]


def test_sign_ins_sign_outs_and_failed_ones_are_recorded(root: User) -> None:
    client = Client(REMOTE_ADDR=ADDRESS)
    for password in ("a-password-that-is-wrong", RIGHT):
        client.post("/admin/login/", {"username": "root", "password": password})
    client.post("/admin/login/", {"username": "MyPassword1!", "password": ""})
    Client(REMOTE_ADDR=ADDRESS).post(
        "/admin/login/", {"username": "MyPassword1!", "password": "root"}
    )
    client.post("/admin/logout/")
    assert recorded() == [
        ("session.refused", "anonymous", ADDRESS),
        ("session.begin", "root", ADDRESS),
        ("session.refused", "anonymous", ADDRESS),
        ("session.end", "root", ADDRESS),
    ]
    refused = AuditEvent.objects.filter(action="session.refused").order_by("id")
    assert [event.changes["user"] for event in refused] == ["root", "no user of this service"]
    assert "MyPassword" not in str(list(AuditEvent.objects.values()))


def test_users_groups_rights_and_passwords_are_recorded(client: Client, root: User) -> None:
    password = "a-long-one-for-carol"
    new = {"username": "carol", "usable_password": "true"}
    client.post("/admin/auth/user/add/", {**new, "password1": password, "password2": password})
    carol = User.objects.get(username="carol")
    page = f"/admin/auth/user/{carol.pk}"
    may = Permission.objects.get(codename="view_message")
    joined = {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    rights = {"is_active": "on", "is_staff": "on", "user_permissions": [may.pk]}
    client.post(f"{page}/change/", {"username": "carol", **joined, **rights})
    passwords = {"password1": password + "2", "password2": password + "2"}
    client.post(f"{page}/password/", {**passwords, "usable_password": "true"})
    client.post("/admin/auth/group/add/", {"name": "readers", "permissions": [may.pk]})
    own = {"old_password": RIGHT, "new_password1": password, "new_password2": password}
    client.post("/admin/password_change/", own)
    client.post(f"{page}/delete/", {"post": "yes"})
    readers = Group.objects.get(name="readers")
    client.post(f"/admin/auth/group/{readers.pk}/delete/", {"post": "yes"})
    assert recorded() == [
        (action, "root", ADDRESS)
        for action in (
            *("user.create", "user.update", "user.update", "group.create", "user.update"),
            *("user.delete", "group.delete"),
        )
    ]
    created, changed, reset, group, mine, *_ = AuditEvent.objects.order_by("id")
    assert (created.changes["name"], created.changes["staff"]) == ("carol", False)
    assert changed.changes["staff"]
    assert changed.changes["permissions"] == ["ingestion.view_message"]
    assert {*reset.changes["changed"], *mine.changes["changed"]} <= {"Password", "password"}
    assert group.changes == {"name": "readers", "permissions": ["ingestion.view_message"]}
    assert password not in str(list(AuditEvent.objects.values()))


def test_who_works_in_the_admin_and_is_not_let_in_is_told_of(client: Client, root: User) -> None:
    groups.make_ready()  # whoever emptied the tables before took them along
    carol = User.objects.create_user("carol")
    form = {"username": "carol", "is_active": "on"}
    form |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}

    def told(name: str, **more: str) -> bool:
        group = Group.objects.get(name=name)
        address = f"/admin/auth/user/{carol.pk}/change/"
        answer = client.post(address, {**form, "groups": [group.pk], **more}, follow=True)
        return "Turn on “Staff status”" in answer.content.decode()

    assert told("Operator")
    assert not told("Operator", is_staff="on")
    assert not told("Owner")
    client.force_login(carol)
    User.objects.filter(pk=carol.pk).update(is_staff=False)
    page = client.get("/admin/ingestion/run/", follow=True).content.decode()
    assert "turn on “Staff status” for you" in page


def test_users_and_passwords_of_the_command_line_are_recorded(
    manage: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", RIGHT)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: RIGHT + "2")  # it asks a terminal
    manage.here("createsuperuser", "--noinput", "--username=carol", "--email=c@example.com")
    manage.here("changepassword", "carol")
    made, changed = AuditEvent.objects.order_by("id")
    assert (made.action, made.changes["name"], made.changes["superuser"]) == (
        *("user.create", "carol"),
        True,
    )
    assert (changed.action, changed.changes["changed"]) == ("user.update", ["Password"])
    assert {made.actor, changed.actor} == {f"command line ({getpass.getuser()})"}
    assert RIGHT not in str(list(AuditEvent.objects.values()))


def test_a_hash_that_is_renewed_at_a_sign_in_is_no_new_password(root: User, settings: Any) -> None:
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.ScryptPasswordHasher",
        *settings.PASSWORD_HASHERS,
    ]
    before = root.password
    assert root.check_password(RIGHT)
    assert root.password != before
    assert recorded() == []


@pytest.fixture
def folder(root: User, archive_dir: object) -> Folder:
    return a_folder(a_mailbox(a_source(root)))


def test_looks_at_mail_are_recorded_with_the_key_that_took_it(
    client: Client, root: User, folder: Folder
) -> None:
    (message,) = archived(folder, b"Subject: a secret of Alice\r\n\r\nx")
    assert client.get(f"/admin/ingestion/message/{message.pk}/change/").status_code == 200
    assert client.get(f"/admin/ingestion/message/{message.pk}/raw/").status_code == 200
    _, plain = api_keys.create(root, name="backup", actor=SYSTEM)
    key = ApiKey.objects.get()
    program = APIClient(REMOTE_ADDR=ADDRESS)
    program.credentials(HTTP_AUTHORIZATION=f"Bearer {plain}")
    answer = program.get(f"/api/v1/emails/{message.pk}/raw")
    assert answer.status_code == 200
    assert answer["Cache-Control"] == "private, no-store"
    reads = AuditEvent.objects.filter(action="message.read").order_by("id")
    assert [(event.changes["how"], event.key) for event in reads] == [
        ("page", ""),
        ("raw", ""),
        ("raw", str(key)),
    ]
    about = (folder.mailbox.source_id, "root", ADDRESS)
    assert {(event.source_id, event.actor, event.address) for event in reads} == {about}
    assert "a secret of Alice" not in str(list(reads.values()))
    used = ApiKey.objects.get().last_used_at
    assert used is not None
    program.get(f"/api/v1/emails/{message.pk}")
    assert ApiKey.objects.get().last_used_at == used, "one write a minute"
    ApiKey.objects.update(last_used_at=timezone.now() + dt.timedelta(days=365))
    program.get(f"/api/v1/emails/{message.pk}")
    used = ApiKey.objects.get().last_used_at
    assert used is not None
    assert used <= timezone.now(), "the clock was ahead then"
    assert "backup" in client.get("/admin/ingestion/auditevent/").content.decode()


# -- kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM ingestion_auditevent",
        "UPDATE ingestion_auditevent SET actor = 'somebody else'",
        "UPDATE ingestion_auditevent SET user_id = NULL, address = NULL",
        "TRUNCATE ingestion_auditevent",
    ],
)
def test_the_database_refuses_to_change_what_was_recorded(root: User, statement: str) -> None:
    audit(Actor("root", root, ADDRESS), "session.begin", None, {})
    connection.check_constraints()  # a TRUNCATE waits for none
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        connection.cursor().execute(statement)
    assert recorded()[-1] == ("session.begin", "root", ADDRESS)


def test_an_event_outlives_its_user(root: User) -> None:
    audit(Actor("root", root, ADDRESS), "session.begin", None, {})
    root.delete()
    event = AuditEvent.objects.latest("id")
    assert (event.actor, event.user) == ("root", None)


def test_every_kind_of_event_is_in_one_choice_of_the_list() -> None:
    """Made something new that is recorded? Say in `admin.history.ABOUT` what it is about."""
    code = "".join(path.read_text() for path in Path(ingestion.__file__).parent.rglob("*.py"))
    kinds = set(re.findall(r'\baudit\([^"]*?"([a-z_]+)\.', code)) | {"user", "group"}
    assert len(kinds) > 10
    offered = [kind for _, named in history.ABOUT.values() for kind in named]
    assert sorted(offered) == sorted(kinds)


def test_what_is_selected_can_be_taken_out(client: Client) -> None:
    audit(Actor("=1+1"), "source.create", None, {"name": 'Müller, "Jan"'})
    audit(Actor("ann"), "message.read", None, {"how": "page"})
    answer = client.get("/admin/ingestion/auditevent/csv/?about=source")
    lines = list(csv.reader(b"".join(answer.streaming_content).decode().splitlines()))  # type: ignore[attr-defined] # a streaming answer
    assert [line[1:3] for line in lines[1:]] == [["source.create", "'=1+1"]]
    assert json.loads(lines[1][-1]) == {"name": 'Müller, "Jan"'}
    assert recorded()[-1] == ("audit.export", "root", ADDRESS)
    listed = client.get("/admin/ingestion/auditevent/?about=message")
    assert 'href="csv/?about=message"' in listed.content.decode()
    assert "source.create" not in listed.content.decode()
    audit(Actor("ann"), "export.stream", None, {"how": "mbox"})
    listed = client.get("/admin/ingestion/auditevent/?about=message")
    assert "export.stream" in listed.content.decode()
    User.objects.create_user("staff", password=RIGHT, is_staff=True)
    other = Client(REMOTE_ADDR=ADDRESS)
    other.login(username="staff", password=RIGHT)
    assert other.get("/admin/ingestion/auditevent/csv/").status_code == 403
