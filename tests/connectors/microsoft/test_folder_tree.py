"""Folders of which Graph does not list the folders in them: these are told, all else is read."""

from typing import Any

import pytest

from connectors.errors import FolderRefused, MailboxUnavailable, Unavailable
from ingestion.models import Folder
from ingestion.services.archive import reconcile
from tests.servers.graph import Folder as Box
from tests.servers.graph import GraphServer, Request, Response, User
from tests.servers.graph.connectors import build, opened
from tests.servers.graph.sources import (
    body,
    box,
    fill,
    imported,
    placed,
    refuse,
    states,
    synced,
)
from tests.servers.graph.words import error

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def projects(alice: User) -> Box:
    return box(alice).add_folder("Projects")


@pytest.fixture
def alpha(alice: User, projects: Box) -> Box:
    return box(alice).add_folder("Alpha", parent=projects)


def _refuse_children(server: GraphServer, folder: Box, status: int = 403) -> None:
    below = f"/mailFolders/{folder.id}/childFolders"
    refuse(server, lambda path: path.endswith(below), status, "ErrorAccessDenied")


def _heal(server: GraphServer) -> None:
    server.faults.intercept = lambda _request, _user: None


@pytest.mark.parametrize("status", [400, 403, 500])
def test_folders_that_are_not_listed_are_told_and_all_others_are_read(
    server: GraphServer, alice: User, make: Any, projects: Box, alpha: Box, status: int
) -> None:
    hidden = box(alice).deliver(body(10), alpha)
    seen = {*fill(box(alice), 2), box(alice).deliver(body(11), projects)}
    source = make()
    _refuse_children(server, projects, status)
    run = imported(source)
    assert placed() == seen
    assert states()["alice"][0] == "active"
    assert run.status == "incomplete"
    assert "Projects/*" in run.message
    errors = [(report.path, bool(report.error)) for report in reconcile.reconcile(source)]
    assert ("Projects/*", True) in errors
    assert ("Projects", False) in errors
    _heal(server)
    assert synced(source).status == "completed"
    assert placed() == {*seen, hidden}


def test_known_folders_stay_and_are_read_while_they_are_not_listed(
    server: GraphServer, alice: User, make: Any, projects: Box, alpha: Box
) -> None:
    first = box(alice).deliver(body(1), alpha)
    source = make()
    imported(source)
    _refuse_children(server, projects)
    second = box(alice).deliver(body(2), alpha)
    for _ in range(3):
        assert synced(source).status == "incomplete"
    assert placed() == {first, second}
    row = Folder.objects.get(remote_id=alpha.id)
    assert (row.removed_at, row.missing_since, row.remote_count) == (None, None, 1)
    _heal(server)
    assert synced(source).status == "completed"
    assert placed() == {first, second}


def test_a_place_that_nobody_wants_is_not_told(
    server: GraphServer, alice: User, make: Any, projects: Box, alpha: Box
) -> None:
    ids = fill(box(alice), 2)
    box(alice).deliver(body(10), alpha)
    source = make({"excludeFolders": ["Projects*"]})
    _refuse_children(server, projects)
    assert imported(source).status == "completed"
    assert placed() == set(ids)


def test_a_listing_that_ends_in_its_middle_keeps_what_it_had(
    server: GraphServer, alice: User, projects: Box
) -> None:
    for number in range(251):
        box(alice).add_folder(f"Sub{number}", parent=projects)

    def intercept(request: Request, user: User | None) -> Response | None:
        return error(403, "ErrorAccessDenied", "x") if "$skip" in request.query else None

    server.faults.intercept = intercept
    with build(server) as connector, opened(connector, alice) as session:
        found = [folder for folder in session.folders() if folder.path.startswith("Projects/")]
        assert [folder.path for folder in found if folder.unlisted] == ["Projects/*"]
        assert len(found) == 251
        with pytest.raises(FolderRefused, match="can't be listed"):
            next(iter(session.changes(found[-1], None)))


@pytest.mark.parametrize(
    ("name", "problem"),
    [("archive", None), ("inbox", None), ("junkemail", MailboxUnavailable)],
)
def test_a_known_name_that_is_refused_matters_only_where_it_may_be_left_out(
    server: GraphServer, alice: User, name: str, problem: type[Exception] | None
) -> None:
    refuse(server, lambda path: path.endswith(f"/mailFolders/{name}"), 403, "ErrorAccessDenied")
    with build(server) as connector, opened(connector, alice) as session:
        if problem is None:
            paths = [folder.path for folder in session.folders()]
            assert {"Inbox", "Archive", "Junk Email"} <= set(paths)
        else:
            with pytest.raises(problem):
                session.folders()


def test_recoverable_items_that_are_refused_stop_nothing_else(
    server: GraphServer, alice: User, make: Any
) -> None:
    mailbox = box(alice)
    deleted = mailbox.add_folder(
        "Deletions", parent=mailbox.recoverable, well_known="recoverableitemsdeletions"
    )
    ids = {*fill(mailbox, 2), mailbox.deliver(body(10), deleted)}
    source = make(includeRecoverableItems=True)
    imported(source)
    refuse(server, lambda path: path.endswith("/recoverableitemsdeletions"), 403, "ErrorX")
    new = {mailbox.deliver(body(11), deleted), mailbox.deliver(body(12))}
    run = synced(source)
    assert run.status == "incomplete"
    assert "Recoverable Items/*" in run.message
    assert placed() == ids | new


def test_many_folders_that_can_not_be_asked_about_are_an_outage(
    server: GraphServer, alice: User
) -> None:
    for number in range(12):
        top = box(alice).add_folder(f"Top{number}")
        box(alice).add_folder("Sub", parent=top)
    refuse(server, lambda path: path.endswith("/childFolders"), 500, "ErrorInternalServerError")
    with (
        build(server) as connector,
        opened(connector, alice) as session,
        pytest.raises(Unavailable),
    ):
        session.folders()
    assert server.count("/childFolders") == 48  # four times each
