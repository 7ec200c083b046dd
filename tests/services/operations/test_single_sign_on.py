"""Who comes in by what the provider told, and what they may do then."""

from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User

from ingestion import queries
from ingestion.services.operations import groups, single_sign_on
from ingestion.services.operations.single_sign_on import Claims, Refused
from tests.e2e.rows import a_folder, a_mailbox, a_source, archived

pytestmark = pytest.mark.django_db
MAIL = b"Subject: Bob's mail\r\n\r\nText"


@pytest.fixture(autouse=True)
def provider(settings: Any) -> None:
    groups.make_ready()
    settings.OIDC_GROUPS = {"ops": "Operator", "owners": "Owner"}


def told(*named: str, email: str = "") -> Claims:
    return Claims(email=email, is_verified=True, groups=frozenset(named))


@pytest.mark.parametrize("default", ["", "Owner", "Auditor"])
def test_an_operator_who_loses_the_group_reads_no_mail_of_the_sources_that_they_made(
    default: str, archive_dir: object, settings: Any
) -> None:
    settings.OIDC_DEFAULT_GROUP = default
    olga = User.objects.create_user("olga", is_staff=True)
    olga.groups.add(Group.objects.get(name="Operator"))
    archived(a_folder(a_mailbox(a_source(olga))), MAIL)
    assert not queries.visible_messages(olga).exists()

    with pytest.raises(Refused, match="in no group"):
        single_sign_on.admit(told(), olga)
    olga = User.objects.get()
    assert not olga.groups.exists()
    assert not queries.visible_messages(olga).exists(), "their key and other sessions go on"

    single_sign_on.admit(told("owners"), olga)
    olga = User.objects.get()
    assert (olga.is_staff, queries.visible_messages(olga).count()) == (False, 1)


def test_who_loses_all_groups_reads_no_mail_of_others_by_permissions_of_their_own(
    archive_dir: object,
) -> None:
    olga = User.objects.create_user("olga", is_staff=True)
    olga.groups.add(Group.objects.get(name="Operator"))
    olga.user_permissions.set(
        Permission.objects.filter(codename__in=["view_message", "view_ingestionsource"])
    )
    archived(a_folder(a_mailbox(a_source(User.objects.create_user("bob")))), MAIL)
    assert queries.visible_messages(olga).exists()

    with pytest.raises(Refused, match="in no group"):
        single_sign_on.admit(told(), User.objects.get(pk=olga.pk))
    olga = User.objects.get(pk=olga.pk)
    assert not olga.is_staff
    assert not queries.visible_messages(olga).exists()


@pytest.mark.parametrize("address", ["ops@acme-ınc.example", "opſ@acme-inc.example"])
def test_an_address_that_only_looks_alike_in_capitals_is_somebody_elses(address: str) -> None:
    """UPPER() of PostgreSQL makes I of a dotless i, and S of a long s."""
    ops = User.objects.create_user("ops", "Ops@acme-inc.example", is_staff=True)
    user, _ = single_sign_on.admit(told("ops", email=address), None)
    assert user is None
    user, _ = single_sign_on.admit(told("ops", email="OPS@ACME-INC.example"), None)
    assert user == ops
