"""Which process of `pytest --numprocesses` runs which test (conftest.py has them in this order)."""

import functools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

#: To start the whole service, and a browser, costs a process seconds of both cores.
_WITH_SERVICE = frozenset({"gw0", "gw1"})


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # untyped
    """Hands out one test after the other; but a file's all at once, where its fixtures are made once
    for the module: a whole service, say. (What `xdist_group` is for, which pytest 9.2 passes over.)

    Two processes take what asks for the service first, and the others what does not: as long as there
    is any, so that nobody waits.
    """

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        self._ended: dict[str, tuple[float, str]] = {}

    def mark_test_complete(
        self, node: "WorkerController", item_index: int, duration: float = 0
    ) -> None:
        nodeid = self.registered_collections[node][item_index]
        self._ended[node.gateway.id] = (time.monotonic(), nodeid)
        super().mark_test_complete(node, item_index, duration)

    def endings(self) -> Iterator[str]:
        """Say of each process how long before the last one it ended, and with what."""
        last = max((at for at, _ in self._ended.values()), default=0)
        for name, (at, nodeid) in sorted(self._ended.items()):
            yield f"{name} ended {last - at:.0f} s before the last, with {nodeid}"

    def _split_scope(self, nodeid: str) -> str:
        path = _path(nodeid)
        return path if _in_one_process(path) else nodeid

    def _assign_work_unit(self, node: "WorkerController") -> None:
        has_service = node.gateway.id in _WITH_SERVICE
        for scope in self.workqueue:
            if _asks_for_service(_path(scope)) == has_service:
                self.workqueue.move_to_end(scope, last=False)
                break
        super()._assign_work_unit(node)


@functools.cache
def _path(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@functools.cache
def _in_one_process(path: str) -> bool:
    return 'fixture(scope="module"' in Path(path).read_text()


@functools.cache
def _asks_for_service(path: str) -> bool:
    """Whether tests of the file may. (The process that hands out collects none: it sees no fixtures.)"""
    return path.startswith("tests/e2e/") or bool(
        re.search(r'\bservice: "?Service\b', Path(path).read_text())
    )
