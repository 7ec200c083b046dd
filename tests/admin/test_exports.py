"""The pages of exports without a browser: a user's own, asked for, followed, deleted."""

from django.contrib.auth.models import User
from django.test import Client

from ingestion.models import AuditEvent, Export

LIST = "/admin/ingestion/export/"


def test_a_search_is_exported_from_its_page_and_shown_to_its_owner_alone(
    admin_client: Client, admin_user: User, owner: User
) -> None:
    Export.objects.create(owner=owner, query="secret", format="eml")
    asked = admin_client.get(f"{LIST}add/?query=subject:invoice").content.decode()
    assert 'value="subject:invoice"' in asked
    assert "Start the export" in asked
    assert ">Save<" not in "".join(asked.split())

    wrong = admin_client.post(f"{LIST}add/", {"query": "frm:x", "format": "eml"})
    assert "There is no operator" in wrong.content.decode()
    done = admin_client.post(
        f"{LIST}add/", {"query": "subject:invoice", "format": "mbox"}, follow=True
    )

    mine = Export.objects.get(owner=admin_user)
    assert (mine.query, mine.format, mine.state) == ("subject:invoice", "mbox", "waiting")
    page = done.content.decode()
    assert "subject:invoice" in page
    assert "data-busy" in page
    assert "secret" not in page
    assert AuditEvent.objects.get(action="export.start").user == admin_user

    admin_client.post(f"{LIST}{mine.pk}/delete/", {"post": "yes"})
    assert not Export.objects.filter(owner=admin_user).exists()
    assert AuditEvent.objects.filter(action="export.delete").count() == 1


def test_a_finished_one_has_a_button_and_a_failed_one_its_reason(
    admin_client: Client, admin_user: User
) -> None:
    ready = Export.objects.create(
        owner=admin_user, format="eml", state="done", message="5 messages."
    )
    Export.objects.create(
        owner=admin_user, format="eml", state="failed", message="The disk is full."
    )
    Export.objects.create(
        owner=admin_user, format="eml", state="running", messages_total=8, messages_done=4
    )

    page = admin_client.get(LIST).content.decode()

    assert f'href="/api/v1/exports/{ready.pk}/download"' in page.replace("download/", "download")
    assert "The disk is full." in page
    assert "50 %" in page
