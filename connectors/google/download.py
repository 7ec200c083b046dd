"""Downloads messages with several connections at once, as fast as the quota allows.

Concurrent gets, not batches. Measured on a server that answers after 50 ms: 8 connections made 141
messages/s of 2 kB and 110 of 100 kB, batches of 50 made 343 and 113; the quota allows 5 or 50. So
either is enough, and a batch would be in memory whole before its first message could be stored.
"""

import binascii
import dataclasses
import datetime as dt
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from connectors.errors import (
    Fatal,
    MailboxUnavailable,
    MessageGone,
    MessageRefused,
    Unavailable,
)
from connectors.google.client import Caller
from connectors.google.mailbox import GmailMailbox, roles_of
from connectors.google.problems import DENIED, Absent, BadRequest, OutOfOrder
from connectors.google.transport import ResponseTooLarge
from connectors.parallel import Answer, Pool, Worker
from connectors.types import SPOOL_BYTES, Body, MessageRef, Missing, RawMessage, SpooledBody

_RAW = re.compile(rb'"raw"\s*:\s*"')
_STEP = 4 << 18  # of base64: a multiple of 4
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclasses.dataclass(slots=True)
class _Got:
    """A message as Google gave it."""

    about: dict[str, Any]
    body: Body
    size: int


class Download:
    """The answers to one fetch()."""

    def __init__(self, mailbox: GmailMailbox, refs: Sequence[MessageRef]) -> None:
        self._mailbox, self._refs = mailbox, refs

    def answers(self) -> Iterator[Answer]:
        """As Pool.answers."""
        connections = self._mailbox.connections
        return Pool(self._refs, self._work, name="gmail", workers=connections).answers()

    def _work(self, worker: Worker) -> None:
        caller = self._mailbox.caller(worker.stop)
        try:
            for ref in worker.one_by_one():
                worker.add(self._answer(caller, ref))
        finally:
            self._mailbox.give_back(caller)

    def _answer(self, caller: Caller, ref: MessageRef) -> Answer:
        try:
            got: _Got = self._mailbox.download(caller, ref.remote_id, _read)
        except Absent:
            return Missing(ref, MessageGone("Deleted before it could be downloaded."))
        except BadRequest as error:
            return Missing(ref, MessageRefused(f"It can't be had. {error}"))
        except ResponseTooLarge:
            text = "It is larger than MAX_MESSAGE_BYTES."
            return Missing(ref, MessageRefused(text, code="too_large", of_item=True))
        except _Unreadable as error:
            return Missing(ref, MessageRefused(str(error)))
        except (OutOfOrder, MailboxUnavailable, Fatal) as error:
            if not isinstance(error, OutOfOrder) and error.code != DENIED:
                raise
            self._mailbox.probe(caller)  # raises where it is not only this message
            text = f"Google fails at this message, and not at others. {error}"
            return Missing(ref, MessageRefused(text))
        return RawMessage(self._described(ref, got), got.body)

    def _described(self, ref: MessageRef, got: _Got) -> MessageRef:
        about = got.about
        if about.get("id") != ref.remote_id:
            raise Unavailable("Google answered with another message than was asked for.")
        labels = list(about.get("labelIds", ()))
        return ref._replace(
            size_bytes=got.size,
            stable_id=ref.remote_id,
            thread_id=about.get("threadId", ""),
            received_at=_date(about.get("internalDate", "")),
            labels=self._mailbox.label_names(labels),
            roles=roles_of(labels),
        )


class _Unreadable(Exception):
    """The answer has no bytes that can be decoded."""


def _date(milliseconds: str) -> dt.datetime | None:
    if not milliseconds.lstrip("-").isdigit():
        return None
    try:
        return dt.datetime.fromtimestamp(int(milliseconds) / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _read(content: bytes | bytearray) -> _Got:
    """Take an answer apart without a copy of the whole: json would make two."""
    start = _RAW.search(content)
    end = content.find(b'"', start.end()) if start else -1
    if start is None or end < 0:
        raise _Unreadable("Google's answer has no message in it.")
    about = json.loads(bytes(content[: start.start()]) + b'"raw":null' + bytes(content[end + 1 :]))
    for padding in (b"=", b"=", b"\\u003d", b"\\u003d"):  # JSON may spell it so
        end -= len(padding) if content.endswith(padding, start.end(), end) else 0
    encoded = memoryview(content)[start.end() : end]
    size = len(encoded) * 3 // 4
    if size <= SPOOL_BYTES:
        body = _decoded(bytes(encoded))
        return _Got(about, body, len(body))
    spooled = SpooledBody(tempfile.TemporaryFile(), 0)  # noqa: SIM115 - who takes it closes it
    try:
        for at in range(0, len(encoded), _STEP):
            spooled.size += spooled.file.write(_decoded(bytes(encoded[at : at + _STEP])))
    except BaseException:
        spooled.close()
        raise
    return _Got(about, spooled, spooled.size)


def _decoded(text: bytes) -> bytes:
    """Decode base64url, strictly: a lenient decoder would leave out what it does not know."""
    standard = text.translate(_STANDARD)
    try:
        return binascii.a2b_base64(standard + b"=" * (-len(standard) % 4), strict_mode=True)
    except binascii.Error:
        raise _Unreadable("Google's answer is not valid base64.") from None
