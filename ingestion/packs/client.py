"""Has new messages packed: hands them to a process beside this one (`ingestion.packs.process`).

    submit() -> bodies into memory that both share, the rest through a socket -> returns at once
    rows()   -> the message rows, once the messages are in the pack

A worker has one such process, started when it is first needed and ended with the worker. Where it
dies its worker dies too: what a message can do to whoever handles it is one case, and
`engine.careful` knows it.
"""

import atexit
import collections
import contextlib
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, NoReturn

import structlog
from django.conf import settings

from connectors.types import SPOOL_BYTES, Body, SpooledBody
from ingestion.packs import process
from ingestion.packs.process import Job

log = structlog.get_logger(__name__)

#: The bodies of a job end with the one that makes them more than this; what does not fit into a
#: part of the arena all the same goes as a file.
PART_BYTES = 2_000_000
_PARTS = 3  # one is filled while another is packed, and one waits between them
_ROOM_BYTES = PART_BYTES + SPOOL_BYTES


class Answer:
    """What becomes of a job. Thread-safe."""

    def __init__(self, process: "PackingProcess") -> None:
        self._process = process
        self.given: bytes | Exception | None = None

    def rows(self) -> bytes:
        """Return the messages' rows (`rows.message`), waiting until they are in the pack.

        Raises OSError (a full disk): then none of them is.
        """
        given = self._process.answer_to(self)
        if isinstance(given, Exception):
            raise given
        return given


class PackingProcess:
    """A packing process, and the memory shared with it: parts that are filled in turn. For one
    thread, between `take` and `release`."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("arena")
        try:
            os.ftruncate(descriptor, _PARTS * _ROOM_BYTES)
            self._arena = mmap.mmap(descriptor, _PARTS * _ROOM_BYTES)
            self._channel, theirs = multiprocessing.Pipe()
            with theirs:
                inherited = (theirs.fileno(), descriptor)
                # A process manager's request to end is for its worker, also in its first instant.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, process.IGNORED)
                try:
                    self._popen = subprocess.Popen(  # noqa: S603 - ourselves
                        [sys.executable, "-m", "ingestion.packs.process", *map(str, inherited)],
                        pass_fds=inherited,
                        cwd=settings.BASE_DIR,
                        start_new_session=True,  # a terminal's Ctrl-C is not for it
                    )
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        finally:
            os.close(descriptor)
        self._submitted = 0
        self._waiting: collections.deque[Answer] = collections.deque()
        self._receiving = threading.Lock()
        self._broken = False  # an exception in the middle of a frame: nobody knows what comes next

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def submit(self, job: Job, bodies: Sequence[Body], pack: IO[bytes]) -> Answer:
        """Have a job's messages appended to a pack, in the order of the calls; `bodies` are theirs.

        Waits where three jobs are on their way. Raises OSError where nothing was sent.
        """
        self._receive_until(_PARTS - 1)
        at = self._submitted % _PARTS * _ROOM_BYTES
        end = at + _ROOM_BYTES
        starts: list[int | None] = []
        files = [pack.fileno()]
        with contextlib.ExitStack() as stack:
            for record, body in zip(job.records, bodies, strict=True):
                start = None
                if isinstance(body, SpooledBody):
                    body.file.flush()
                    files.append(body.file.fileno())
                elif at + record.size <= end:
                    start, at = at, at + record.size
                    self._arena[start:at] = body
                else:
                    file = stack.enter_context(tempfile.TemporaryFile())
                    file.write(body)
                    file.flush()
                    files.append(file.fileno())
                starts.append(start)
            return self._send(job._replace(starts=starts), files)

    def answer_to(self, answer: Answer) -> bytes | Exception:
        """Receive answers, which come in order, up to this one's."""
        with self._receiving:
            while answer.given is None:
                self._receive()
            return answer.given

    def release(self) -> None:
        """Wait until nothing is on its way, and let others use the process."""
        if not self._broken:
            self._receive_until(0)
            _idle.append(self)
        else:
            self._popen.kill()
            self.end()

    def forget(self) -> None:
        """Close this process's side; the last to do so ends the other."""
        self._channel.close()
        self._arena.close()

    def end(self) -> None:
        self.forget()
        self._popen.wait()

    def _send(self, job: Job, files: Sequence[int]) -> Answer:
        answer = Answer(self)
        try:
            process.send_job(self._channel, job, files)
            self._submitted += 1
            self._waiting.append(answer)
        except ConnectionError:
            self._die_too()
        except OSError:
            raise  # nothing was sent
        except BaseException:
            self._broken = True
            raise
        return answer

    def _receive_until(self, left: int) -> None:
        with self._receiving:
            while len(self._waiting) > left:
                self._receive()

    def _receive(self) -> None:
        if self._broken:
            raise RuntimeError("What was asked of the packing process failed before.")
        try:
            given = self._channel.recv()
            self._waiting.popleft().given = given
        except (EOFError, OSError):  # the latter in the middle of an answer
            self._die_too()
        except BaseException:
            self._broken = True
            raise

    def _die_too(self) -> NoReturn:
        log.critical("packing_process_died", code=self._popen.wait())
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError  # not reached


#: Processes that nobody uses at the moment.
_idle: list[PackingProcess] = []


def take() -> PackingProcess:
    """Return a process that nobody else uses until its `release`. Raises OSError where none can be
    started."""
    while _idle:
        process = _idle.pop()
        if process.alive:
            return process
        process.forget()  # somebody ended it when it had nothing to do: no message did
    return PackingProcess()


def _forget_all() -> None:
    """In a child of this process: they are its parent's."""
    while _idle:
        _idle.pop().forget()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget_all)
