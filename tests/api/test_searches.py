"""/api/v1/searches: everybody's own."""

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from ingestion.errors import InvalidInput
from ingestion.models import AuditEvent, SavedSearch
from ingestion.services.audit import SYSTEM
from ingestion.services.operations import api_keys, saved_searches

pytestmark = pytest.mark.django_db


def program(user: User, *scopes: str) -> APIClient:
    _, plain = api_keys.create(user, name="p", scopes=scopes or ("read", "write"), actor=SYSTEM)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {plain}")
    return client


def test_a_search_is_saved_listed_and_deleted_by_its_owner(owner: User) -> None:
    client = program(owner)
    body = {"name": "Invoices", "query": " subject:invoice after:2024 "}
    answer = client.post("/api/v1/searches", body, format="json")
    assert answer.status_code == 201
    assert answer.json()["query"] == "subject:invoice after:2024"
    listed = client.get("/api/v1/searches").json()
    assert listed == [answer.json()]
    assert set(listed[0]) == {"id", "name", "query", "createdAt"}
    assert client.delete(f"/api/v1/searches/{listed[0]['id']}").status_code == 204
    assert client.get("/api/v1/searches").json() == []
    recorded = AuditEvent.objects.filter(action__startswith="search.").order_by("id")
    assert [event.action for event in recorded] == ["search.save", "search.delete"]


def test_nobody_sees_or_deletes_anothers(owner: User, other_user: User, admin_user: User) -> None:
    saved = saved_searches.save(owner, name="Mine", query="a", actor=SYSTEM)
    for stranger in (other_user, admin_user):
        client = program(stranger)
        assert client.get("/api/v1/searches").json() == []
        assert client.delete(f"/api/v1/searches/{saved.pk}").status_code == 404
    assert APIClient().get("/api/v1/searches").status_code == 401
    reader = program(owner, "read")
    assert len(reader.get("/api/v1/searches").json()) == 1
    assert reader.post("/api/v1/searches", {"name": "x", "query": "x"}).status_code == 403
    assert reader.delete(f"/api/v1/searches/{saved.pk}").status_code == 403
    for never in ("abc", "9" * 30):
        assert program(owner).delete(f"/api/v1/searches/{never}").status_code == 404
    assert SavedSearch.objects.get() == saved


@pytest.mark.parametrize(
    ("name", "query", "field", "said"),
    [
        (" ", "a", "name", "1 to 100 characters"),
        ("x\ny", "a", "name", "control characters"),
        ("x", "frm:ada", "query", 'no operator "frm:"'),
        ("x", "ab (", "query", "(at character 4)"),
        ("taken", "a", "name", "saved search of this name"),
    ],
)
def test_what_can_not_be_saved_is_refused_at_its_field(
    owner: User, name: str, query: str, field: str, said: str
) -> None:
    saved_searches.save(owner, name="taken", query="a", actor=SYSTEM)
    with pytest.raises(InvalidInput) as refused:
        saved_searches.save(owner, name=name, query=query, actor=SYSTEM)
    assert list(refused.value.errors) == [field]
    assert said in refused.value.errors[field][0]
    answer = program(owner).post("/api/v1/searches", {"name": name, "query": query}, format="json")
    assert (answer.status_code, answer.json()["errors"][0]["attr"]) == (400, field)


def test_a_search_is_renamed_but_not_to_the_name_of_another(owner: User, other_user: User) -> None:
    saved_searches.save(other_user, name="free", query="a", actor=SYSTEM)
    saved_searches.save(owner, name="taken", query="a", actor=SYSTEM)
    saved = saved_searches.save(owner, name="first", query="a", actor=SYSTEM)
    saved_searches.rename(saved, name="free", actor=SYSTEM)
    assert SavedSearch.objects.get(pk=saved.pk).name == "free"
    for name in ("taken", ""):
        with pytest.raises(InvalidInput):
            saved_searches.rename(saved, name=name, actor=SYSTEM)


def test_a_user_has_at_most_two_hundred(owner: User) -> None:
    rows = [SavedSearch(owner=owner, name=str(n), query="a") for n in range(200)]
    SavedSearch.objects.bulk_create(rows)
    with pytest.raises(InvalidInput, match="Delete one first"):
        saved_searches.save(owner, name="one more", query="a", actor=SYSTEM)
