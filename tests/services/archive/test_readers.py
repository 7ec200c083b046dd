"""The processes that read mail: one serves many messages, and none survives what it may not."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion.errors import ArchiveUnavailable
from ingestion.mail.child import Request
from ingestion.mail.confinement import _libc
from ingestion.services.archive import readers

MAIL = b"Subject: hi\r\nContent-Type: text/html\r\n\r\n<p>hello"
#: nh3 needs many seconds for so many attributes of one element.
COSTLY = MAIL + b"<p " + b" ".join(b"x%d" % number for number in range(130_000)) + b">"


def ask(mail: bytes = MAIL, verb: str = "contents", *, cpu_seconds: int = 5, **how: Any) -> Any:
    memory = how.pop("memory_bytes", 500_000_000)
    deadline = how.pop("deadline_seconds", 60.0)
    request = Request(verb, how, cpu_seconds, memory)
    return readers.ask(request, mail, deadline_seconds=deadline)


def text(mail: bytes = MAIL) -> str:
    said: str = ask(mail)["text"]
    return said


def pids() -> list[int]:
    return [reader._popen.pid for reader in readers._idle]


@pytest.fixture(autouse=True)
def _new_readers() -> Iterator[None]:
    readers._end_all()
    yield
    readers._end_all()


def test_one_process_reads_one_message_after_the_other() -> None:
    assert [text(MAIL + b"%d" % number) for number in range(20)] == [
        f"hello{number}" for number in range(20)
    ]
    (reader,) = readers._idle
    assert reader.served == 20


@pytest.mark.parametrize("limit", ["cpu_seconds", "memory_bytes", "deadline_seconds"])
def test_a_message_beyond_a_limit_comes_to_nothing_and_the_next_is_read(limit: str) -> None:
    value: Any = {"cpu_seconds": 0, "memory_bytes": 30_000_000, "deadline_seconds": 0.3}[limit]
    with pytest.raises(readers.Unreadable):
        ask(COSTLY, "html", **{limit: value})
    assert pids() == []
    assert text() == "hello"


def test_the_time_of_a_message_is_its_own_however_long_its_reader_worked() -> None:
    spent = MAIL + b"<p " + b" ".join(b"x%d" % number for number in range(20_000)) + b">"
    for _ in range(25):
        ask(spent, "html", cpu_seconds=2)  # each needs a fifteenth of it, or a fifth
    (reader,) = readers._idle
    assert reader.served == 25


def test_a_reader_that_somebody_ended_says_nothing_of_the_message() -> None:
    text()
    (reader,) = readers._idle
    reader._popen.send_signal(signal.SIGSTOP)  # it lives, and will not answer
    threading.Timer(0.1, reader._popen.kill).start()
    assert text() == "hello"
    assert pids() != [reader._popen.pid]
    os.kill(pids()[0], signal.SIGKILL)
    assert text() == "hello"


def test_a_reader_that_does_not_start_is_no_message_s_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="does not start"):
        text()


def test_what_a_reader_left_in_a_file_is_not_part_of_an_attachment() -> None:
    mail = b"Content-Type: image/png; name=a.png\r\n\r\nthe picture"
    request = Request("attachment", {"number": 0}, 5, 500_000_000)
    with tempfile.TemporaryFile() as taker:
        taker.write(b"the beginning of it, and more")
        taker.flush()
        readers.ask(request, mail, deadline_seconds=60, taker=taker)
        taker.seek(0)
        assert taker.read() == b"the picture"


def test_a_request_to_end_is_not_for_readers() -> None:
    text()
    (pid,) = pids()
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert text() == "hello"
    assert pids() == [pid]


def test_a_reader_is_replaced_after_so_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_MESSAGES", 2)
    text()
    first = pids()
    text()
    assert pids() == []
    text()
    assert pids() != first


def test_threads_each_have_a_reader_and_few_are_kept() -> None:
    said: list[tuple[int, str]] = []

    def read(number: int) -> None:
        said.extend((number, text(MAIL + b"%d" % number)) for _ in range(10))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [(number, f"hello{number}") for number in range(6) for _ in range(10)]
    assert 1 <= len(readers._idle) <= readers.MAX_IDLE


def test_a_process_that_forks_leaves_its_readers_to_its_parent() -> None:
    text()
    kept = pids()
    child = os.fork()
    if not child:  # no exception may leave it
        right = False
        try:
            right = pids() == [] and text() == "hello" and pids() != kept
            readers._end_all()
        finally:
            os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert text() == "hello"
    assert pids() == kept


def test_a_reader_ends_with_its_parent(wait_for: Callable[..., Any]) -> None:
    code = (
        "from ingestion.services.archive import readers\nimport time\n"
        "reader = readers.Reader()\nprint(reader._popen.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert Path(f"/proc/{pid}").exists()
        finally:
            parent.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


#: What a parser that a mail took over would try, each with what it prints if that is refused.
def test_so_many_read_at_once_and_no_more() -> None:
    with contextlib.ExitStack() as turns:
        for _ in range(readers.MAX_AT_ONCE):
            turns.enter_context(readers._turn(0))
        with pytest.raises(ArchiveUnavailable, match="try again"):
            ask(deadline_seconds=0.05)
        child = multiprocessing.get_context("fork").Process(target=ask)
        child.start()  # its readers are others
        child.join()
        assert child.exitcode == 0
    assert text() == "hello"
    for _ in range(readers.MAX_AT_ONCE + 1):  # each gives its turn back, also one that fails
        with pytest.raises(readers.Unreadable):
            ask(COSTLY, "html", memory_bytes=30_000_000)


ATTEMPTS = """
import os, socket, subprocess, sys
sys.path[0] = os.getcwd()  # as a reader has it
from ingestion.mail.confinement import confine
confine()
for attempt in (
    socket.socket,
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    lambda: open("/etc/passwd"),
    lambda: open("README.md"),
    lambda: open(f"/proc/{os.getppid()}/environ"),
    lambda: open("/tmp/written", "w"),
    lambda: subprocess.run(["/bin/true"]),
):
    try:
        attempt()
    except PermissionError:
        print("refused")
import pypdfium2, python_calamine, nh3
"""


@pytest.mark.skipif(_libc.syscall(444, None, 0, 1) < 1, reason="this kernel has no Landlock")
def test_a_reader_may_not_open_files_or_ways_to_elsewhere() -> None:
    refused = subprocess.run(
        [sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, check=True
    )
    assert refused.stdout.split() == ["refused"] * 7
    text()
    status = Path(f"/proc/{pids()[0]}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_a_reader_has_no_environment_and_no_file_of_its_parent() -> None:
    text()
    (pid,) = pids()
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    files = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert len(files) == 2  # /dev/null and its channel
