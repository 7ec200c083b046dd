"""Reads one message in a process of its own, with limits, and says what it says.

    python -m ingestion.mail.child CPU_SECONDS MEMORY_BYTES < MESSAGE > ANSWER

`services.archive.reading` starts it. It has no environment, no database and no key; whatever a mail
does to a parser ends with it. It starts in some 50 ms, because it imports little.
"""

import json
import mmap
import os
import resource
import sys

from ingestion.mail.attachments import Attachment
from ingestion.mail.body import Contents, Version, read
from ingestion.mail.mime import Raw


def answered(answer: bytes) -> Contents:
    """Return what the child said. Raises ValueError or TypeError where that is no answer."""
    said = Contents(**json.loads(answer))
    return said._replace(
        versions=tuple([Version(*version) for version in said.versions]),
        attachments=tuple([Attachment(*attachment) for attachment in said.attachments]),
        notes=tuple(said.notes),
    )


def main(cpu_seconds: int, memory_bytes: int) -> None:
    size = os.fstat(sys.stdin.fileno()).st_size
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes + size),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # An empty file can't be mapped.
    raw: Raw = mmap.mmap(sys.stdin.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    json.dump(read(raw)._asdict(), sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
