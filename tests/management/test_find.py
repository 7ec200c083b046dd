"""find: what it prints for whom, and how it ends."""

import pytest

from tests.search.world import World, a_world, newest
from tests.servers.command_line import CommandLine

pytestmark = pytest.mark.django_db


@pytest.fixture
def world(db: None) -> World:
    return a_world(size=30)


def test_find_prints_lines_with_tabs_into_a_pipe(world: World, manage: CommandLine) -> None:
    done = manage.here("find", "subject:report", "after:2024", "--limit", "100")
    right = newest([known for known in world.known if "report" in known.subject])
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert (done.code, [line[0] for line in lines]) == (0, list(map(str, right)))
    assert len(manage.here("find", "subject:report", "--limit", "1").stdout.splitlines()) == 1
    eldest = manage.here("find", "subject:report", "--sort", "date", "--limit", "1", "--json")
    assert str(right[-1]) in eldest.stdout


def test_find_shows_what_a_user_may_see(world: World, manage: CommandLine) -> None:
    found = manage.here("find", "report OR -report", "--user", "ot", "--limit", "100", "--json")
    mine = newest(world.of(3))
    assert [email["id"] for email in found.json()["emails"]] == list(map(str, mine))
    assert {email["mailbox"] for email in found.json()["emails"]} == {"M3@example.com"}
    assert manage.here("find", "report", "--user", "nobody").code == 2


def test_find_ends_with_1_where_nothing_is_found(world: World, manage: CommandLine) -> None:
    done = manage.here("find", "nosuchword", "--json")
    assert (done.code, done.json()) == (1, {"emails": []})


def test_find_points_at_what_is_wrong(db: None, manage: CommandLine) -> None:
    done = manage.here("find", "report", "frm:ada")
    assert done.code == 2
    assert 'There is no operator "frm:"' in done.stderr
    assert "  report frm:ada\n         ^" in done.stderr
    assert manage.here("find", "a", "--limit", "0").code == 2
