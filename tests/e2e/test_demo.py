"""`make demo` from end to end, with fewer messages."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.servers.stack import ROOT, descendants, free_port, wait_for

pytestmark = pytest.mark.long(seconds=40)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*arguments)` runs the demo in a directory of its own, on a free port."""
    directory = Path(tempfile.mkdtemp(prefix="demo-"))
    started = []

    def run(*arguments: str, messages: int = 200) -> "subprocess.Popen[str]":
        fixed = ("--messages", str(messages), "--directory", str(directory / "var"))
        process = subprocess.Popen(
            [sys.executable, "-m", "ingestion_project.demo", *fixed, *arguments],
            cwd=ROOT,
            env={**os.environ, "PORT": str(free_port()), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    shutil.rmtree(directory, ignore_errors=True)


def test_the_demo_checks_everything_and_ends_well(start: Start) -> None:
    demo = start("--exit")
    said, _ = demo.communicate(timeout=500)
    assert demo.returncode == 0, said
    for part in ("Import", "every byte is the server's", "the sync picked them up", "make run"):
        assert part in said
    assert "Every check held." in said
    assert "Where to look" not in said, "nothing is there any more"


def test_nothing_outlives_the_demo_that_is_ended_its_object_store_either(start: Start) -> None:
    demo = start("--s3", messages=20)
    assert demo.stdout is not None
    said = ""
    while "Serving until Ctrl-C" not in said:
        line = demo.stdout.readline()
        assert line, said
        said += line
    assert "packs in s3://archive/demo" in said
    assert "Where to look" in said
    assert "curl -H" in said
    pids = descendants(demo.pid)
    assert len(pids) > 8
    demo.send_signal(signal.SIGINT)
    assert demo.wait(240) == 0
    gone(pids)


def test_nothing_outlives_the_demo_that_is_killed_while_it_starts(start: Start) -> None:
    demo = start()
    pids = wait_for(lambda: found if len(found := descendants(demo.pid)) > 12 else None)
    demo.kill()
    demo.wait(240)
    gone(pids)


def gone(pids: list[int]) -> None:
    wait_for(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
