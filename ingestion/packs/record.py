"""A message on its way into a pack, and what the header of its record says of it there: enough to
make the message's rows again.

The one place that knows the fields, on their way into a pack (`dumps`, by the packing process) and
back (`parse`, by verification and rebuild). `packs.format` frames and seals what is said here.
"""

import datetime as dt
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from connectors.types import MessageRef
from ingestion.packs.format import encoded

_SHORT_CHARS = 500


class NewMessage(NamedTuple):
    """A fetched message, whose bytes travel beside it. `id`, of hexadecimal digits, is its row's,
    where they are not archived already."""

    id: str
    sha256: bytes
    size: int
    ref: MessageRef


class Origin(NamedTuple):
    """What the messages of a job have in common: where they are from, and when they were packed
    (ISO 8601; "" in packs of the first format)."""

    mailbox: str
    address: str
    folder: str
    path: str
    archived_at: str


class RecordHeader(NamedTuple):
    """What is known of a message beside its bytes. Times are ISO 8601."""

    sha256: bytes
    size: int
    origin: Origin
    remote_id: str
    stable_id: str
    thread_id: str  # "" also in packs of the first format, which did not have it
    received_at: str | None
    labels: tuple[str, ...]

    @classmethod
    def of(cls, message: NewMessage, origin: Origin) -> Self:
        """Say what is known of a new message."""
        _, sha256, size, (remote_id, _, stable_id, thread_id, time, labels, _) = message
        received_at = time.isoformat() if time else None
        labels = labels or ()
        return cls(sha256, size, origin, remote_id, stable_id, thread_id, received_at, labels)

    def dumps(self) -> str:
        """Write it as a JSON object. It is put together by hand: to let JSON encode the whole of it
        takes three times as long."""
        received_at = f'"{self.received_at}"' if self.received_at else "null"
        return (
            f'{{"sha256":"{self.sha256.hex()}","size":{self.size},{_of(self.origin)},'
            f'"remote_id":{encoded(self.remote_id)},"stable_id":{encoded(self.stable_id)},'
            f'"thread_id":{encoded(self.thread_id)},"received_at":{received_at},'
            f'"labels":{_listed(self.labels)}}}'
        )

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Read it. Raises ValueError where a field is missing or no good."""
        try:
            received_at, archived_at = given["received_at"], given.get("archived_at", "")
            header = cls(
                sha256=bytes.fromhex(given["sha256"]),
                size=int(given["size"]),
                origin=Origin(
                    mailbox=str(given["mailbox"]),
                    address=str(given.get("address", "")),
                    folder=str(given["folder"]),
                    path=str(given.get("path", "")),
                    archived_at=_time(archived_at) if archived_at else "",
                ),
                remote_id=str(given["remote_id"]),
                stable_id=str(given.get("stable_id", "")),
                thread_id=str(given.get("thread_id", "")),
                received_at=_time(received_at) if received_at else None,
                labels=tuple(str(label) for label in given.get("labels", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no usable header ({type(error).__name__}: {error})") from error
        if len(header.sha256) != 32:
            raise ValueError("no SHA-256")
        return header


def _time(text: str) -> str:
    return dt.datetime.fromisoformat(text).isoformat()


@functools.lru_cache(maxsize=8)
def _of(origin: Origin) -> str:
    return encoded(origin._asdict())[1:-1]


def cached(function: Callable[[tuple[str, ...]], str]) -> Callable[[tuple[str, ...]], str]:
    """Remember what a function of labels returned: few sets of them are all there are. Not so of
    long ones, which a server may think up."""
    remembered = functools.lru_cache(maxsize=1000)(function)

    def answer(labels: tuple[str, ...]) -> str:
        return (remembered if sum(map(len, labels)) <= _SHORT_CHARS else function)(labels)

    return answer


_listed = cached(encoded)
