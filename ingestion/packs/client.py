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
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import structlog
from django.conf import settings
from django.utils import timezone

from connectors.types import SPOOL_BYTES, RawMessage, SpooledBody
from ingestion.models import Folder, Mailbox
from ingestion.packs import process
from ingestion.packs.record import Origin
from ingestion.packs.store import PackWriter

log = structlog.get_logger(__name__)

#: The bodies of a call end with the one that makes them more than this; what does not fit into a
#: part of the arena all the same goes as a file.
PART_BYTES = 2_000_000
_PARTS = 3  # one is filled while another is packed, and one waits between them
_ROOM_BYTES = PART_BYTES + SPOOL_BYTES


class Unpacked(NamedTuple):
    """A message whose bytes are not archived: its future id, and what capture found of it."""

    id: str
    sha256: bytes
    size: int
    raw: RawMessage


class Packing:
    """The packing of some messages, under way. Thread-safe."""

    def __init__(self, process: "_Process", number: int) -> None:
        self._process, self.number = process, number
        self.answer: tuple[int, bytes] | None = None

    def rows(self) -> bytes:
        """Return the messages' rows (rows.NewMessage.line), waiting until they are in the pack.

        Raises OSError (a full disk): then none of them is.
        """
        kind, content = self._process.answer_to(self)
        if kind == process.ROWS:
            return content
        if kind == process.OS_ERROR:
            raise OSError(*json.loads(content))
        raise RuntimeError(f"The packing process failed: {content.decode()}")


class Packer:
    """What one mailbox has packed. For one thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._process: _Process | None = None

    def submit(
        self, writer: PackWriter, folder: Folder, messages: Sequence[Unpacked], *, parse: bool
    ) -> Packing:
        """Have messages of a folder appended to a pack, in the order of the calls. Waits where
        three calls' messages are on their way. Raises OSError where no process can be started."""
        if self._process is None:
            self._process = _take_process()
        origin = Origin(
            mailbox=self._mailbox.remote_id,
            address=self._mailbox.address,
            folder=folder.remote_id,
            path=folder.path,
            archived_at=timezone.now().isoformat(),
        )
        job = process.Job(self._mailbox.pk.hex, writer.pack_id.hex, origin, parse, ())
        return self._process.submit(job, messages, writer.file.fileno())

    def close(self) -> None:
        """Wait for what is on its way."""
        process, self._process = self._process, None
        if process is not None:
            process.release()


class _Process:
    """A packing process, and the memory shared with it: parts that are filled in turn."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("arena")
        try:
            os.ftruncate(descriptor, _PARTS * _ROOM_BYTES)
            self._arena = mmap.mmap(descriptor, _PARTS * _ROOM_BYTES)
            self._channel, theirs = socket.socketpair()
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
        self._waiting: collections.deque[Packing] = collections.deque()
        self._receiving = threading.Lock()
        self._broken = False  # an exception in the middle of a frame: nobody knows what comes next

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def submit(self, job: process.Job, messages: Sequence[Unpacked], pack: int) -> Packing:
        self._receive_until(_PARTS - 1)
        at = self._submitted % _PARTS * _ROOM_BYTES
        end = at + _ROOM_BYTES
        with contextlib.ExitStack() as stack:
            given, files = [], [pack]
            for pk, sha256, size, raw in messages:
                ref, body, start = raw.ref, raw.body, None
                if isinstance(body, SpooledBody):
                    body.file.flush()
                    files.append(body.file.fileno())
                elif at + size <= end:
                    start, at = at, at + size
                    self._arena[start:at] = body
                else:
                    file = stack.enter_context(tempfile.TemporaryFile())
                    file.write(body)
                    file.flush()
                    files.append(file.fileno())
                received = ref.received_at.isoformat() if ref.received_at else None
                ids = ref.remote_id, ref.stable_id, ref.thread_id
                given.append((pk, sha256, size, start, *ids, received, ref.labels or ()))
            return self._send(job._replace(messages=given), files)

    def answer_to(self, packing: Packing) -> tuple[int, bytes]:
        """Receive answers, which come in order, up to this one's."""
        with self._receiving:
            while packing.answer is None:
                self._receive()
            return packing.answer

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

    def _send(self, job: process.Job, files: Sequence[int]) -> Packing:
        packing = Packing(self, self._submitted + 1)
        try:
            process.send_job(self._channel, packing.number, job, files)
            self._submitted = packing.number
            self._waiting.append(packing)
        except ConnectionError:
            self._die_too()
        except OSError:
            raise  # nothing was sent
        except BaseException:
            self._broken = True
            raise
        return packing

    def _receive_until(self, left: int) -> None:
        with self._receiving:
            while len(self._waiting) > left:
                self._receive()

    def _receive(self) -> None:
        if self._broken:
            raise RuntimeError("What was asked of the packing process failed before.")
        try:
            kind, number, content, _ = process.receive(self._channel)
        except (EOFError, ConnectionError):
            self._die_too()
        except BaseException:
            self._broken = True
            raise
        packing = self._waiting.popleft()
        if number != packing.number:
            self._broken = True
            raise RuntimeError(f"Job {number} was answered, and {packing.number} is waited for.")
        packing.answer = kind, content

    def _die_too(self) -> NoReturn:
        log.critical("packing_process_died", code=self._popen.wait())
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError  # not reached


#: Processes that nobody uses at the moment.
_idle: list[_Process] = []


def _take_process() -> _Process:
    while _idle:
        process = _idle.pop()
        if process.alive:
            return process
        process.forget()  # somebody ended it when it had nothing to do: no message did
    return _Process()


def _forget_all() -> None:
    """In a child of this process: they are its parent's."""
    while _idle:
        _idle.pop().forget()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget_all)
