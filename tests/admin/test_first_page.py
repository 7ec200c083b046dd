"""The first page without a browser: what needs somebody, with the button that mends it."""

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from ingestion.admin.mending import Mend, edit
from ingestion.models import FailedMessage, IngestionSource
from tests.e2e.rows import LATER, a_folder, a_mailbox, a_source


@pytest.fixture
def client(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


def _page(client: Client) -> str:
    answer = client.get("/admin/")
    assert answer.status_code == 200
    return answer.content.decode()


def test_each_that_needs_somebody_has_the_button_that_mends_it(
    client: Client, admin_user: User
) -> None:
    wrong = {"status": "error", "status_message": "There is no host named x.", "proven_at": None}
    typo = a_source(admin_user, "Typo", status_code="unknown_host", **wrong)
    other = a_source(admin_user, "Other", status_code="no_mailbox", **wrong)
    failing = a_source(admin_user, "Failing")
    mailbox = a_mailbox(failing, last_synced_at=timezone.now())
    FailedMessage.objects.create(
        mailbox=mailbox, folder=a_folder(mailbox), remote_id="1", not_before=timezone.now() + LATER
    )

    page = _page(client)

    assert f"{_page_of(typo)}?tab=settings&amp;field=generic_imap__host" in page
    assert "Edit host" in page
    assert f'action="/admin/ingestion/ingestionsource/{other.pk}/do/"' in page
    assert 'value="resume"' in page
    assert 'value="retry"' in page
    assert page.index("Other") < page.index("Typo") < page.index("Failing"), "The worst first."


def test_who_may_change_no_source_sees_what_is_wrong_and_no_button(
    admin_user: User, owner: User
) -> None:
    a_source(admin_user, "Broken", status="error", status_message="No such host.")
    owner.is_staff = True
    owner.save()
    owner.user_permissions.add(Permission.objects.get(codename="view_ingestionsource"))
    client = Client()
    client.force_login(owner)

    page = _page(client)

    assert "No such host." in page
    assert 'name="verb"' not in page


def test_an_error_that_no_field_mends_has_no_edit(admin_user: User) -> None:
    def of(provider: str, code: str, status: str = "error") -> Mend | None:
        return edit(IngestionSource(provider=provider, status=status, status_code=code))

    def label(provider: str, code: str) -> str:
        found = of(provider, code)
        return found.label if found else ""

    assert label("generic_imap", "tls") == "Edit TLS"
    assert label("generic_imap", "needs_reauth") == "Edit password"
    assert label("google", "wrong_client") == "Edit OAuth client secret"
    assert label("microsoft", "aadsts7000222") == "Edit client secret"
    assert of("generic_imap", "no_folders") is None
    assert of("generic_imap", "tls", status="active") is None, "A server that is away comes back."
    assert of("of_no_package", "tls") is None


def _page_of(source: IngestionSource) -> str:
    return f"/admin/ingestion/ingestionsource/{source.pk}/change/"
