"""Streaming download of bodies: two commands in flight, each message handed on as it completes.

Latency is hidden by pipelining; work is bounded in bytes by the batches and by the queue between
the connections' threads and the caller. Every reference is answered exactly once.
"""

import collections
import dataclasses
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence

from connectors.errors import (
    ConnectorError,
    MessageGone,
    MessageRefused,
    Retryable,
    Skippable,
    Unavailable,
)
from connectors.generic_imap import listing, wire
from connectors.generic_imap.client import Login, refusal
from connectors.generic_imap.listing import Uids
from connectors.types import MessageRef, Missing, RawMessage, RemoteFolder, SpooledBody

#: Measured on loopback: more per command gains nothing, less costs at 40 ms of latency.
_BATCH_BYTES = 2_000_000
_BATCH_MESSAGES = 400
_IN_FLIGHT = 2
#: A second connection pays for its login only on more than this.
_BYTES_PER_CONNECTION = 4_000_000
_MESSAGES_PER_CONNECTION = 500
#: What waits between the threads and the caller: at most this many chunks of this size.
_CHUNK_BYTES = 500_000
_CHUNK_MESSAGES = 64
_CHUNKS = 16

_BODY = re.compile(
    rb"^\* \d+ FETCH \((.*)BODY\[\] (?:~?\{(\d+)\+?\}\r?\n$|(NIL)|\")", re.IGNORECASE | re.DOTALL
)
_UID = re.compile(rb"\bUID (\d+)")

Answer = RawMessage | Missing


@dataclasses.dataclass(slots=True)
class _Batch:
    """One FETCH command: what it asks for and what is not answered yet."""

    refs: dict[int, MessageRef]

    def command(self) -> bytes:
        return f"UID FETCH {Uids((uid, uid) for uid in self.refs)} (UID BODY.PEEK[])".encode()


class _Stopped(Exception):
    """The caller wants no more."""


class Fetch:
    """One call of `MailboxSession.fetch`. Iterate it once; close() stops its threads."""

    def __init__(
        self,
        folder: RemoteFolder,
        refs: Sequence[MessageRef],
        *,
        main: Login,
        more: Callable[[int], list[Login]],
        max_message_bytes: int,
    ) -> None:
        self._folder, self._main, self._more = folder, main, more
        self._max_message_bytes = max_message_bytes
        self._out: queue.Queue[list[Answer] | BaseException | None] = queue.Queue(_CHUNKS)
        self._stop = threading.Event()
        self._refs = refs
        self._batches: collections.deque[_Batch] = collections.deque()
        self._threads: list[threading.Thread] = []

    def answers(self) -> Iterator[Answer]:
        """Yield every answer. Raises Retryable after what had arrived whole was yielded."""
        opened = self._open(self._main)
        yield from self._sort_out(opened)
        logins = [self._main, *self._more(self._connections_that_pay() - 1)]
        problem: BaseException | None = None
        try:
            self._start(logins[: max(1, len(self._batches))])
            running = len(self._threads)
            while running:
                item = self._out.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    problem = problem or item
                else:
                    yield from item
        finally:
            self.close()
        if problem is not None:
            raise problem

    def close(self) -> None:
        """Stop the threads; their connections are of no more use where they were reading."""
        self._stop.set()
        for thread in self._threads:
            while thread.is_alive():
                try:
                    _discard(self._out.get(timeout=0.05))
                except queue.Empty:
                    continue
        while not self._out.empty():
            _discard(self._out.get_nowait())

    # -- preparing -----------------------------------------------------------------------------

    def _open(self, login: Login) -> int:
        """Have the folder open on a connection; return its UIDVALIDITY."""
        if login.opened is None or login.opened[0] != self._folder.remote_id:
            return listing.examine(login, self._folder).validity
        return login.opened[1]

    def _sort_out(self, validity: int) -> Iterator[Answer]:
        """Cut what can be asked for into batches; answer for the rest."""
        wanted: list[tuple[int, MessageRef]] = []
        for ref in self._refs:
            of, _, number = ref.remote_id.partition(":")
            if of != str(validity):
                yield Missing(ref, MessageGone("The folder was renumbered by the server."))
            elif (ref.size_bytes or 0) > self._max_message_bytes:
                yield Missing(ref, self._too_large(ref.size_bytes or 0))
            else:
                wanted.append((int(number), ref))
        refs: dict[int, MessageRef] = {}
        size = 0
        for uid, ref in sorted(wanted, key=lambda pair: pair[0]):
            length = ref.size_bytes or 0
            if refs and (size + length > _BATCH_BYTES or len(refs) >= _BATCH_MESSAGES):
                self._batches.append(_Batch(refs))
                refs, size = {}, 0
            refs[uid] = ref
            size += length
        if refs:
            self._batches.append(_Batch(refs))

    def _too_large(self, size: int) -> MessageRefused:
        return MessageRefused(
            f"The message has {size:,} bytes, more than MAX_MESSAGE_BYTES "
            f"({self._max_message_bytes:,}) allows. Raise the limit and retry it.",
            code="too_large",
        )

    def _connections_that_pay(self) -> int:
        size = sum(ref.size_bytes or 0 for ref in self._refs)
        by_work = max(size // _BYTES_PER_CONNECTION, len(self._refs) // _MESSAGES_PER_CONNECTION)
        return int(max(1, min(by_work, len(self._batches))))

    def _start(self, logins: Sequence[Login]) -> None:
        for login in logins:
            thread = threading.Thread(target=self._work, args=(login,), name="imap", daemon=True)
            self._threads.append(thread)
            thread.start()

    # -- in a thread ---------------------------------------------------------------------------

    def _work(self, login: Login) -> None:
        try:
            sender = _Sender(self)
            try:
                if self._open(login) is not None:
                    self._download(login, sender)
            finally:
                sender.flush()
        except _Stopped:
            login.close()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            login.close()
            self.put(error, even_if_stopped=True)
        finally:
            self.put(None, even_if_stopped=True)

    def _download(self, login: Login, sender: "_Sender") -> None:
        flying: collections.deque[tuple[bytes, _Batch]] = collections.deque()
        again: list[MessageRef] = []
        while True:
            while len(flying) < _IN_FLIGHT and (batch := self._next()) is not None:
                flying.append((login.wire.command(batch.command()), batch))
            if not flying:
                break
            tag, batch = flying[0]
            status = self._read_until(login, tag, [b for _, b in flying], sender)
            flying.popleft()
            if not status.upper().startswith(b"OK"):
                _raise_if_passing(status)
            again.extend(batch.refs.values())
        for ref in again:
            sender.add(self._one(login, ref, sender))

    def _next(self) -> _Batch | None:
        try:
            return None if self._stop.is_set() else self._batches.popleft()
        except IndexError:
            return None

    def _one(self, login: Login, ref: MessageRef, sender: "_Sender") -> Answer | None:
        """Ask once more, singly, for what a batch did not answer; say why it can't be had."""
        uid = int(ref.remote_id.partition(":")[2])
        batch = _Batch({uid: ref})
        status = self._read_until(login, login.wire.command(batch.command()), [batch], sender)
        if not batch.refs:
            return None
        if not status.upper().startswith(b"OK"):
            _raise_if_passing(status)
            error = refusal(wire.printable(status), otherwise=MessageRefused)
            if not isinstance(error, Skippable):
                error = MessageRefused(str(error))
            return Missing(ref, error)
        if listing.exists(login, uid):
            return Missing(ref, MessageRefused("The server has the message and sends no body."))
        return Missing(ref, MessageGone("The message was deleted before it could be fetched."))

    def _read_until(
        self, login: Login, tag: bytes, batches: Sequence[_Batch], sender: "_Sender"
    ) -> bytes:
        """Read replies up to a tagged one; return its status. Answered refs leave their batch."""
        connection = login.wire
        ending = tag + b" "
        while True:
            line = connection.readline()
            if line.startswith(ending):
                return line[len(ending) :].strip()
            match = _BODY.match(line)
            if match is None:
                if line[:6].upper() == b"* BYE ":
                    raise connection.bye(line[2:])
                connection.complete(line)
            elif match[2] is not None:
                self._take(connection, match, batches, sender)
            elif match[3] is None:
                self._take_quoted(connection.complete(line), batches, sender)

    def _take(
        self,
        connection: wire.Wire,
        match: re.Match[bytes],
        batches: Sequence[_Batch],
        sender: "_Sender",
    ) -> None:
        size = int(match[2])
        before = _UID.search(match[1])
        if size > self._max_message_bytes:
            if before and (ref := _claim(batches, int(before[1]))):
                sender.add(Missing(ref, self._too_large(size)))
            raise Unavailable(
                f"The server announced a message of {size:,} bytes.", code="too_large"
            )
        body = connection.body(size)
        rest = connection.complete(connection.readline())
        uid = before or _UID.search(rest[0])
        ref = _claim(batches, int(uid[1])) if uid else None
        if ref is not None:
            sender.add(RawMessage(ref, body))
        elif isinstance(body, SpooledBody):
            body.close()

    def _take_quoted(
        self, response: list[bytes], batches: Sequence[_Batch], sender: "_Sender"
    ) -> None:
        """Take a short body that came as a quoted string."""
        response[0] = response[0][2:]
        values = wire.parse(response)
        items = wire.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}
        uid, body = items.get(b"UID"), items.get(b"BODY[]")
        if isinstance(uid, bytes) and isinstance(body, bytes):
            ref = _claim(batches, int(uid))
            if ref is not None:
                sender.add(RawMessage(ref, body))

    def put(
        self, item: list[Answer] | BaseException | None, *, even_if_stopped: bool = False
    ) -> None:
        while True:
            if self._stop.is_set() and not even_if_stopped:
                raise _Stopped
            try:
                self._out.put(item, timeout=0.2)
            except queue.Full:
                if self._stop.is_set():
                    return  # nobody reads any more
                continue
            return


class _Sender:
    """Gathers one thread's answers into chunks: a queue operation per message would cost more."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._chunk: list[Answer] = []
        self._bytes = 0

    def add(self, answer: Answer | None) -> None:
        if answer is None:
            return
        self._chunk.append(answer)
        if isinstance(answer, RawMessage):
            body = answer.body
            self._bytes += len(body) if isinstance(body, bytes) else 0
        if len(self._chunk) >= _CHUNK_MESSAGES or self._bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._chunk:
            chunk, self._chunk, self._bytes = self._chunk, [], 0
            try:
                self._fetch.put(chunk)
            except _Stopped:
                _discard(chunk)
                raise


def _claim(batches: Sequence[_Batch], uid: int) -> MessageRef | None:
    """Take a reference out of the batch that asked for it; None: nobody did, or it was answered."""
    for batch in batches:
        ref = batch.refs.pop(uid, None)
        if ref is not None:
            return ref
    return None


def _raise_if_passing(status: bytes) -> None:
    """Raise where a NO is about the moment (throttled, unavailable), not about the message."""
    error: ConnectorError = refusal(wire.printable(status), otherwise=MessageRefused)
    if isinstance(error, Retryable):
        raise error


def _discard(item: list[Answer] | BaseException | None) -> None:
    for answer in item if isinstance(item, list) else ():
        if isinstance(answer, RawMessage) and isinstance(answer.body, SpooledBody):
            answer.body.close()
