"""The values that cross the boundary between the sync engine and a connector.

Plain and frozen; times are aware UTC; sizes are bytes. Nothing here knows of Django.
"""

import contextlib
import dataclasses
import datetime as dt
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple, Protocol, Self

from connectors.errors import MessageRefused

#: JSON object, opaque to everyone but the connector that minted it. Kept per folder.
Cursor = Mapping[str, Any]

#: Bodies up to this size are handed on as bytes; larger ones are spooled to a temporary file.
SPOOL_BYTES = 4_000_000
CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Who the credentials turned out to be, for people: "alice@example.com, 12 folders"."""

    account: str
    detail: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteMailbox:
    """One account's mail. `remote_id` is immutable at the provider; `address` may change.

    `unavailable` is the reason why its mail can't be read (suspended, no licence), or "".
    """

    remote_id: str
    address: str
    unavailable: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFolder:
    """What has a cursor of its own. `path` is decoded Unicode with "/" between levels, for people
    and globs; `remote_id` is what the provider calls it. `role` is a value of states.FolderRole.
    `unlisted`: it stands for the folders in one that can't be listed now; its path ends with "/*",
    and `changes()` says why.
    `message_count` is the provider's count, if it told; `exact_count` where it counts just what
    `changes()` lists from the beginning. `state` is the connector's own note for
    `changes()` (for IMAP the STATUS items); `stable_id` survives a rename where the provider has
    one (IMAP MAILBOXID). `lasting_ids`: those of its messages are given to no others, also where it
    is deleted and made again by the same name."""

    remote_id: str
    path: str
    role: str = ""
    message_count: int | None = None
    exact_count: bool = False
    stable_id: str = ""
    lasting_ids: bool = False
    unlisted: bool = False
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)


class MessageRef(NamedTuple):
    """A message in a folder, as listed. (folder, remote_id) names immutable bytes for ever; of a
    draft that is written on under its id, the bytes that were had first are kept.

    `stable_id` names the same bytes in every folder of the mailbox (EMAILID, X-GM-MSGID), or "".
    `size_bytes` is what the provider claims; it may be wrong. `labels` are the placement's
    attributes (IMAP flags such as "\\\\Seen", Gmail labels by display name), sorted; None where the
    listing does not tell them. `roles`: "junk", "trash", "drafts" or "chats", where one folder
    holds such messages beside others. What fetch() answers with may know more than what was listed.
    A tuple, which is made three times as fast as a frozen dataclass.
    """

    remote_id: str
    size_bytes: int | None = None
    stable_id: str = ""
    thread_id: str = ""
    received_at: dt.datetime | None = None
    labels: tuple[str, ...] | None = ()
    roles: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What the engine will keep: no message with one of the roles `left_out`, none received before
    `since` (UTC). `has_mail`: some of the mailbox is archived already, so that a listing from the
    beginning may find labels of it that have changed."""

    left_out: frozenset[str] = frozenset()
    since: dt.date | None = None
    has_mail: bool = False


class RemoteIds(Protocol):
    """A set of remote ids that may be held as ranges."""

    def __contains__(self, remote_id: object, /) -> bool: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One step of a listing. Once all of it is durable, `cursor` may be stored, never before.

    `present`, where given, is every remote id now in the folder: any other is removed.
    `again`: `added` was listed before, but for what came late or was not shown for a while; what is
    in the folder, as far as anybody knows, is as it was.
    `last`: nothing follows, though asked after `cursor` the connector would list the folder anew.
    `more`: the next page is at hand; asked after `cursor`, much would be listed again before it.
    """

    cursor: Cursor
    added: Sequence[MessageRef] = ()
    removed: Sequence[str] = ()
    relabelled: Sequence[tuple[str, tuple[str, ...]]] = ()
    present: RemoteIds | None = None
    again: bool = False
    last: bool = False
    more: bool = False


@dataclasses.dataclass(slots=True)
class SpooledBody:
    """The bytes of one large message in an anonymous temporary file; close() frees it."""

    file: IO[bytes]
    size: int

    @classmethod
    def begin(cls) -> Self:
        """Make an empty one, to be written to. Raises MessageRefused where TMPDIR has no room."""
        with _room():
            return cls(tempfile.TemporaryFile(), 0)

    def write(self, data: bytes | bytearray) -> None:
        """Add bytes at its end. Raises MessageRefused where TMPDIR has no room for them."""
        with _room():
            self.size += self.file.write(data)
            self.file.flush()  # nobody would know of which message it could not be done later

    def chunks(self) -> Iterator[bytes]:
        self.file.seek(0)
        while chunk := self.file.read(CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        self.file.close()


Body = bytes | SpooledBody


def tmpdir() -> str:
    """Name TMPDIR, for people. Where nothing can be written to any, `gettempdir` itself raises."""
    return f"TMPDIR ({tempfile.tempdir or os.environ.get('TMPDIR', 'unset')})"


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Say of the message what is wrong with this machine's disk: the others are smaller."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise MessageRefused(
            f"It is larger than {SPOOL_BYTES:,} bytes, and {tmpdir()} can't hold it meanwhile"
            f" ({why}). Free space there, or have TMPDIR name a larger disk, and retry it.",
            code="no_room",
            of_item=True,
        ) from error


@dataclasses.dataclass(slots=True)
class RawMessage:
    """A message exactly as served. `received_at` is the provider's (INTERNALDATE), not a header."""

    ref: MessageRef
    body: Body

    def close(self) -> None:
        """Free a spooled body. Idempotent."""
        if isinstance(self.body, SpooledBody):
            self.body.close()


@dataclasses.dataclass(slots=True)
class Missing:
    """A message that was asked for and can't be had, with the reason (Skippable)."""

    ref: MessageRef
    error: Exception
