"""How much can be found is told everywhere in the same words, at the same cost."""

import datetime as dt
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from ingestion import index_health
from ingestion.admin import live
from ingestion.models import INDEX_VERSION, IngestionSource, Pack
from ingestion.services.operations import doctor
from tests.servers.command_line import CommandLine

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.django_db(transaction=True)

TOLD = "99,812 of 100,445 indexed, 9,812 to be read again, 3 with defects"


@pytest.fixture
def other(other_user: User) -> IngestionSource:
    """A source with packs of its own, which is none of `source`'s business."""
    other = IngestionSource.objects.create(
        owner=other_user, name="Other", provider="generic_imap", status="active"
    )
    pack(other, 7)
    return other


def pack(source: IngestionSource, messages: int, **index: int) -> Pack:
    named = {f"index_{name}": value for name, value in index.items()}
    return Pack.objects.create(source=source, size_bytes=1, message_count=messages, **named)


@pytest.fixture
def packs(source: IngestionSource, other: IngestionSource) -> None:
    pack(source, 90_000, version=INDEX_VERSION, defects=1)
    pack(source, 9_812, version=INDEX_VERSION - 1, defects=2)  # of the version before
    pack(source, 633, defects=5)


def test_of_a_source_and_of_all(source: IngestionSource, packs: None) -> None:
    [shown] = index_health.with_health(IngestionSource.objects.filter(pk=source.pk))
    assert str(index_health.of(shown)) == TOLD
    assert index_health.in_all(IngestionSource.objects.all()).messages == 100_452
    nothing = index_health.in_all(IngestionSource.objects.none())
    assert nothing == index_health.Health()
    IngestionSource.objects.filter(name="Other").update(name="Empty")
    Pack.objects.filter(source__name="Empty").delete()
    [empty] = index_health.with_health(IngestionSource.objects.filter(name="Empty"))
    assert index_health.of(empty) == index_health.Health()


def test_the_api_tells_it_of_ones_own_source(
    source: IngestionSource, packs: None, make_key: "Callable[[User], str]", other_user: User
) -> None:
    client = APIClient()
    address = f"/api/v1/ingestion/{source.pk}/stats"
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_key(source.owner)}")
    told = client.get(address).json()
    names = ("indexedMessages", "unindexedMessages", "outdatedMessages", "indexDefects")
    assert [told[name] for name in names] == [99_812, 633, 9_812, 3]
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {make_key(other_user)}")
    assert client.get(address).status_code == 404


def test_the_admin_tells_it_on_the_first_page_and_on_the_sources(
    source: IngestionSource, packs: None, admin_user: User
) -> None:
    client = Client()
    client.force_login(admin_user)
    assert (
        "99,812 of 100,452 indexed, 9,812 to be read again, 3 with defects"
        in client.get(reverse("admin:index")).text
    )
    page = client.get(reverse("admin:ingestion_ingestionsource_change", args=[source.pk]))
    assert "99,812 of 100,445, 9,812 to be read again, 3 with defects" in page.text
    [state] = live.states(IngestionSource.objects.all(), [source.pk]).values()
    assert state["texts"]["indexed"] == "99,812 of 100,445, 9,812 to be read again, 3 with defects"


def test_the_command_line_tells_it(
    manage: CommandLine, source: IngestionSource, packs: None
) -> None:
    assert "99,812 of 100,452 indexed" in manage.here("source_status").stdout
    assert (
        "99,812 of 100,445, 9,812 to be read again, 3 with defects"
        in manage.here("source_status", source.name).stdout
    )
    told = manage.here("source_status", "--json").json()["sources"]
    [mine] = [shown for shown in told if shown["name"] == source.name]
    assert mine["index"]["unindexedMessages"] == 633


def test_the_doctor_tells_what_waits_for_long_and_what_cant_be_read(
    source: IngestionSource, packs: None
) -> None:
    finding = doctor._index
    assert (finding().state, "99,812" in finding().message) == ("ok", True)
    long_ago = timezone.now() - dt.timedelta(hours=3)
    Pack.objects.filter(message_count=633).update(index_not_before=long_ago)
    assert finding().state == "warning"
    assert "(3 h ago)" in finding().message
    assert "'index'" in finding().advice
    Pack.objects.filter(message_count=633).update(index_attempts=2)
    assert finding().state == "problem"
    assert "1 pack can't be read" in finding().message
    IngestionSource.objects.update(deleted_at=timezone.now())
    assert finding().state == "ok"
