"""The supervisor by itself, with shell scripts for programs."""

import contextlib
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestion_project.run import Output
from ingestion_project.supervisor import Program, StoppedError, Supervisor, describe_exit
from tests.servers.stack import ROOT, wait_for

Lines = list[tuple[str, str]]


def shell(name: str, script: str, directory: Path) -> Program:
    return Program(
        name=name,
        command=("/bin/sh", "-c", script),
        environ={"PATH": os.defpath},
        directory=directory,
    )


def step_until(supervisor: Supervisor, predicate: Callable[[], object]) -> None:
    def stepped() -> object:
        supervisor._step(0.05)
        return predicate()

    wait_for(stepped)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def test_what_ends_is_started_again_later_each_time(tmp_path: Path) -> None:
    lines: Lines = []
    with Supervisor(lambda *line: lines.append(line)) as supervisor:
        supervisor.start(shell("short", "echo hello; exit 3", tmp_path))
        step_until(supervisor, lambda: lines.count(("short", "hello")) == 3)
    said = [text for name, text in lines if name == "system"]
    assert said[:2] == [
        "short ended with status 3; starting it again in 0.5 s",
        "short ended with status 3; starting it again in 1.0 s",
    ]


def test_the_children_of_a_killed_program_go_with_it(tmp_path: Path) -> None:
    lines: Lines = []
    with Supervisor(lambda *line: lines.append(line)) as supervisor:
        script = "sleep 1000 >/dev/null & echo $!; kill -9 $$"
        supervisor.start(shell("parent", script, tmp_path))
        step_until(supervisor, lambda: any(name == "system" for name, _ in lines))
        child = int(next(text for name, text in lines if name == "parent"))
        assert wait_for(lambda: gone(child))


def test_leaving_ends_what_others_stand_on_last(tmp_path: Path) -> None:
    lines: Lines = []
    script = 'trap "echo bye; exit 0" TERM; echo up; while :; do sleep 0.05; done'
    with Supervisor(lambda *line: lines.append(line)) as supervisor:
        for name in ("postgres", "web"):
            supervisor.start(shell(name, script, tmp_path))
        step_until(supervisor, lambda: {("postgres", "up"), ("web", "up")} <= set(lines))
    assert [name for name, text in lines if text == "bye"] == ["web", "postgres"]


def test_who_waits_for_the_last_to_end_sleeps(tmp_path: Path) -> None:
    """Not at full speed, because others that have ended already would be due again."""
    steps = 0

    class Counting(Supervisor):
        def _step(self, timeout_seconds: float) -> None:
            nonlocal steps
            steps += 1
            super()._step(timeout_seconds)

    lines: Lines = []
    with Counting(lambda *line: lines.append(line)) as supervisor:
        supervisor.start(shell("quick", "echo up; exec sleep 1000", tmp_path))
        slow = 'trap "sleep 2; exit 0" TERM; echo up; while :; do sleep 0.05; done'
        supervisor.start(shell("slow", slow, tmp_path))
        step_until(supervisor, lambda: {("quick", "up"), ("slow", "up")} <= set(lines))
        steps = 0
    assert 10 < steps < 1_000


def test_a_program_run_once_gives_its_status_and_all_its_output(tmp_path: Path) -> None:
    lines: Lines = []
    with Supervisor(lambda *line: lines.append(line)) as supervisor:
        assert supervisor.run_once(shell("once", "seq 1 2000; exit 7", tmp_path)) == 7
    assert [text for _, text in lines] == [str(n) for n in range(1, 2001)]


def test_waiting_for_what_never_gets_ready_ends(tmp_path: Path) -> None:
    never = Program(
        name="never",
        command=("/bin/sh", "-c", "sleep 1000"),
        environ={"PATH": os.defpath},
        directory=tmp_path,
        ready=lambda: False,
    )
    with Supervisor(lambda *_: None) as supervisor:
        supervisor.start(never)
        with pytest.raises(TimeoutError, match="never is not ready"):
            supervisor.wait_until_ready("never", timeout_seconds=0.2)


def test_a_signal_ends_the_wait_and_the_program(tmp_path: Path) -> None:
    """Which would go on for longer than a test may take."""
    lines: Lines = []
    with Supervisor(lambda *line: lines.append(line)) as supervisor:
        script = f"echo $$; kill -INT {os.getpid()}; exec sleep 1000"
        with pytest.raises(StoppedError):
            supervisor.run_once(shell("once", script, tmp_path))
        assert gone(int(dict(lines)["once"]))


@pytest.mark.parametrize("where", ["a full disk", "a closed terminal"])
def test_where_lines_can_not_be_written_programs_go_on_and_end_with_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "a full disk":
        there = os.open("/dev/full", os.O_WRONLY)
    else:
        ours, there = pty.openpty()
        os.close(ours)
    stdout = os.fdopen(there, "w")
    monkeypatch.setattr("sys.stdout", stdout)
    output = Output(["web"])
    script = 'trap "sleep 0.2; echo bye; touch ended; exit 0" TERM; echo up; touch begun;'
    with Supervisor(output.show) as supervisor:
        supervisor.start(shell("web", f"{script} while :; do sleep 0.05; done", tmp_path))
        step_until(supervisor, (tmp_path / "begun").exists)
        output.show("system", "stopping")
    assert (tmp_path / "ended").exists()
    with contextlib.suppress(OSError):
        stdout.close()
    monkeypatch.setattr("sys.stdout", there_is_room := io.StringIO())
    output.show("web", "again")
    assert ("again" in there_is_room.getvalue()) == (where == "a full disk")


def test_a_busy_child_ends_with_its_parent() -> None:
    script = (
        "import os, signal, time\n"
        "from ingestion_project.supervisor import end_with_parent\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    end_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    assert wait_for(lambda: gone(child))


def test_a_child_ends_whose_parent_was_gone_before_it_asked() -> None:
    script = (
        "import os, signal, time\n"
        "from ingestion_project.supervisor import end_with_parent\n"
        "parent = os.getpid()\n"
        "if os.fork():\n"
        "    os.kill(parent, signal.SIGKILL)\n"
        "while os.getppid() == parent:\n"
        "    time.sleep(0.01)\n"
        "print('orphan', flush=True)\n"
        "end_with_parent(parent=parent)\n"
        "print('lives', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["orphan"]


def test_an_exit_is_told_in_words() -> None:
    assert describe_exit(0) == "ended with status 0"
    assert describe_exit(-9) == "was killed by SIGKILL"
