"""Downloads messages with several connections at once, as fast as the quota allows.

Concurrent gets, not batches. Measured on a server that answers after 50 ms: 8 connections made 141
messages/s of 2 kB and 110 of 100 kB, batches of 50 made 343 and 113; the quota allows 5 or 50. So
either is enough, and a batch would be in memory whole before its first message could be stored.
"""

import binascii
import collections
import concurrent.futures
import dataclasses
import datetime as dt
import json
import queue
import re
import tempfile
import threading
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
from connectors.refusals import RefusalGuard
from connectors.types import SPOOL_BYTES, Body, MessageRef, Missing, RawMessage, SpooledBody

#: No download begins while so much waits to be taken.
_WAITING_BYTES = 16_000_000
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
    """The answers to one fetch(). Use `answers()` once, to its end or close it."""

    def __init__(self, mailbox: GmailMailbox, refs: Sequence[MessageRef]) -> None:
        self._mailbox = mailbox
        self._todo = collections.deque(refs)
        self._done: queue.SimpleQueue[RawMessage | Missing | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._waiting_bytes = 0
        self._taken = threading.Condition()

    def answers(self) -> Iterator[RawMessage | Missing]:
        """Yield an answer for each reference, in any order. Raises the first error, after what
        came whole was yielded."""
        count = min(self._mailbox.connections, len(self._todo))
        guard = RefusalGuard()
        try:
            with concurrent.futures.ThreadPoolExecutor(max(1, count), "gmail") as pool:
                try:
                    for _ in range(count):
                        pool.submit(self._work)
                    yield from self._taken_answers(count, guard)
                finally:
                    self._end(None)
        finally:
            self._drop_the_rest()
        if self._error is not None:
            raise self._error
        yield from guard.end()

    def _drop_the_rest(self) -> None:
        while not self._done.empty():
            answer = self._done.get()
            if isinstance(answer, RawMessage):
                answer.close()

    def _taken_answers(self, workers: int, guard: RefusalGuard) -> Iterator[RawMessage | Missing]:
        while workers:
            answer = self._done.get()
            if answer is None:
                workers -= 1
                continue
            yield from guard.take(answer)
            with self._taken:
                self._waiting_bytes -= _weight(answer)
                self._taken.notify()

    def _end(self, error: BaseException | None) -> None:
        """Have the threads finish what they have under way, and no more."""
        self._stop.set()
        with self._taken:
            self._error = self._error or error
            self._taken.notify_all()

    # -- in each thread --------------------------------------------------------------------------

    def _work(self) -> None:
        caller = self._mailbox.caller(self._stop)
        try:
            while (ref := self._next()) is not None:
                answer = self._one(caller, ref)
                with self._taken:
                    self._waiting_bytes += _weight(answer)
                self._done.put(answer)
        except BaseException as error:
            self._end(error)
            raise
        finally:
            self._mailbox.give_back(caller)
            self._done.put(None)

    def _next(self) -> MessageRef | None:
        with self._taken:
            while self._waiting_bytes >= _WAITING_BYTES and not self._stop.is_set():
                self._taken.wait()
        if self._stop.is_set():
            return None
        try:
            return self._todo.popleft()
        except IndexError:
            return None

    def _one(self, caller: Caller, ref: MessageRef) -> RawMessage | Missing:
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


def _weight(answer: RawMessage | Missing) -> int:
    """Return the bytes that an answer counts for. Those on disk count too: so few files wait."""
    body = answer.body if isinstance(answer, RawMessage) else b""
    return 1_000 + (len(body) if isinstance(body, bytes) else SPOOL_BYTES)


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
