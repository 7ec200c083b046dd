"""The forms of users and groups."""

from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client

from ingestion.models import AuditEvent
from ingestion.services.operations import groups
from tests.e2e.rows import a_source

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("kind", [User, Group])
def test_saving_takes_away_no_permission_that_nobody_took_away(
    admin_client: Client, kind: type[User | Group]
) -> None:
    """Other apps' permissions are given by `manage.py shell`, or by a version before."""
    shown = Permission.objects.get(codename="view_message")
    elsewhere = Permission.objects.get(codename="view_session")
    other = Permission.objects.get(codename="add_session")
    name = "username" if kind is User else "name"
    row: Any = kind.objects.create(**{name: "carol"})
    field = "user_permissions" if kind is User else "permissions"
    rights = getattr(row, field)
    rights.set([shown, elsewhere])
    page = f"/admin/auth/{kind._meta.model_name}/{row.pk}/change/"

    form = admin_client.get(page).context["adminform"].form
    offered = set(form.fields[field].queryset)
    assert {shown, elsewhere} <= offered
    assert other not in offered, "this one nobody has, and it has no page"
    # A browser sends back what the list had chosen.
    chosen = [one.pk for one in form.initial[field] if one in offered]
    sent: dict[str, Any] = {name: "carla", field: chosen}
    if kind is User:
        sent |= {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    assert admin_client.post(page, sent).status_code == 302
    assert set(rights.all()) == {shown, elsewhere}
    changed = AuditEvent.objects.latest("pk").changes["changed"]
    assert not [one for one in changed if "permission" in one.lower()]

    assert admin_client.post(page, sent | {field: [shown.pk]}).status_code == 302
    assert set(rights.all()) == {shown}, "and what somebody took away is gone"


def test_who_may_not_read_the_mail_of_their_sources_stays_staff(admin_client: Client) -> None:
    """Without it they would read all of it, as owners do."""
    groups.make_ready()
    olga = User.objects.create_user("olga", is_staff=True)
    operators, owners = (Group.objects.get(name=name) for name in ("Operator", "Owner"))
    olga.groups.add(operators)
    page = f"/admin/auth/user/{olga.pk}/change/"
    sent: dict[str, Any] = {
        "username": "olga", "is_active": "on", "date_joined_0": "2026-01-01",
        "date_joined_1": "00:00:00",
    }  # fmt: skip
    source = a_source(olga)

    answer = admin_client.post(page, sent)
    assert "would read their mail" in answer.content.decode()
    olga.refresh_from_db()
    assert (olga.is_staff, list(olga.groups.all())) == (True, [operators])
    switched_off = {name: value for name, value in sent.items() if name != "is_active"}
    answer = admin_client.post(page, switched_off)
    assert "Turn off “Active” alone" in answer.content.decode(), "who turns it on again gives mail"
    assert admin_client.post(page, switched_off | {"is_staff": "on"}).status_code == 302
    assert admin_client.post(page, sent | {"groups": [owners.pk]}).status_code == 302
    olga.refresh_from_db()
    assert not olga.is_staff, "who puts them into this group means it"

    User.objects.filter(pk=olga.pk).update(is_staff=True)
    source.delete()
    assert admin_client.post(page, sent).status_code == 302
