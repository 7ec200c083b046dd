"""Programs as forks, by a supervisor in a process of its own, as `make run` is one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.stack import ROOT, child_pids, wait_for

#: What supervises. Its lines are JSON: who said it, and what.
_SUPERVISE = """
import atexit, json, os, sys
from pathlib import Path
from ingestion_project import forks
from ingestion_project.supervisor import Program, Supervisor

here = Path(sys.argv[1])
sys.path.insert(0, str(here))
open_file = (here / "open").open("w")
os.environ["ONLY_THE_PARENTS"] = "1"
with Supervisor(lambda *said: print(json.dumps(said), flush=True)) as supervisor:
    program = Program(
        name="program", command=("/bin/program", "--of", "x" * 500),
        entry="program:main", environ={"OWN": "é"}, directory=here,
    )
    if sys.argv[2] == "once":
        print(json.dumps(["status", supervisor.run_once(program)]), flush=True)
    else:
        supervisor.start(program)
        supervisor.run_until_stopped()
"""


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """`supervise(code, how)` has a fork run the body of a function, "once" or "again" and again."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, how: str = "once") -> "subprocess.Popen[str]":
        lines = "\n".join(f"    {line}" for line in code.splitlines())
        (tmp_path / "program.py").write_text(f"def main():\n{lines}\n")
        (tmp_path / "supervise.py").write_text(_SUPERVISE)
        one = subprocess.Popen(
            [sys.executable, tmp_path / "supervise.py", tmp_path, how],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LONG": "x" * 1_000},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(one)
        return one

    yield start
    for one in started:
        with one:
            one.kill()


@pytest.fixture
def said(supervise: Callable[..., "subprocess.Popen[str]"]) -> Callable[[str], list[Any]]:
    """`said(code)` runs it once and returns what was said, and the exit status as the last."""

    def run(code: str) -> list[Any]:
        out, _ = supervise(code).communicate(timeout=300)
        return [json.loads(line)[1] for line in out.splitlines()]

    return run


def test_a_fork_is_a_process_of_its_own(said: Callable[[str], list[Any]], tmp_path: Path) -> None:
    """It has its own command line, environment, directory, session, files and handlers."""
    code = (
        "import os, signal, sys\n"
        "print(sys.argv, dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid())\n"
        "print(open('/proc/self/cmdline').read().rstrip(chr(0)))\n"
        "print(sorted(os.listdir('/proc/self/fd')), repr(sys.stdin.read()))\n"
        "print([int(signal.getsignal(n)) for n in (1, 15, 17)], signal.pthread_sigmask(0, []))\n"
        "print('ingestion_project.forks' in sys.modules, file=sys.stderr)\n"
    )
    words = ["/bin/program", "--of", "x" * 500]  # longer than what the parent is called
    assert said(code) == [
        f"{words} {{'OWN': 'é'}} {tmp_path} True",
        " ".join(words),
        "['0', '1', '2', '3'] ''",  # 3 is the directory that is listed
        "[0, 0, 0] set()",
        "False",
        0,
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('no line end', end='')\nreturn 3", ["no line end", 3]),
        ("raise SystemExit(4)", [4]),
        ("raise SystemExit('It is refused.')", ["It is refused.", 1]),
        ("import os\nos.kill(os.getpid(), 9)", [-9]),
    ],
)
def test_its_end_is_told(said: Callable[[str], list[Any]], code: str, expected: list[Any]) -> None:
    assert said(code) == expected


def test_what_it_did_not_expect_is_shown(said: Callable[[str], list[Any]]) -> None:
    assert said("1 / 0")[-2:] == ["ZeroDivisionError: division by zero", 1]


def test_its_threads_and_exit_handlers_have_their_time(said: Callable[[str], list[Any]]) -> None:
    code = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "print('first', end=' ')\n"
    )
    assert said(code) == ["first thread", "at exit", 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_supervisor(
    supervise: Callable[..., "subprocess.Popen[str]"], number: signal.Signals
) -> None:
    supervisor = supervise("import time\nprint('up')\ntime.sleep(1000)", "again")
    assert supervisor.stdout is not None
    assert json.loads(supervisor.stdout.readline()) == ["program", "up"]
    [pid] = child_pids(supervisor.pid)
    supervisor.send_signal(number)
    supervisor.wait(9)  # not only when it has lost patience
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_one_that_dies_is_there_again(supervise: Callable[..., "subprocess.Popen[str]"]) -> None:
    supervisor = supervise("import os\nprint('up')\nos.abort()", "again")
    assert supervisor.stdout is not None
    assert [json.loads(supervisor.stdout.readline()) for _ in range(3)] == [
        ["program", "up"],
        ["system", "program was killed by SIGABRT; starting it again in 0.5 s"],
        ["program", "up"],
    ]


def test_the_libraries_leave_nothing_that_a_fork_would_share_or_miss() -> None:
    """No settings are read, no thread is started, no file or connection is open, and nothing is
    there of what decides by its environment, once, when it is imported."""
    code = (
        "import os, sys, threading\n"
        "before = os.listdir('/proc/self/fd')\n"
        "from ingestion_project import forks\n"
        "forks.load_libraries()\n"
        "from django.apps import apps\n"
        "from django.conf import settings\n"
        "print(settings.configured, apps.ready, os.listdir('/proc/self/fd') == before)\n"
        "print(threading.active_count(), 'prometheus_client' in sys.modules)\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False", "True", "1", "False"]
