"""What Graph refuses of one message, folder or person, and how much else that stops: nothing."""

from typing import Any

import pytest

from connectors.errors import NeedsReauth, Unavailable
from connectors.microsoft import refusals
from connectors.types import Missing, RawMessage
from ingestion.models import FailedMessage, Folder
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph.connectors import build, fetched, opened
from tests.servers.graph.sources import (
    box,
    fill,
    imported,
    labels_of,
    path_of,
    placed,
    refuse,
    states,
    synced,
)
from tests.servers.graph.words import error

pytestmark = pytest.mark.django_db(transaction=True)


# -- messages --------------------------------------------------------------------------------------


def test_one_forbidden_message_fails_alone(server: GraphServer, alice: User, make: Any) -> None:
    ids = fill(box(alice), 20)
    source = make()
    refuse(server, lambda path: path.endswith(f"{ids[7]}/$value"), 403, "ErrorAccessDenied")
    imported(source)
    assert placed() == set(ids) - {ids[7]}
    assert FailedMessage.objects.get().remote_id == ids[7]
    assert states()["alice"][0] == "active"


def test_a_message_that_a_replica_has_not_got_yet_is_archived(
    server: GraphServer, alice: User, make: Any
) -> None:
    ids = fill(box(alice), 3)
    source = make()
    unknown = {f"{name}/$value" for name in ids[:2]}
    late = f"{ids[0]}/$value"

    def intercept(request: Request, user: User | None) -> Response | None:
        asked = next((name for name in unknown if path_of(request).endswith(name)), None)
        if asked == late:
            unknown.remove(late)
        return error(404, "ErrorItemNotFound", "Not found in the store.") if asked else None

    server.faults.intercept = intercept
    assert imported(source).message == "2 archived, 1 deleted at the provider meanwhile."
    assert placed() == {ids[0], ids[2]}


def test_messages_that_can_not_be_converted_are_asked_for_once_and_are_no_outage(
    server: GraphServer, alice: User
) -> None:
    ids = fill(box(alice), 15)
    refuse(server, lambda path: "$value" in path, 500, "ErrorMimeContentConversionFailed")
    with build(server) as connector, opened(connector, alice) as session:
        found = fetched(session)
    assert found.keys() == set(ids)
    assert all(isinstance(answer, Missing) for answer in found.values())
    assert "S/MIME" in str(found[ids[0]].error)
    assert server.count("/$value") == 15


def test_any_number_of_messages_that_are_too_large_is_no_outage(
    server: GraphServer, alice: User
) -> None:
    ids = [box(alice).deliver(b"x" * 30_000) for _ in range(12)]
    limit = {"max_message_bytes": 10_000}
    with build(server, environment=limit) as connector, opened(connector, alice) as session:
        assert fetched(session).keys() == set(ids)


def test_bodies_that_are_all_refused_are_an_outage(server: GraphServer, alice: User) -> None:
    fill(box(alice), 30)
    refuse(server, lambda path: "$value" in path, 403, "ErrorAccessDenied")
    with (
        build(server) as connector,
        opened(connector, alice) as session,
        pytest.raises(Unavailable) as caught,
    ):
        fetched(session)
    assert caught.value.code == "refuses_all"
    assert server.count("/$value") < 20


def test_a_body_without_a_byte_is_no_message(server: GraphServer, alice: User) -> None:
    ids = fill(box(alice), 4)
    server.faults.intercept = lambda request, _user: (
        Response(200, b"") if path_of(request).endswith(f"{ids[2]}/$value") else None
    )
    with build(server) as connector, opened(connector, alice) as session:
        found = fetched(session)
    assert found.keys() == set(ids)
    missing = {name: a.error for name, a in found.items() if isinstance(a, Missing)}
    assert {name: getattr(error, "code", "") for name, error in missing.items()} == {
        ids[2]: "empty"
    }


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "ErrorAccessDenied"),
        (400, "ErrorInvalidRequest"),
        (404, "ResourceNotFound"),
        (404, "ErrorItemNotFound"),
        (500, "ErrorInternalServerError"),
    ],
)
def test_one_refused_folder_is_told_and_the_others_are_read(
    server: GraphServer, alice: User, make: Any, status: int, code: str
) -> None:
    bad, good = box(alice).add_folder("Bad"), box(alice).add_folder("Good")
    box(alice).deliver(b"Subject: 1\r\n\r\n1", bad)
    wanted = {box(alice).deliver(b"Subject: 2\r\n\r\n2", good), *fill(box(alice), 3)}
    source = make()
    refuse(server, lambda path: f"{bad.id}/messages" in path, status, code)
    run = imported(source)
    assert placed() == wanted
    assert states()["alice"][0] == "active"
    assert run.status == "incomplete"
    assert Folder.objects.get(remote_id=bad.id).last_error_code == "folder_refused"


def test_a_folder_deleted_since_it_was_listed_stops_nothing(
    server: GraphServer, alice: User, make: Any
) -> None:
    old, last = box(alice).add_folder("Old"), box(alice).add_folder("Zed")
    box(alice).deliver(b"Subject: 1\r\n\r\n1", old)
    wanted = {box(alice).deliver(b"Subject: 2\r\n\r\n2", last), *fill(box(alice), 3)}
    source = make()
    gone = f"mailFolders/{old.id}"
    refuse(server, lambda path: gone in path, 404, "ErrorSyncFolderNotFound")
    imported(source)
    assert placed() == wanted
    assert states()["alice"][0] == "active"
    assert Folder.objects.get(remote_id=old.id).last_error_code == "folder_gone"


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "ErrorQuotaExceeded"), (500, "ErrorCorruptData")],  # full; fails at one item
)
def test_a_folder_is_listed_without_delta_query_where_that_alone_fails(
    server: GraphServer, alice: User, make: Any, status: int, code: str
) -> None:
    ids = fill(box(alice), 20)
    source = make()
    refuse(server, lambda path: "/delta" in path, status, code)
    assert imported(source).status == "completed"
    assert placed() == set(ids)
    later = box(alice).deliver(b"Subject: later\r\n\r\nlater")
    synced(source)
    assert placed() == {*ids, later}
    ids.append(later)
    server.faults.intercept = lambda _request, _user: None  # somebody mended it
    new = box(alice).deliver(b"Subject: new\r\n\r\nnew")
    synced(source)
    assert placed() == {*ids, new}


def test_a_page_that_fails_for_its_size_is_asked_for_in_smaller_ones(
    server: GraphServer, alice: User
) -> None:
    ids = fill(box(alice), 25)

    def intercept(request: Request, user: User | None) -> Response | None:
        large = "maxpagesize=10" in request.headers.get("prefer", "")
        return error(500, "ErrorCorruptData", "x") if "/delta" in request.path and large else None

    server.faults.intercept = intercept
    with build(server) as connector, opened(connector, alice) as session:
        found = fetched(session)
    assert found.keys() == set(ids)
    assert all(isinstance(answer, RawMessage) for answer in found.values())
    assert not [entry for entry in server.log if entry.path.endswith("/messages")]  # no plain one


def test_a_page_that_comes_again_under_ever_new_links_ends(
    server: GraphServer, alice: User, make: Any
) -> None:
    fill(box(alice), 2)
    numbers = iter(range(1_000))

    def intercept(request: Request, user: User | None) -> Response | None:
        if "/delta" not in request.path or box(alice).inbox.id not in path_of(request):
            return None
        link = f"{server.origin}{request.path}?$skiptoken={next(numbers)}"
        return Response.json({"value": [{"id": "AAA="}], "@odata.nextLink": link})

    source = make()
    server.faults.intercept = intercept
    assert imported(source).status == "incomplete"
    assert next(numbers) < 200


@pytest.mark.parametrize("code", ["ErrorCorruptData", "ErrorInternalServerError"])
def test_one_message_whose_properties_are_damaged_does_not_hold_up_its_folder(
    server: GraphServer, alice: User, make: Any, code: str
) -> None:
    ids = fill(box(alice), 5)
    box(alice).mark(ids[2], flagged=True)
    source = make()
    imported(source)
    for name in ids[2:4]:
        box(alice).mark(name, is_read=True)  # delta tells it in part, so its rest is asked for
    new = box(alice).deliver(b"Subject: new\r\n\r\nnew")
    refuse(server, lambda path: path.endswith(f"/messages/{ids[2]}"), 500, code)
    assert synced(source).status == "completed"
    assert placed() == {*ids, new}
    assert labels_of(ids[3]) == ["\\Seen"]
    assert labels_of(ids[2]) == ["\\Flagged"]  # none that was not told is taken away


def test_properties_that_all_fail_are_an_outage(
    server: GraphServer, alice: User, make: Any
) -> None:
    ids = fill(box(alice), 12)
    source = make()
    imported(source)
    for name in ids:
        box(alice).mark(name, is_read=True)
    before = server.count("/messages/")
    refuse(server, lambda path: "/messages/A" in path, 500, "ErrorInternalServerError")
    assert synced(source).status == "incomplete"
    assert server.count("/messages/") - before < 100
    assert labels_of(ids[0]) == []
    server.faults.intercept = lambda _request, _user: None
    synced(source)
    assert {tuple(labels_of(name)) for name in ids} == {("\\Seen",)}


# -- removals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("asked", [True, False])
def test_a_message_moved_away_and_back_stays_where_it_is(
    server: GraphServer, alice: User, make: Any, many: bool, asked: bool
) -> None:
    ids = fill(box(alice), 5)
    source = make()
    imported(source)
    inbox = box(alice).inbox
    new = box(alice).deliver(b"Subject: new\r\n\r\nnew")
    box(alice).remove(ids[1])
    removed = [*ids[:2], new] + ([f"AAgone{number}=" for number in range(300)] if many else [])

    def intercept(request: Request, user: User | None) -> Response | None:
        """Tell, as Graph is reported to, nothing but that they were removed."""
        if not asked and _is_about_a_message(request):
            return error(403, "ErrorAccessDenied", "x")
        if "deltatoken" not in "".join(request.query) or inbox.id not in path_of(request):
            return None
        link = f"{server.origin}{request.path}?$deltatoken={request.query['$deltatoken']}"
        value = [{"@removed": {"reason": "deleted"}, "id": remote_id} for remote_id in removed]
        return Response.json({"value": value, "@odata.deltaLink": link})

    server.faults.intercept = intercept
    synced(source)
    assert placed() == {ids[0], *ids[2:], new}


def _is_about_a_message(request: Request) -> bool:
    return request.segments[-2] == "messages" and request.segments[-1] != "delta"


# -- people and logins -----------------------------------------------------------------------------


def test_one_person_whose_mail_is_refused_stops_no_other(server: GraphServer, make: Any) -> None:
    users = [server.tenant.add_user(name) for name in ("ann", "bob", "carol")]
    source = make()
    for user in users:
        fill(box(user), 3)
    imported(source)
    server.faults.intercept = lambda request, user: (
        error(401, "UnknownError", "")
        if user is users[1] and "mailFolders" in request.path
        else None
    )
    new = box(users[2]).deliver(b"Subject: new\r\n\r\nnew")
    synced(source)
    assert new in placed()
    assert {name: state for name, (state, _) in states().items()} == {
        "ann": "active",
        "bob": "unavailable",
        "carol": "active",
    }


@pytest.mark.parametrize("code", [900384, 90038, 90043])
def test_a_tenant_of_another_cloud_needs_a_person(code: int) -> None:
    meaning = refusals.of_login(400, {}, {"error": "invalid_request", "error_codes": [code]})
    assert isinstance(meaning, NeedsReauth)
    assert "Check cloud" in str(meaning)


@pytest.mark.parametrize("code", [90012, 70012, 90055, 90025, 90090])
@pytest.mark.parametrize("error", ["invalid_request", "invalid_grant"])
def test_what_passes_at_the_login_is_waited_for(code: int, error: str) -> None:
    meaning = refusals.of_login(400, {}, {"error": error, "error_codes": [code]})
    assert isinstance(meaning, Unavailable)


def test_a_login_that_fails_with_a_code_unknown_to_us_is_out_of_order() -> None:
    meaning = refusals.of_login(504, {}, {"error": "invalid_grant", "error_codes": [123456]})
    assert isinstance(meaning, Unavailable)


@pytest.mark.parametrize("code", [50034, 700030, 500014, 50053, 50105, 530003, 90036])
def test_what_to_do_is_said_for_known_codes(code: int) -> None:
    meaning = refusals.of_login(400, {}, {"error": "server_error", "error_codes": [code]})
    assert isinstance(meaning, NeedsReauth)
    assert meaning.code == f"aadsts{code}"
