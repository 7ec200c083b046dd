"""The processes that read mail (`ingestion.mail.child`): started when one is needed, asked, ended.

Whatever a mail does to a parser ends with the process that reads it, at the latest at the deadline;
the next mail gets another. For threads and forks: each request has a process for itself, and a
process that forks leaves its readers to its parent.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import structlog

from connectors.types import Body, SpooledBody
from ingestion.errors import ArchiveUnavailable
from ingestion.mail import child
from ingestion.mail.child import LENGTH, READY, Request

#: So many read at once for one process, however many of its threads ask. They bound what hostile
#: mail takes, together: each may have some hundred MB.
MAX_AT_ONCE = 4
#: So many stay when they have nothing to do; each takes some 40 MB.
MAX_IDLE = 2
#: A reader is replaced after so many messages, whatever they left in its memory.
MAX_MESSAGES = 1_000
#: No answer is longer: the pictures of a message's HTML are the most of it.
MAX_ANSWER_BYTES = 50_000_000
#: It starts in 70 ms; on a machine that is very busy in some seconds.
_START_SECONDS = 60.0

_ROOT = Path(__file__).resolve().parents[3]
#: A process manager's request to end is for who asks, who may wait for an answer.
_BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = structlog.get_logger(__name__)


class Unreadable(Exception):
    """A message came to nothing within its limits."""


def ask(
    request: Request, body: Body, *, deadline_seconds: float, taker: IO[bytes] | None = None
) -> Any:
    """Return what a reader answers about a message; `taker` takes what is no JSON of it.

    Raises Unreadable. Only a new reader's end says that of a message: one that read others before
    may have been ended by them, or by somebody. Raises ArchiveUnavailable where none of the
    MAX_AT_ONCE was free for so long.
    """
    with _turn(deadline_seconds), _file_of(body) as message:
        files = [message, *([taker.fileno()] if taker is not None else [])]
        while True:
            reader = _taken()
            new = not reader.served
            try:
                answer = reader.ask(request, files, deadline_seconds)
            except (OSError, EOFError, ValueError) as error:
                code = reader.end()
                if new:
                    log.warning("message.unreadable", verb=request.verb, code=code)
                    raise Unreadable(request.verb) from error
            except BaseException:
                reader.end()
                raise
            else:
                _released(reader)
                return answer


class Reader:
    """One process, for one thread at a time. Raises OSError where it doesn't start, which is no
    message's fault."""

    def __init__(self) -> None:
        self.served = 0
        self._channel, theirs = socket.socketpair()
        with theirs:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-m", child.__name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # a traceback would have words of the mail
                    cwd=_ROOT,
                    env={},
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            self._received(len(READY), time.monotonic() + _START_SECONDS)
        except (OSError, EOFError) as error:
            raise ChildProcessError(
                f"The process that reads mail does not start (exit code {self.end()}). To know"
                f" why: python -m {child.__name__} 0 </dev/null, in {_ROOT}"
            ) from error

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, request: Request, files: list[int], deadline_seconds: float) -> Any:
        """Raises OSError, EOFError or ValueError where no answer comes in time."""
        deadline = time.monotonic() + deadline_seconds
        self._channel.settimeout(deadline_seconds)
        socket.send_fds(self._channel, [json.dumps(request).encode()], files)
        (length,) = LENGTH.unpack(self._received(LENGTH.size, deadline))
        if length > MAX_ANSWER_BYTES:
            raise ValueError("an answer of such length")
        answer = json.loads(self._received(length, deadline))
        self.served += 1
        return answer

    def _received(self, length: int, deadline: float) -> bytearray:
        received = bytearray()
        while len(received) < length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            piece = self._channel.recv(min(length - len(received), 1 << 20))
            if not piece:
                raise EOFError
            received += piece
        return received

    def forget(self) -> None:
        """Close this process's side; the last to do so ends the other."""
        self._channel.close()

    def end(self) -> int:
        """End it whatever it does; return its exit code, below zero that of a signal."""
        self.forget()
        self._popen.kill()
        return self._popen.wait()


#: Those that nobody uses at the moment, the one that was used last at the end.
_idle: list[Reader] = []
_turns = threading.BoundedSemaphore(MAX_AT_ONCE)


@contextlib.contextmanager
def _turn(deadline_seconds: float) -> Iterator[None]:
    turns = _turns
    if not turns.acquire(timeout=deadline_seconds):
        raise ArchiveUnavailable(
            f"{MAX_AT_ONCE} messages are being read at this moment, and none of them ended in time"
            " for this one. Nothing is wrong with it: try again in a minute."
        )
    try:
        yield
    finally:
        turns.release()


def _taken() -> Reader:
    while _idle:
        with contextlib.suppress(IndexError):  # another thread was first
            reader = _idle.pop()
            if reader.alive:
                return reader
            reader.end()
    return Reader()


def _released(reader: Reader) -> None:
    if reader.served >= MAX_MESSAGES:
        reader.end()
        return
    _idle.append(reader)
    with contextlib.suppress(IndexError):
        while len(_idle) > MAX_IDLE:
            _idle.pop(0).end()


@contextlib.contextmanager
def _file_of(body: Body) -> Iterator[int]:
    """Open a message as a file that can only be read, and give its descriptor."""
    with contextlib.ExitStack() as stack:
        if isinstance(body, SpooledBody):
            body.file.flush()
            descriptor = body.file.fileno()
        else:
            descriptor = os.memfd_create("message")
            stack.callback(os.close, descriptor)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(body)
        ours = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        stack.callback(os.close, ours)
        yield ours


def _forget_all() -> None:
    """In a child of this process: they are its parent's, and so are those that read."""
    global _turns  # noqa: PLW0603 - of this process
    while _idle:
        _idle.pop().forget()
    _turns = threading.BoundedSemaphore(MAX_AT_ONCE)


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget_all)
