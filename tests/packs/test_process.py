"""The packing process's answers, over its real socket, memory and files."""

import errno
import hashlib
import io
import mmap
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import zstandard

from ingestion.packs import process as protocol
from ingestion.packs.format import begin, scan
from ingestion.packs.record import Origin, RecordHeader
from tests.servers.stack import ROOT

MAILBOX, PACK = uuid.UUID(int=1), uuid.UUID(int=2)


class Process:
    def __init__(self, pid: int, channel: Connection, arena: mmap.mmap) -> None:
        self.pid, self.channel, self.arena = pid, channel, arena

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def pack(
        self, file: io.FileIO, *bodies: bytes, large: io.FileIO | None = None, size: int = 0
    ) -> bytes | Exception:
        records, starts, at = [], list[int | None](), 0
        for body in bodies:
            self.arena[at : at + len(body)] = body
            records.append(_record(body, len(body)))
            starts.append(at)
            at += len(body)
        if large:
            records.append(_record(b"", size))
            starts.append(None)
        ids = [f"{record.size:032x}" for record in records]
        job = protocol.Job(MAILBOX.hex, PACK.hex, True, ids, records, starts)
        files = [file.fileno(), *([large.fileno()] if large else [])]
        protocol.send_job(self.channel, job, files)
        answer: bytes | Exception = self.channel.recv()
        return answer


def _record(body: bytes, size: int) -> RecordHeader:
    origin = Origin("me", "", "INBOX", "INBOX", "")
    return RecordHeader(hashlib.sha256(body).digest(), size, origin, "1:1", "", "", None, ())


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    arena = os.memfd_create("test")
    os.ftruncate(arena, 1 << 20)
    ours, theirs = multiprocessing.Pipe()
    inherited = (theirs.fileno(), arena)
    words = [sys.executable, "-m", "ingestion.packs.process", *map(str, inherited)]
    with subprocess.Popen(words, pass_fds=inherited, cwd=ROOT) as running:
        theirs.close()
        with ours, mmap.mmap(arena, 0) as shared:
            yield Process(running.pid, ours, shared)
        assert running.wait(60) == 0, "it does not end with its worker"
    os.close(arena)


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[io.FileIO]:
    with (tmp_path / "pack").open("x+b", buffering=0) as file:
        yield file


def _bodies(file: io.FileIO) -> list[bytes]:
    found = []
    for entry in scan(file, PACK):
        file.seek(entry.extent.offset)
        found.append(zstandard.decompress(file.read(entry.extent.length)))
    return found


def test_messages_are_in_the_pack_and_their_rows_come_back(
    process: Process, pack: io.FileIO
) -> None:
    begin(pack, PACK, {"source": "one"})
    bodies = [b"Subject: Tab\there\r\n\r\n1\r\n", b"", b"\0\xff no header"]
    for part in (bodies[:2], bodies[2:]):
        content = process.pack(pack, *part)
        assert isinstance(content, bytes)
        assert content.count(b"\n") == len(part)
        assert content.startswith(f"{MAILBOX.hex}\t{PACK.hex}\t".encode())
    assert _bodies(pack) == bodies


def test_what_is_known_of_a_message_is_in_its_record_and_its_row(
    process: Process, pack: io.FileIO
) -> None:
    begin(pack, PACK, {"source": "one"})
    body, time = b"Subject: Hello\r\n\r\n1\r\n", "2024-02-01T11:34:56+00:00"
    record = _record(body, len(body))._replace(
        remote_id="7:1", stable_id="S", thread_id="T", received_at=time, labels=("\\Seen", "work")
    )
    process.arena[: len(body)] = body
    job = protocol.Job(MAILBOX.hex, PACK.hex, True, ["0" * 31 + "7"], [record], [0])
    protocol.send_job(process.channel, job, [pack.fileno()])
    row = process.channel.recv().decode().split("\t")
    assert row[2:5] == ["0" * 31 + "7", f"\\\\x{record.sha256.hex()}", str(len(body))]
    assert (row[7], row[8]) == (time, "Hello")
    assert [RecordHeader.parse(entry.header) for entry in scan(pack, PACK)] == [record]


def test_a_write_that_fails_is_told_and_leaves_nothing(process: Process, pack: io.FileIO) -> None:
    begin(pack, PACK, {"source": "one"})
    size = pack.tell()
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + 50, -1))
    try:
        error = process.pack(pack, os.urandom(1000))
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror) == (errno.EFBIG, "File too large")
    assert pack.seek(0, os.SEEK_END) == size


def test_a_job_that_fails_leaves_the_pack_as_it_was_and_the_process_alive(
    process: Process, pack: io.FileIO
) -> None:
    begin(pack, PACK, {"source": "one"})
    process.pack(pack, b"before")
    with tempfile.TemporaryFile(buffering=0) as large:
        large.write(b"shorter than it says")
        error = process.pack(pack, b"with it", large=large, size=5_000_000)
    assert isinstance(error, RuntimeError)
    assert "ZstdError" in str(error)
    process.pack(pack, b"after")
    assert _bodies(pack) == [b"before", b"after"]


def test_a_worker_ends_with_a_process_that_ends_within_an_answer() -> None:
    """It is no full disk, though the standard library calls it an OSError too."""
    story = """
import multiprocessing, os
from django.conf import settings
settings.configure(BASE_DIR=".")
from ingestion.packs.client import Answer, PackingProcess
process = PackingProcess()
process._channel, theirs = multiprocessing.Pipe()  # which ends the real one, too
process._waiting.append(Answer(process))
os.write(theirs.fileno(), b"\\0\\0\\1\\0 half of it")
theirs.close()
process.release()
"""
    words = [sys.executable, "-c", story]
    worker = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    assert worker.returncode == -signal.SIGKILL, worker.stderr.decode()


def test_no_descriptor_stays_open(process: Process, pack: io.FileIO) -> None:
    begin(pack, PACK, {"source": "one"})
    process.pack(pack, b"x")
    before = process.descriptors()
    with tempfile.TemporaryFile(buffering=0) as large:
        large.write(b"y" * 100)
        for _ in range(5):
            assert isinstance(process.pack(pack, b"x", large=large, size=100), bytes)
    assert process.descriptors() == before
