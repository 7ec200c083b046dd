"""How `make pytest` shares the tests among its processes."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.scheduling import Scheduling

PAGES = [f"tests/e2e/test_api.py::test_{number}" for number in range(4)]
OTHERS = [f"tests/mail/test_body.py::test_{number}" for number in range(4)]
#: Made once for the module: a whole service.
TOGETHER = [f"tests/services/engine/test_outages.py::test_{number}" for number in range(3)]


class Node:
    """A process that takes tests, and runs one when it is told."""

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.given: list[int] = []
        self.shutting_down = False

    def send_runtest_some(self, indexes: list[int]) -> None:
        self.given += indexes

    def shutdown(self) -> None:
        self.shutting_down = True


def shared(tests: list[str], *, nodes: int) -> list[list[str]]:
    """Return what each process has run, where all take the same time."""
    option = SimpleNamespace(loadscopereorder=False, tx=[f"{nodes}*popen"], maxprocesses=None)
    config: Any = SimpleNamespace(option=option, getvalue=lambda name: getattr(option, name))
    scheduling = Scheduling(cast("pytest.Config", config))
    processes = [Node(f"gw{number}") for number in range(nodes)]
    for node in processes:
        scheduling.add_node(cast("Any", node))
    for node in processes:
        scheduling.add_node_collection(cast("Any", node), tests)
    scheduling.schedule()
    done = [0] * nodes
    while scheduling.has_pending:
        for at, node in enumerate(processes):
            if done[at] < len(node.given):
                done[at] += 1
                scheduling.mark_test_complete(cast("Any", node), node.given[done[at] - 1])
    return [[tests[index] for index in node.given] for node in processes]


def test_two_of_four_processes_take_what_asks_for_the_service_and_the_others_what_does_not() -> (
    None
):
    tests = [test for pair in zip(OTHERS, PAGES, strict=True) for test in pair]
    with_service, too, without, neither = shared(tests, nodes=4)
    assert sorted(with_service + too) == PAGES
    assert sorted(without + neither) == OTHERS


def test_a_process_whose_own_kind_is_done_takes_what_is_left() -> None:
    many = [f"tests/mail/test_body.py::test_{number}" for number in range(40)]
    ran = shared([*PAGES, *many], nodes=4)
    assert sorted(test for each in ran for test in each) == sorted([*PAGES, *many])
    assert all(len(each) > 5 for each in ran)
    assert shared(PAGES, nodes=1) == [PAGES]


def test_a_file_whose_fixtures_are_made_once_stays_together_and_in_order() -> None:
    ran = shared([*TOGETHER, *OTHERS, *PAGES], nodes=4)
    (where,) = [each for each in ran if set(TOGETHER) & set(each)]
    assert where[: len(TOGETHER)] == TOGETHER
