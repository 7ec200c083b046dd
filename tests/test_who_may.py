"""Who may what: every address of the service, asked by a member of each ready group."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from ingestion.models import (
    AuditEvent,
    Export,
    FailedMessage,
    Installation,
    Message,
    Run,
    StatusChange,
    WebhookEndpoint,
)
from ingestion.services.archive.exports import jobs
from ingestion.services.audit import SYSTEM, audit
from ingestion.services.operations import api_keys, groups, webhooks
from tests.documents import a_file, indexed
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

pytestmark = pytest.mark.django_db

#: None of it is in any address or name: who is shown one of them is shown mail.
WORDS = ("zebrafish", "quokka", "narwhal", "capybara")
MAIL = (
    b"From: Quokka <quokka@example.com>\r\nTo: ada@example.com\r\nSubject: Zebrafish\r\n"
    b"Message-ID: <capybara@example.com>\r\n\r\nnarwhal"
)
#: Asked with each of these too; of these words none is looked for in what comes back.
_ASKED = ("?q=narwhal", "?s=narwhal", "?q=narwhal&highlight=true&facets=true&count=true")


@pytest.fixture(autouse=True)
def ready() -> None:
    groups.make_ready()


def member(of: str) -> User:
    user = User.objects.create_user(f"one-{of.lower()}", is_staff=of != "Owner")
    user.groups.add(Group.objects.get(name=of))
    return user


def client_of(user: User) -> Client:
    client = Client(REMOTE_ADDR="198.51.100.7")
    client.force_login(user)
    return client


@dataclasses.dataclass
class World:
    """A row of each kind, and all that addresses may name. `owner`: whose all of it is."""

    owner: User
    message: Message
    rows: dict[str, Any]

    def url(self, pattern: str) -> str:
        """Fill in an address with what stands in its place: `/admin/ingestion/run/{object_id}/`."""
        kinds = [row for kind, row in self.rows.items() if f"/{kind}/" in pattern]
        row = kinds[0] if kinds else self.message
        pk = getattr(row, "pk", row)
        words = {
            "pk": pk,
            "object_id": pk,
            "id": pk,
            "number": 1,
            "content_type_id": 1,
            "what": "test",
        }
        return pattern.format(**words, app_label="ingestion", url="nothing-here/")


def a_world(owner: User) -> World:
    source = a_source(owner)
    mailbox = a_mailbox(source)
    folder = a_folder(mailbox)
    first, second = archived(folder, MAIL, MAIL + b" again")
    for message in (first, second):
        indexed(message, "narwhal", thread=7, attachments=[a_file("capybara.pdf")])
    failed = FailedMessage.objects.create(
        mailbox=mailbox, folder=folder, remote_id="1:9", code="gone", reason="It is gone.",
        not_before=timezone.now(),
    )  # fmt: skip
    run = Run.objects.create(source=source, kind="sync", actor="tests", finished_at=timezone.now())
    hook, _ = webhooks.create(owner, url="https://example.org/", events=["archive.changed"], actor=SYSTEM)  # fmt: skip
    key, _ = api_keys.create(owner, name="program", actor=SYSTEM)
    change = StatusChange.objects.create(
        source=source, from_status="pending_auth", to_status="active", reason="", actor="tests"
    )
    export = jobs.start(owner, query="", format="eml", actor=SYSTEM)
    audit(SYSTEM, "export.stream", source, {"query": "narwhal"})
    rows = {
        "ingestionsource": source, "mailbox": mailbox, "folder": folder, "message": first,
        "failedmessage": failed, "run": run, "webhookendpoint": hook, "apikey": key,
        "statuschange": change, "export": export, "user": owner,
        "auditevent": AuditEvent.objects.latest("id"), "group": Group.objects.all()[0],
        "ingestion": source, "sources": source, "emails": first, "exports": export, "webhooks": hook, "searches": 1,
    }  # fmt: skip
    return World(owner, first, rows)


# -- doors ---------------------------------------------------------------------------------------

#: Address -> what GET answers an Administrator, an Operator, an Auditor, an Owner of something else.
#: 302: to the sign-in, or from a row that this user has none of. "-": 200, with no row in it.
DOORS: dict[str, tuple[Any, Any, Any, Any]] = {
    # a page                                    Adm  Ope  Aud  Own
    "/admin/": (200, 200, 200, 302),
    "/admin/ingestion/ingestionsource/": (200, 200, 200, 302),
    "/admin/ingestion/ingestionsource/add/": (200, 200, 403, 302),
    "/admin/ingestion/ingestionsource/{pk}/change/": (200, 200, 200, 302),
    "/admin/ingestion/ingestionsource/{pk}/delete/": (200, 200, 403, 302),
    "/admin/ingestion/mailbox/": (200, 200, 200, 302),
    "/admin/ingestion/run/": (200, 200, 200, 302),
    "/admin/ingestion/failedmessage/": (200, 200, 200, 302),
    "/admin/ingestion/webhookendpoint/": (200, 200, 403, 302),
    "/admin/mail/": (200, 403, 200, 200),  # an owner's has their own sources' mail
    "/admin/mail/{pk}/": (200, 403, 200, 404),
    "/admin/ingestion/message/": (200, 403, 200, 302),
    "/admin/ingestion/message/{pk}/change/": (200, 403, 200, 302),
    "/admin/ingestion/message/{pk}/raw/": (200, 403, 200, 404),
    "/admin/ingestion/message/{pk}/source/": (200, 403, 200, 404),
    "/admin/ingestion/message/{pk}/html/": (200, 403, 200, 404),
    "/admin/ingestion/message/{pk}/attachments/1/": (302, 403, 302, 404),
    "/admin/ingestion/message/{pk}/attachments/1/preview/": (200, 403, 200, 404),
    "/admin/ingestion/export/": (200, 403, 200, 302),
    "/admin/ingestion/export/add/": (200, 403, 200, 302),
    "/admin/ingestion/auditevent/": (200, 403, 200, 302),
    "/admin/ingestion/auditevent/csv/": (200, 403, 200, 302),
    "/admin/ingestion/apikey/": (200, 403, 200, 302),
    "/admin/ingestion/apikey/add/": (200, 403, 403, 302),
    "/admin/auth/user/": (200, 403, 200, 302),
    "/admin/auth/user/add/": (200, 403, 403, 302),
    "/admin/auth/group/": (200, 403, 200, 302),
    "/account/": (200, 200, 200, 200),
    "/account/second-step/": (200, 200, 200, 200),
    "/sources/{pk}/": (404, 404, 404, 404),  # their owner's alone
    "/api/v1/ingestion": (200, 200, 200, "-"),
    "/api/v1/ingestion/{pk}": (200, 200, 200, 404),
    "/api/v1/ingestion/{pk}/failures": (200, 200, 200, 404),
    "/api/v1/ingestion/{pk}/stats": (200, 200, 200, 404),
    "/api/v1/emails": (200, "-", 200, "-"),
    "/api/v1/emails?q=narwhal": (200, "-", 200, "-"),
    "/api/v1/emails/{pk}": (200, 404, 200, 404),
    "/api/v1/emails/{pk}/raw": (200, 404, 200, 404),
    "/api/v1/emails/{pk}/attachments/1": (404, 404, 404, 404),
    "/api/v1/emails/export?format=eml&q=": (200, 403, 200, 200),
    "/api/v1/changes": ("-", "-", "-", "-"),  # this test's transaction goes on: see test_feed
    "/api/v1/exports": ("-", "-", "-", "-"),
    "/api/v1/webhooks": (200, 200, "-", "-"),
}
_GROUPS = ("Administrator", "Operator", "Auditor", "Owner")


def shown(answer: Any) -> str:
    return (b"".join(answer) if answer.streaming else answer.content).decode(errors="replace")


def rows_in(answer: Any) -> int:
    """Return how many rows an answer of the API lists."""
    listed = json.loads(shown(answer))
    if isinstance(listed, dict):
        listed = listed.get("results", listed.get("changes"))
    return len(listed)


@pytest.mark.parametrize("column", range(4), ids=_GROUPS)
def test_each_door_lets_in_whom_it_should(column: int, archive_dir: object) -> None:
    world = a_world(User.objects.create_user("somebody"))
    client = client_of(member(_GROUPS[column]))
    found = {}
    for pattern in DOORS:
        answer = client.get(world.url(pattern))
        is_empty = answer.status_code == 200 and pattern.startswith("/api/") and not (
            answer["Content-Type"] != "application/json" or re.search("{pk}", pattern)
        ) and not rows_in(answer)  # fmt: skip
        found[pattern] = "-" if is_empty else answer.status_code
    assert found == {pattern: cells[column] for pattern, cells in DOORS.items()}


def test_nobody_comes_in_without_signing_in(archive_dir: object) -> None:
    world, client = a_world(User.objects.create_user("somebody")), Client()
    for pattern in DOORS:
        answer = client.get(world.url(pattern))
        assert answer.status_code == (401 if pattern.startswith("/api/") else 302), pattern


#: What POST answers. 400: it may, and the form or the body is at fault.
DEEDS: dict[str, tuple[int, int, int, int]] = {
    # an address                                Adm  Ope  Aud  Own
    "/admin/ingestion/ingestionsource/{pk}/do/": (404, 404, 404, 302),
    "/admin/ingestion/ingestionsource/try/": (200, 200, 403, 302),
    "/admin/mail/searches/": (302, 403, 302, 302),
    "/sources/{pk}/sync/": (404, 404, 404, 404),
    "/sources/{pk}/grant/": (404, 404, 404, 404),
    "/api/v1/ingestion": (400, 400, 403, 400),
    "/api/v1/ingestion/test": (400, 400, 403, 400),
    "/api/v1/ingestion/{pk}/pause": (200, 200, 403, 404),
    "/api/v1/ingestion/{pk}/failures/retry": (409, 409, 403, 404),
    "/api/v1/exports": (400, 403, 400, 400),
    "/api/v1/webhooks": (400, 400, 403, 400),
    "/api/v1/webhooks/{pk}/test": (403, 403, 404, 404),
}


@pytest.mark.parametrize("column", range(4), ids=_GROUPS)
def test_each_deed_is_done_by_whom_it_may(column: int, archive_dir: object) -> None:
    world = a_world(User.objects.create_user("somebody"))
    client = client_of(member(_GROUPS[column]))
    found = {}
    for pattern in DEEDS:
        answer = client.post(world.url(pattern), {}, content_type="application/json")
        found[pattern] = answer.status_code
    assert found == {pattern: cells[column] for pattern, cells in DEEDS.items()}


def test_the_address_of_a_webhook_is_shown_to_its_owner_alone() -> None:
    """It may have a token in it, by which anybody can post there."""
    mine = member("Operator")
    hook, _ = webhooks.create(mine, url="https://hooks.example.org/s3cret", events=[], actor=SYSTEM)
    pages = (
        *("/api/v1/webhooks", f"/api/v1/webhooks/{hook.pk}"),
        *(f"/admin/ingestion/webhookendpoint/{end}" for end in ("", f"{hook.pk}/change/")),
    )
    for user, is_shown in ((mine, True), (member("Administrator"), False)):
        client = client_of(user)
        for page in pages:
            said = shown(client.get(page))
            assert ("s3cret" in said, "hooks.example.org" in said) == (is_shown, True), page


def test_a_webhook_is_its_owners_alone_to_delete_and_goes_with_its_owner() -> None:
    mine = member("Operator")
    hook, _ = webhooks.create(mine, url="https://example.org/", events=[], actor=SYSTEM)
    administrator, pages = client_of(member("Administrator")), "/admin/ingestion/webhookendpoint/"
    alone = {"post": "yes"}
    many = alone | {"action": "delete_selected", "_selected_action": [str(hook.pk)]}
    assert administrator.post(f"{pages}{hook.pk}/delete/", alone).status_code == 403
    assert administrator.post(pages, many).status_code == 403
    assert client_of(mine).post(f"{pages}{hook.pk}/delete/", alone).status_code == 302
    assert not WebhookEndpoint.objects.exists()
    webhooks.create(mine, url="https://example.org/", events=[], actor=SYSTEM)
    assert administrator.post(f"/admin/auth/user/{mine.pk}/delete/", alone).status_code == 302
    assert not User.objects.filter(pk=mine.pk).exists()


# -- every address -------------------------------------------------------------------------------


def addresses(
    found: Any = None, before: str = "", places: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield all patterns of addresses, with the names of what is open in each."""
    for one in (found or get_resolver()).url_patterns:
        pattern = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", _plain(str(one.pattern)))
        inside = (*places, *re.findall(r"{(\w+)}", pattern))
        if isinstance(one, URLResolver):
            yield from addresses(one, before + pattern, inside)
        else:
            assert isinstance(one, URLPattern)
            yield f"/{before}{pattern}", inside


def _plain(pattern: str) -> str:
    """Write a regular expression as a path."""
    pattern = re.sub(r"\(\?P<(\w+)>(?:\[[^]]*\]|[^()])*\)", r"{\1}", pattern)
    return re.sub(r"/\?$|/\?(?=\$)|[\^$]|\\Z|\\", "", pattern)


_ENDLESS = "/events"  # tells as long as one listens: numbers alone


def test_no_address_tells_an_operator_of_mail(archive_dir: object) -> None:
    """Not of the mail of sources that they made, either. A new address is looked at by itself."""
    operator = member("Operator")
    worlds = [a_world(operator), a_world(User.objects.create_user("somebody"))]
    client = client_of(operator)
    client.raise_request_exception = False
    urls = set()
    for pattern, open_places in addresses():
        if pattern.endswith(_ENDLESS):
            continue
        urls |= {world.url(pattern) for world in worlds}
        urls |= {pattern + query for query in _ASKED if not open_places}
    assert len(urls) > 300
    for url in sorted(urls):
        said = shown(client.get(url)).lower()
        hidden = [word for word in WORDS if word not in url]
        assert [word for word in hidden if word in said] == [], url


def test_the_words_are_shown_to_who_may_read(archive_dir: object) -> None:
    """Else the test above looks for what is nowhere."""
    world = a_world(User.objects.create_user("somebody"))
    client = client_of(member("Auditor"))
    seen = ""
    for pattern in ("/admin/mail/{pk}/", "/api/v1/emails", "/api/v1/emails/{pk}"):
        seen += shown(client.get(world.url(pattern))).lower()
    assert [word for word in WORDS if word not in seen] == []


def test_who_searches_or_lists_mail_is_in_the_audit_once_for_each_request(
    archive_dir: object,
) -> None:
    a_world(User.objects.create_user("somebody"))
    client = client_of(member("Auditor"))
    urls = ("/api/v1/emails?q=narwhal&highlight=true", "/admin/mail/?q=narwhal")
    for url in (*urls, "/admin/ingestion/message/", "/admin/mail/?q=nowhere"):
        assert client.get(url).status_code == 200
    found = AuditEvent.objects.filter(action="message.list").order_by("id")
    assert [(event.actor, event.address) for event in found] == [
        ("one-auditor", "198.51.100.7")
    ] * 4
    told = [event.changes for event in found]
    assert ["narwhal" in what["query"] for what in told] == [True, True, False, False]
    assert [what["how"] for what in told] == ["api", "page", "table", "page"]
    assert [what["shown"] > 0 for what in told] == [True, True, True, False]


def test_a_file_made_before_the_right_was_lost_is_handed_out_no_more(archive_dir: object) -> None:
    operator = member("Auditor")
    export = jobs.start(operator, query="", format="eml", actor=SYSTEM)
    Export.objects.filter(pk=export.pk).update(
        state="done", of_all_mail=False, expires_at=timezone.now() + jobs.EXPIRES
    )
    operator.groups.set(Group.objects.filter(name="Operator"))
    client = client_of(User.objects.get(pk=operator.pk))
    answer = client.get(f"/api/v1/exports/{export.pk}/download")
    assert (answer.status_code, "may not see" in shown(answer)) == (409, True)


# -- the groups ----------------------------------------------------------------------------------


def names_of(group: str) -> set[str]:
    found = Group.objects.get(name=group).permissions.values_list(
        "content_type__app_label", "codename"
    )
    return {f"{app}.{codename}" for app, codename in found}


def anew() -> None:
    """As in a database that has never had groups."""
    Group.objects.all().delete()
    Installation.objects.update(groups={})


def test_groups_have_what_the_table_says() -> None:
    anew()
    groups.make_ready()
    for group in groups.GROUPS:
        assert names_of(group.name) == groups.permissions_of(group)
    assert not {name for name in names_of("Operator") if re.search("message$|export", name)} - {
        "ingestion.view_failedmessage"
    }
    assert {name.split(".")[1].split("_")[0] for name in names_of("Auditor")} == {
        *("view", "add", "delete"),
    }, "add and delete: their own exports"


def test_a_group_that_somebody_made_under_that_name_is_left_alone() -> None:
    anew()
    Group.objects.create(name="Operator")
    for _ in range(2):
        groups.make_ready()
        assert names_of("Operator") == set()
        assert names_of("Auditor") == groups.permissions_of(groups.AUDITOR)


def test_what_people_took_away_stays_away_and_what_is_new_comes() -> None:
    anew()
    groups.make_ready()
    operators = Group.objects.get(name="Operator")
    operators.permissions.remove(Permission.objects.get(codename="delete_ingestionsource"))
    Group.objects.get(name="Owner").delete()
    row = Installation.objects.get()
    row.groups["Auditor"].remove("ingestion.view_run")
    row.save()
    Group.objects.get(name="Auditor").permissions.clear()
    groups.make_ready()
    assert "ingestion.delete_ingestionsource" not in names_of("Operator")
    assert not Group.objects.filter(name="Owner").exists()
    assert names_of("Auditor") == {"ingestion.view_run"}


def test_every_kind_of_row_that_has_a_page_is_in_the_table() -> None:
    """Made something new? Say in `services.operations.groups.TABLE` who may what with it."""
    pages = {model._meta.label_lower for model in admin.site._registry}
    assert pages == set(groups.TABLE)


@pytest.mark.django_db(transaction=True)
def test_migrate_makes_the_groups_of_a_database_that_had_none() -> None:
    anew()
    call_command("migrate", verbosity=0)
    assert names_of("Operator") == groups.permissions_of(groups.OPERATOR)
    connection.close()  # its time-outs are off now
