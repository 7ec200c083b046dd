"""What an archived message says.

Its bytes are verified, then read in a child process with limits: no mail can hold or end the
process that asks.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import structlog

from connectors.types import Body
from ingestion.mail import child
from ingestion.mail.body import Contents
from ingestion.models import Message
from ingestion.packs.store import Extent, store

#: Larger than providers take (150 MB). It bounds for how long the bytes are verified.
MAX_BYTES = 200_000_000
#: Of the child, beside a large message's own bytes. The costliest mail known takes 0.6 s of a core
#: and 160 MB; the deadline is for a machine that is busy with other things.
CPU_SECONDS = 5
MEMORY_BYTES = 500_000_000
DEADLINE_SECONDS = 20.0

_ROOT = Path(__file__).resolve().parents[3]

log = structlog.get_logger(__name__)


def opened(message: Message) -> Body:
    """Return the exact bytes of a message: close a SpooledBody. Raises Corrupt."""
    return store().open(
        message.mailbox.source_id,
        message.pack_id,
        Extent(message.pack_offset, message.pack_length),
        sha256=bytes(message.sha256),
        size=message.size_bytes,
    )


def contents(message: Message) -> Contents:
    """Return what a message says; where it can't be read, a note says that. Raises Corrupt."""
    if message.size_bytes > MAX_BYTES:
        return Contents(notes=(f"Larger than {MAX_BYTES:,} bytes. Download it to read it.",))
    body = opened(message)
    try:
        return read(body)
    except (subprocess.SubprocessError, ValueError, TypeError) as error:
        # Whoever wants to know why: python -m ingestion.mail.child 5 500000000 < the message
        log.warning("message.unreadable", message=str(message.pk), error=type(error).__name__)
        return Contents(
            notes=("It can't be read within the limits of this page. Download it to read it.",)
        )
    finally:
        if not isinstance(body, bytes):
            body.close()


def read(body: Body) -> Contents:
    """Read a message in a child. Raises SubprocessError where that comes to nothing in its time,
    and ValueError or TypeError where its answer is none."""
    if isinstance(body, bytes):
        with tempfile.TemporaryFile() as file:
            file.write(body)
            return _read_file(file)
    return _read_file(body.file)


def _read_file(file: IO[bytes]) -> Contents:
    file.flush()
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", child.__name__, str(CPU_SECONDS), str(MEMORY_BYTES)],
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback would have words of the mail
        cwd=_ROOT,
        env={},
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    return child.answered(done.stdout)
