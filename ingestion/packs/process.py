"""The packing process: compresses messages, appends them to a pack, and writes their rows.

    python -m ingestion.packs.process CHANNEL ARENA       (descriptors; `packs.client` starts it)

A worker downloads, hashes, looks up and commits. What needs nothing but the messages themselves is
done here: on another core, and without waiting for the interpreter's lock. Bodies come in memory
that both processes share, the pack, large bodies and the rest of a job as open files that a socket
passes on; the answer is rows for COPY, or what went wrong. No state is kept from job to job, and no
database is known.

It ends with its worker, and ignores every request to end before: its worker may need it to stop.
"""

import contextlib
import errno
import mmap
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import IO, NamedTuple, Self

import zstandard

from connectors.types import SpooledBody
from ingestion import memory, rows
from ingestion.mail.headers import Headers, head_of, parse_headers
from ingestion.packs.format import append, compressor
from ingestion.packs.record import RecordHeader

#: What only its worker reacts to.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_MAX_FILES = 253  # what the kernel passes at once

_NOT_PARSED = Headers(defects=("not parsed: workers died when they did",))


class Job(NamedTuple):
    """New messages of a mailbox, to be appended to a pack. All ids are hexadecimal digits."""

    mailbox: str
    pack: str
    parse: bool
    #: The ids of the messages' rows, and what is known of each.
    ids: Sequence[str]
    records: Sequence[RecordHeader]
    #: Where in the arena each message's body begins; None: it is the next of the job's files.
    starts: Sequence[int | None] = ()

    def dumps(self) -> bytes:
        """Write it as plain tuples: those travel at twice the speed."""
        mailbox, pack, parse, ids, records, starts = self
        words = mailbox, pack, parse, ids, list(map(tuple, records)), starts
        return pickle.dumps(words, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def loads(cls, said: bytes) -> Self:
        mailbox, pack, parse, ids, given, starts = pickle.loads(said)  # noqa: S301 - its worker's
        return cls(mailbox, pack, parse, ids, list(map(RecordHeader._make, given)), starts)


# -- the channel -----------------------------------------------------------------------------------


def send_job(channel: Connection, job: Job, files: Sequence[int]) -> None:
    """Send a job with its pack and its large bodies; the answer is for `channel.recv`, rows or an
    exception. Raises OSError where nothing was sent.

    Never waits, as nothing but descriptors goes through the channel, and what the job says is in a
    file too: while this side sends, the other may be sending an answer that nobody takes yet.
    """
    with os.fdopen(os.memfd_create("job"), "w+b") as said, _socket_of(channel) as carrier:
        said.write(job.dumps())
        said.flush()
        socket.send_fds(carrier, [b"\0"], [said.fileno(), *files])


def receive_job(carrier: socket.socket) -> list[int]:
    """Wait for a job; return new descriptors of its files: what it says, the pack, large bodies.

    Raises EOFError or OSError where nobody is there any more.
    """
    start, files, flags, _ = socket.recv_fds(carrier, 1, _MAX_FILES)
    if not start:
        raise EOFError
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, "some files did not arrive")
    return files


def _socket_of(channel: Connection) -> socket.socket:
    """Open what passes descriptors through a connection."""
    return socket.fromfd(channel.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


# -- the work --------------------------------------------------------------------------------------


def main() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    memory.keep()
    with (
        Connection(int(sys.argv[1])) as channel,
        _socket_of(channel) as carrier,
        mmap.mmap(int(sys.argv[2]), 0, prot=mmap.PROT_READ) as arena,
        memoryview(arena) as bodies,
        contextlib.suppress(EOFError, ConnectionError),  # its worker is gone
    ):
        compress = compressor()
        while True:
            channel.send(_answer(receive_job(carrier), bodies, compress))


def _answer(
    files: Sequence[int], arena: memoryview, compress: zstandard.ZstdCompressor
) -> bytes | Exception:
    try:
        with contextlib.ExitStack() as stack:
            said, pack, *large = [
                stack.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
                for descriptor in files
            ]
            said.seek(0)
            job = Job.loads(said.read())
            return "".join(_rows(job, pack, large, arena, compress)).encode()
    except OSError as error:
        return error
    except Exception:  # noqa: BLE001 - the worker raises it
        return RuntimeError(f"The packing process failed: {traceback.format_exc()}")


def _rows(
    job: Job,
    pack: IO[bytes],
    large: Sequence[IO[bytes]],
    arena: memoryview,
    compress: zstandard.ZstdCompressor,
) -> Iterator[str]:
    """Append the job's messages to the pack and yield their rows. Raises OSError (a full disk):
    then the pack is as it was."""
    files = iter(large)
    bodies: list[memoryview | SpooledBody] = [
        SpooledBody(next(files), record.size)
        if start is None
        else arena[start : start + record.size]
        for record, start in zip(job.records, job.starts, strict=True)
    ]
    said = [(record.dumps(), body) for record, body in zip(job.records, bodies, strict=True)]
    extents = append(pack, job.pack, said, compress)
    for pk, record, body, extent in zip(job.ids, job.records, bodies, extents, strict=True):
        headers = parse_headers(_head(body)) if job.parse else _NOT_PARSED
        yield rows.message(pk, record, extent, headers, mailbox=job.mailbox, pack=job.pack)


def _head(body: memoryview | SpooledBody) -> bytes:
    return head_of(next(body.chunks(), b"") if isinstance(body, SpooledBody) else body)


if __name__ == "__main__":
    main()
