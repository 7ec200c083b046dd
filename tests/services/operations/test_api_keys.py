"""Nobody makes a key with more rights than their own."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from ingestion.errors import InvalidInput
from ingestion.models import ApiKey
from ingestion.services.audit import Actor
from ingestion.services.operations import api_keys
from tests.servers import people

pytestmark = pytest.mark.django_db


@pytest.fixture
def keymaker() -> User:
    """Staff who may manage keys, and nothing else."""
    user = people.user("keymaker", is_staff=True)
    wanted = Permission.objects.filter(content_type__model="apikey")
    user.user_permissions.set(wanted.filter(codename__in=["add_apikey", "view_apikey"]))
    return user


@pytest.fixture
def root() -> User:
    return people.superuser("root")


def add(maker: User, **fields: object) -> Client:
    client = Client()
    client.force_login(maker)
    form = {"name": "mine", "scopes": ["read"], "expiry_0": "", "expiry_1": "", **fields}
    client.post("/admin/ingestion/apikey/add/", form)
    return client


def test_who_may_add_keys_makes_them_for_themselves_alone(keymaker: User, root: User) -> None:
    client = add(keymaker, user=root.pk)
    assert {key.user for key in ApiKey.objects.all()} <= {keymaker}
    page = client.get("/admin/ingestion/apikey/add/").content.decode()
    assert not re.search(r'name="user"', page)
    with pytest.raises(InvalidInput) as refused:
        api_keys.create(root, name="x", actor=Actor("keymaker", keymaker))
    assert "for yourself only" in str(refused.value)


def test_a_superuser_and_the_command_line_make_keys_for_others(keymaker: User, root: User) -> None:
    add(root, user=keymaker.pk)
    assert [key.user for key in ApiKey.objects.all()] == [keymaker]
    _, plain = api_keys.create(root, name="x", actor=Actor.system("create_api_key"))
    assert plain
