"""A source's page without a browser: its tabs, what mends it, deletion by name, bulk reports."""

import datetime as dt
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from ingestion.models import AuditEvent, IngestionSource, Mailbox, Proof, Run, StatusChange
from tests.e2e.rows import LATER, a_mailbox, a_source

SOURCES = "/admin/ingestion/ingestionsource/"


def _get(client: Client, source: IngestionSource, **asked: str) -> str:
    answer = client.get(f"{SOURCES}{source.pk}/change/", asked)
    assert answer.status_code == 200
    return answer.content.decode()


def test_each_tab_shows_its_own_and_the_state_is_above_all(
    admin_client: Client, admin_user: User
) -> None:
    source = a_source(admin_user)
    a_mailbox(source, "ada@example.com", last_synced_at=timezone.now())
    StatusChange.objects.create(source=source, from_status="importing", to_status="active")
    Proof.objects.create(kind="verification", source=source, messages=7, problems=0)
    of_tab = {
        "": "Archived per day",
        "settings": "generic_imap__host",
        "messages": "Read this mail",
        "history": "7 messages, bit for bit",
        "of-another-release": "Archived per day",
    }
    for tab, own in of_tab.items():
        page = _get(admin_client, source, tab=tab)
        assert 'data-live="status"' in page
        assert own in page, tab
        assert ('name="_save"' in page) is (tab == "settings")
        others = {text for text in of_tab.values() if text != own}
        assert not any(text in page for text in others), tab


def test_edit_host_leads_to_the_field_with_the_cursor_in_it(
    admin_client: Client, admin_user: User
) -> None:
    source = a_source(admin_user, status="error", status_code="unknown_host", proven_at=None)
    page = _get(admin_client, source)
    address = f"{SOURCES}{source.pk}/change/?tab=settings&field=generic_imap__host"
    assert f'href="{address.replace("&", "&amp;")}"' in page
    assert page.count("is-primary") == 1, "Resume does not stand out beside it."
    settings = admin_client.get(address).content.decode()
    (field,) = (part for part in settings.split("<input") if 'name="generic_imap__host"' in part)
    assert "autofocus" in field

    shown = admin_client.get(f"{SOURCES}live/?id={source.pk}").json()["sources"][str(source.pk)]
    assert (shown["mend"]["label"], shown["mend"]["url"], shown["next"]) == (
        "Edit host",
        address,
        "",
    )


def test_who_may_look_only_sees_what_is_set_and_no_form(admin_user: User, owner: User) -> None:
    source = a_source(admin_user)
    owner.is_staff = True
    owner.save()
    owner.user_permissions.add(Permission.objects.get(codename="view_ingestionsource"))
    client = Client()
    client.force_login(owner)
    page = _get(client, source, tab="settings")
    assert "imap.example.com" in page
    assert 'name="name"' not in page
    assert "Read this mail" not in _get(client, source, tab="messages")
    assert "Who did what" not in _get(client, source, tab="history")
    assert client.get(f"{SOURCES}{source.pk}/delete/").status_code == 403


def test_all_numbers_of_a_running_import_are_the_same_and_live(
    admin_client: Client, admin_user: User
) -> None:
    source = a_source(admin_user, status="importing", imported_at=None)
    now = timezone.now()
    run = Run.objects.create(
        source=source,
        kind="import",
        actor="admin",
        discovered_at=now,
        not_before=now + LATER,
        messages_total=1_000,
        messages_done=400,
    )
    mailbox = a_mailbox(source, run=run)

    def live() -> dict[str, Any]:
        shown = admin_client.get(f"{SOURCES}live/?id={source.pk}").json()
        return dict(shown["sources"][str(source.pk)])

    page = _get(admin_client, source)
    assert page.count("400 of 1,000 messages") == 2, "The bar, and the list of runs."
    Run.objects.filter(pk=run.pk).update(messages_done=500)
    Mailbox.objects.filter(pk=mailbox.pk).update(message_count=500)
    IngestionSource.objects.filter(pk=source.pk).update(message_count=500)
    state = live()
    assert state["run"]["text"] == state["texts"]["counted"]
    assert "500 of 1,000" in state["texts"]["counted"]
    assert state["texts"]["messages"] == state["texts"][f"mailbox:{mailbox.pk}"] == "500"


def test_a_source_is_deleted_once_its_name_is_typed(admin_client: Client, admin_user: User) -> None:
    source = a_source(admin_user, "Ada's mail", message_count=1_234, archived_bytes=5_000_000)
    a_mailbox(source)
    address = f"{SOURCES}{source.pk}/delete/"
    asked = admin_client.get(address).content.decode()
    assert "1,234 archived messages, 5.0 MB, 1 mailbox" in asked

    for given in ({}, {"typed": "yes"}, {"typed": "yes", f"name-{source.pk}": "ada's mail"}):
        page = admin_client.post(address, {"post": "yes", **given}).content.decode()
        assert IngestionSource.objects.filter(deleted_at=None).exists(), given
        assert ("That is not its name." in page) is ("typed" in given)

    done = admin_client.post(
        address, {"typed": "yes", f"name-{source.pk}": "Ada's mail"}, follow=True
    )
    assert "“Ada&#x27;s mail”: Deleted." in done.content.decode()
    assert not IngestionSource.objects.filter(deleted_at=None).exists()
    assert AuditEvent.objects.get(action="source.delete").actor == "admin"


def test_in_bulk_one_wrong_name_keeps_them_all(admin_client: Client, admin_user: User) -> None:
    sources = [a_source(admin_user, name) for name in ("A", "B")]
    kept = a_source(admin_user, "Kept")
    chosen = {"action": "delete_selected", "_selected_action": [str(s.pk) for s in sources]}
    names = {f"name-{source.pk}": source.name for source in sources}

    asked = admin_client.post(SOURCES, chosen).content.decode()
    assert all(f'name="{field}"' in asked for field in names)
    wrong = names | {f"name-{sources[0].pk}": "B"}
    admin_client.post(SOURCES, chosen | {"typed": "yes"} | wrong)
    assert IngestionSource.objects.filter(deleted_at=None).count() == 3

    report = admin_client.post(SOURCES, chosen | {"typed": "yes"} | names, follow=True)
    assert list(IngestionSource.objects.filter(deleted_at=None)) == [kept]
    assert "2 deleted, 0 refused." in report.content.decode()


def test_a_bulk_action_reports_each_line_and_does_nothing_again(
    admin_client: Client, admin_user: User
) -> None:
    running, pending = a_source(admin_user, "Running"), a_source(admin_user, "New")
    IngestionSource.objects.filter(pk=pending.pk).update(status="pending_auth")
    chosen = [str(running.pk), str(pending.pk)]
    report = admin_client.post(
        SOURCES, {"action": "pause_selected", "_selected_action": chosen}, follow=True
    )
    assert report.redirect_chain[-1][0] == f"{SOURCES}report/"
    page = report.content.decode()
    assert "1 done, 1 refused." in page
    assert page.index("still being checked") < page.index("Paused. Running work stops")
    changes = StatusChange.objects.count()
    assert admin_client.get(f"{SOURCES}report/").status_code == 200
    assert StatusChange.objects.count() == changes
    other = Client()
    other.force_login(admin_user)
    assert other.get(f"{SOURCES}report/").status_code == 302, "Nobody did anything there."


def test_the_tabs_cost_the_same_with_any_number_of_rows(
    admin_client: Client, admin_user: User, django_assert_max_num_queries: Any
) -> None:
    source = a_source(admin_user)
    start = timezone.now() - dt.timedelta(days=1)
    for number in range(12):
        a_mailbox(source, f"{number}@example.com")
        Proof.objects.create(kind="verification", source=source, messages=1, problems=0)
        Run.objects.create(
            source=source,
            kind="sync",
            status="completed",
            messages_new=1,
            started_at=start + dt.timedelta(minutes=number),
            finished_at=start,
        )
    admin_client.get("/admin/")
    for tab in ("", "settings", "messages", "history"):
        with django_assert_max_num_queries(17):
            _get(admin_client, source, tab=tab)
