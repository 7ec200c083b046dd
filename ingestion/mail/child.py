"""Reads messages in a process of its own, with limits, and says what they say.

    python -m ingestion.mail.child CHANNEL     (a descriptor; `services.archive.readers` starts it)

Each request is JSON, with the message as an open file; another one takes the bytes of an
attachment, or how far a digest came. Each answer is JSON after its length. A message that fails,
takes too much or hangs ends the process, and who asked starts another. It has no environment, no
database and no key, gives up files and network, and ends with the process that started it.
"""

import json
import mmap
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from ingestion.mail import body, digest, view
from ingestion.mail.attachments import attached, described
from ingestion.mail.confinement import confine
from ingestion.mail.mime import Raw, content, parse, with_line_ends

#: Before an answer: its length in bytes.
LENGTH = struct.Struct("!Q")
#: Before the first request, from a process that can read mail.
READY = b"!"
MAX_REQUEST_BYTES = 4_000
_MAX_FILES = 2
_OPEN_FILES = 100


class Request(NamedTuple):
    """`verb` is one of VERBS, with its own arguments. The limits are for this message alone, beside
    its own size."""

    verb: str
    arguments: dict[str, Any]
    cpu_seconds: int
    memory_bytes: int


def main(channel: socket.socket) -> None:
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _OPEN_FILES)):
        resource.setrlimit(limit, (value, value))
    confine()
    channel.sendall(READY)
    while True:
        said, files, _, _ = socket.recv_fds(channel, MAX_REQUEST_BYTES, _MAX_FILES)
        if not said:
            return
        answer = json.dumps(_answer(Request(*json.loads(said)), files), default=str).encode()
        for file in files:
            os.close(file)
        channel.sendall(LENGTH.pack(len(answer)) + answer)


def _answer(request: Request, files: list[int]) -> Any:
    size = os.fstat(files[0]).st_size
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = int(spent.ru_utime + spent.ru_stime) + 1 + request.cpu_seconds
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, request.memory_bytes + size),
    ):
        resource.setrlimit(limit, (value, resource.RLIM_INFINITY))
    # An empty file can't be mapped.
    raw: Raw = mmap.mmap(files[0], size, access=mmap.ACCESS_READ) if size else b""
    return VERBS[request.verb](with_line_ends(raw), *files[1:], **request.arguments)


def _attachment(raw: Raw, taker: int, *, number: int) -> Any:
    """Write its bytes. Answers with an error's number where the taker can't hold them."""
    for at, part in enumerate(attached(parse(raw).root)):
        if at == number:
            try:
                with open(taker, "wb", closefd=False) as file:
                    file.seek(0)  # one that ended may have begun
                    file.truncate()
                    file.writelines(content(raw, part))
            except OSError as error:
                return error.errno
            return described(raw, part)
    return None


def _digest(raw: Raw, taker: int, *, skip: list[int] | None) -> Any:
    """Write the number of the file that is being read, for whom this process may leave behind."""
    said = digest.digest(
        raw, skip=skip, began=lambda number: os.pwrite(taker, b"%020d" % number, 0)
    )
    return said._asdict()


VERBS: dict[str, Callable[..., Any]] = {
    "contents": lambda raw: body.read(raw)._asdict(),
    "digest": _digest,
    "html": lambda raw, **how: view.html_of(raw, **how)._asdict(),
    "attachment": _attachment,
}


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
