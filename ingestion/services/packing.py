"""Has new messages packed: hands them to a process beside this one (`ingestion.packer`).

    submit() -> bodies into memory that both share, the rest through a socket -> returns at once
    rows()   -> the message rows, once the messages are in the pack

A worker has one such process, started when it is first needed and ended with the worker. Where it
dies its worker dies too: what a message can do to whoever handles it is one case, and
`services.poison` knows it.
"""

import atexit
import collections
import contextlib
import json
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import structlog
from django.conf import settings

from connectors.types import SPOOL_BYTES, RawMessage, SpooledBody
from ingestion import packer
from ingestion.archive.store import PackWriter
from ingestion.models import Folder, Mailbox

log = structlog.get_logger(__name__)

#: The bodies of a call end with the one that makes them more than this. Only the last is larger
#: than a message usually is, so a part of the arena has room for them.
PART_BYTES = 2_000_000
_PARTS = 3  # one is filled while another is packed, and one waits between them
_ROOM_BYTES = PART_BYTES + SPOOL_BYTES


class Unpacked(NamedTuple):
    """A message whose bytes are not archived: its future id, and what capture found of it."""

    id: uuid.UUID
    sha256: bytes
    size: int
    raw: RawMessage


class Packing:
    """The packing of some messages, under way. Thread-safe."""

    def __init__(self, process: "_Process") -> None:
        self._process = process
        self.answer: tuple[int, bytes] | None = None

    def rows(self) -> bytes:
        """Return the messages' rows (rows.NewMessage.line), waiting until they are in the pack.

        Raises OSError (a full disk): then none of them is.
        """
        kind, content = self._process.answer_to(self)
        if kind == packer.ROWS:
            return content
        if kind == packer.OS_ERROR:
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
        said = {
            "mailbox": self._mailbox.remote_id,
            "address": self._mailbox.address,
            "folder": folder.remote_id,
            "path": folder.path,
        }
        job = packer.Job(self._mailbox.pk, writer.pack_id, said, parse, ())
        return self._process.submit(job, messages, writer.file.fileno())

    def close(self) -> None:
        """Wait for what is on its way."""
        if self._process is not None:
            self._process.settle()
            _idle.append(self._process)
            self._process = None


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
                self._popen = subprocess.Popen(  # noqa: S603 - ourselves
                    [sys.executable, "-m", "ingestion.packer", *map(str, inherited)],
                    pass_fds=inherited,
                    cwd=settings.BASE_DIR,
                    start_new_session=True,  # a terminal's Ctrl-C is not for it
                )
        finally:
            os.close(descriptor)
        self._submitted = 0
        self._waiting: collections.deque[Packing] = collections.deque()
        self._receiving = threading.Lock()

    def submit(self, job: packer.Job, messages: Sequence[Unpacked], pack: int) -> Packing:
        while len(self._waiting) >= _PARTS:
            self.answer_to(self._waiting[0])
        at = self._submitted % _PARTS * _ROOM_BYTES
        self._submitted += 1
        given, files = [], [pack]
        for pk, sha256, size, raw in messages:
            ref, body = raw.ref, raw.body
            start = None
            if isinstance(body, SpooledBody):
                body.file.flush()
                files.append(body.file.fileno())
            else:
                start, at = at, at + size
                self._arena[start:at] = body
            labels = ref.labels or ()
            given.append(
                packer.Message(
                    *(pk.hex, sha256, size, start),
                    *(ref.remote_id, ref.stable_id, ref.received_at, labels),
                )
            )
        packing = Packing(self)
        self._waiting.append(packing)
        content = pickle.dumps(job._replace(messages=given), pickle.HIGHEST_PROTOCOL)
        try:
            packer.send(self._channel, packer.JOB, content, files)
        except ConnectionError:
            self._die_too()
        return packing

    def answer_to(self, packing: Packing) -> tuple[int, bytes]:
        """Receive answers, which come in order, up to this one's."""
        with self._receiving:
            while packing.answer is None:
                try:
                    kind, content, _ = packer.receive(self._channel)
                except (EOFError, ConnectionError):
                    self._die_too()
                self._waiting.popleft().answer = kind, content
            return packing.answer

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        while self._waiting:
            self.answer_to(self._waiting[-1])

    def forget(self) -> None:
        """Close this process's side; the last to do so ends the other."""
        self._channel.close()
        self._arena.close()

    def end(self) -> None:
        self.forget()
        self._popen.wait()

    def _die_too(self) -> NoReturn:
        log.critical("packing_process_died", code=self._popen.wait())
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError  # not reached


#: Processes that nobody uses at the moment.
_idle: list[_Process] = []


def _take_process() -> _Process:
    with contextlib.suppress(IndexError):
        return _idle.pop()
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
