"""The search of everything without a browser: what is found, and by whom."""

from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from tests.e2e.rows import a_folder, a_mailbox, a_source

FIND = "/admin/find/"


def _found(client: Client, asked: str) -> str:
    answer = client.get(FIND, {"q": asked}, headers={"X-Part": "found"})
    assert answer.status_code == 200
    return answer.content.decode()


def test_it_finds_sources_mailboxes_folders_pages_and_leads_to_the_mail(
    admin_client: Client, admin_user: User
) -> None:
    source = a_source(admin_user, "Sales <b>")
    mailbox = a_mailbox(source, "ada.sales@example.com")
    folder = a_folder(mailbox, "Projects/Sales 2026")
    a_folder(mailbox, "Sales, gone", removed_at=timezone.now())
    gone = a_source(admin_user, "Sales gone", deleted_at=timezone.now())
    a_mailbox(gone, "sales.gone@example.com")

    found = _found(admin_client, "SALES")

    for row in (source, mailbox, folder):
        assert f"/{row.pk}/change/" in found
    assert "gone" not in found
    assert "Sales &lt;b&gt;" in found
    assert '"/admin/mail/?q=SALES"' in found
    assert "ada.sales" in _found(admin_client, "sales example"), "Each word, in any order."
    assert f"/{source.pk}/change/" in _found(admin_client, str(source.pk))
    pages = _found(admin_client, "")
    assert "API keys" in pages
    assert "Search mail" not in pages
    assert "Nothing is called that." not in _found(admin_client, "zzz"), "Mail may have it."
    assert "Webhooks" in _found(admin_client, "webh")


def test_each_finds_what_they_may_see_and_no_more(admin_user: User, owner: User) -> None:
    source = a_source(admin_user, "Sales")
    a_folder(a_mailbox(source, "sales@example.com"), "Sales 2026")
    owner.is_staff = True
    owner.save()
    client = Client()
    assert client.get(FIND).status_code == 302
    client.force_login(owner)
    assert "change/" not in _found(client, "sales")
    assert "Nothing is called that." in _found(client, "sales"), "No mail either."

    seen = {
        "view_ingestionsource": ">Sales<",
        "view_mailbox": "sales@example.com",
        "view_folder": "Sales 2026",
        "view_message": "Search mail for",
    }
    for permission, text in seen.items():
        owner.user_permissions.set(Permission.objects.filter(codename=permission))
        found = _found(client, "sales")
        assert [other for other in seen.values() if other in found and other != text] in (
            [],
            ["sales@example.com"],  # whose folder it is
        )
        assert text in found


def test_it_costs_the_same_with_any_number_of_rows(
    admin_client: Client, admin_user: User, django_assert_max_num_queries: Any
) -> None:
    for number in range(9):
        a_folder(a_mailbox(a_source(admin_user, f"S{number}"), f"s{number}@x.org"), f"s{number}")
    admin_client.get("/admin/")
    # Session, user, and one of each kind.
    with django_assert_max_num_queries(5):
        found = _found(admin_client, "s")
        assert found.count("/change/") == 0, "A letter is in every name."
    with django_assert_max_num_queries(5):
        found = admin_client.get(FIND, {"q": "x.org"}, headers={"X-Part": "found"}).content.decode()
    assert found.count("/mailbox/") == 6


def test_without_the_script_it_is_a_page(admin_client: Client, admin_user: User) -> None:
    a_source(admin_user, "Sales")
    page = admin_client.get(FIND, {"q": "sal"}).content.decode()
    assert "<!DOCTYPE html>" in page
    assert 'value="sal"' in page
    assert ">Sales<" in page
