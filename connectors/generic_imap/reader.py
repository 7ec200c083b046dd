"""Streaming download of bodies: two commands in flight, each message handed on as it completes.

Latency is hidden by pipelining; work is bounded in bytes by the batches and by the queue between
the connections' threads and the caller. Every reference is answered exactly once.
"""

import collections
import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator, Sequence

from connectors.errors import (
    ConnectorError,
    MessageGone,
    MessageRefused,
    Unavailable,
)
from connectors.generic_imap import listing, wire
from connectors.generic_imap.client import Login, must_wait, refusal
from connectors.generic_imap.describing import PLAIN_ITEMS, described
from connectors.generic_imap.uids import Uids
from connectors.types import (
    SPOOL_BYTES,
    MessageRef,
    Missing,
    RawMessage,
    RemoteFolder,
    SpooledBody,
)

#: Measured on loopback: more per command gains nothing, less costs at 40 ms of latency.
_BATCH_BYTES = 1_000_000
_BATCH_MESSAGES = 400
#: What a message counts whose size the listing does not tell.
_USUAL_BYTES = 10_000
_IN_FLIGHT = 2
#: A second connection pays for its login only on more than this.
_BYTES_PER_CONNECTION = 4_000_000
_MESSAGES_PER_CONNECTION = 500
#: What waits between the threads and the caller: at most this many chunks of this size.
_CHUNK_BYTES = 500_000
_CHUNK_MESSAGES = 64
_WAITING_BYTES = 4_000_000
#: More untagged responses in a row that nobody asked for are an attack. One flag change by another
#: client may send one per message of the folder.
_MAX_UNASKED = 2_000_000
#: A message above the limit of size that the listing did not tell is read and dropped, so that the
#: connection can go on. One above this is not worth that.
_MAX_PASSED_OVER_BYTES = 1_000_000_000

_BODY = re.compile(
    rb"^\* \d+ FETCH \((.*)BODY\[\] (?:~?\{(\d+)\+?\}\r?\n$|(NIL)|\")", re.IGNORECASE | re.DOTALL
)
_UID = re.compile(rb"\bUID (\d+)")
#: What nearly all servers send, as far as its body: looked at without calling a function per line.
_USUAL = re.compile(
    rb"\* \d+ FETCH \((?P<items>UID (?P<uid>\d{1,10}) [^{\r\n]*)BODY\[\] \{(?P<size>\d{1,7})\}\r\n"
)
_USUAL_END = b")\r\n"
#: What may follow a body: further items, and the end of the response.
_REST = re.compile(rb"(?: [A-Z][\w.-]* (?:\d+|NIL|\([^()]*\)|\"[^\"]*\"))* ?\)\r?\n", re.IGNORECASE)

Answer = RawMessage | Missing
_Item = list[Answer] | BaseException | None


@dataclasses.dataclass(slots=True)
class _Batch:
    """One FETCH command: what it asks for and what is not answered yet."""

    refs: dict[int, MessageRef]

    def command(self, items: str) -> bytes:
        return f"UID FETCH {Uids((uid, uid) for uid in self.refs)} ({items})".encode()


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
        more: Callable[[int], Login | None],
        connections: int,
        max_message_bytes: int,
    ) -> None:
        self._folder, self._main, self._more = folder, main, more
        self._connections = connections
        self._max_message_bytes = max_message_bytes
        self._out = _Outbox()
        self._stop = threading.Event()
        self._validity = 0
        self._delivered = 0
        self._refs = refs
        #: Whether the size, date and flags come with the body.
        self._describes = not main.has_stable_ids
        self._items = f"UID {PLAIN_ITEMS} BODY.PEEK[]" if self._describes else "UID BODY.PEEK[]"
        self._batches: collections.deque[_Batch] = collections.deque()
        self._threads: list[threading.Thread] = []
        #: Which connection a thread reads from; one that still logs in has none.
        self._logins: dict[threading.Thread, Login] = {}

    def answers(self) -> Iterator[Answer]:
        """Yield every answer. Raises Retryable after what had arrived whole was yielded."""
        self._validity = listing.opened(self._main, self._folder)
        yield from self._sort_out(self._validity)
        problem: BaseException | None = None
        try:
            self._start(self._connections_that_pay())
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
        """Stop the threads and wait for them. A connection in the middle of a reply is ended."""
        self._stop.set()
        self._out.close()
        for thread in self._threads:
            login = self._logins.get(thread)
            if login is not None and thread.is_alive():
                login.wire.cut()
            thread.join()
        self._out.discard()

    # -- preparing -----------------------------------------------------------------------------

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
            length = _expected_bytes(ref)
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
        size = sum(map(_expected_bytes, self._refs))
        by_work = max(size // _BYTES_PER_CONNECTION, len(self._refs) // _MESSAGES_PER_CONNECTION)
        return int(max(1, min(by_work, len(self._batches), self._connections)))

    def _start(self, connections: int) -> None:
        for number in range(connections):
            thread = threading.Thread(target=self._work, args=(number,), name="imap", daemon=True)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    # -- in a thread ---------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        sender = _Sender(self._out)
        login = None
        try:
            login = self._more(number) if number else self._main
            if login is not None:
                self._logins[threading.current_thread()] = login
                if not number or self._has_same_folder(login):
                    self._download(login, sender)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            if login is not None:
                login.wire.cut()
            if not isinstance(error, _Stopped):
                sender.give_up()
                self._out.put(error, 0)
        finally:
            sender.give_up()
            self._out.put(None, 0)

    def _has_same_folder(self, login: Login) -> bool:
        """Have the folder open on a further connection. One that finds another folder under the
        name (made again meanwhile), or none, is of no use: its UIDs would name other messages."""
        try:
            return not self._stop.is_set() and listing.opened(login, self._folder) == self._validity
        except ConnectorError:
            return False

    def _download(self, login: Login, sender: "_Sender") -> None:
        flying: collections.deque[tuple[bytes, _Batch]] = collections.deque()
        again: list[MessageRef] = []
        while True:
            while len(flying) < _IN_FLIGHT and (batch := self._next()) is not None:
                flying.append((login.wire.command(batch.command(self._items)), batch))
            if not flying:
                break
            tag, batch = flying[0]
            status = self._read_until(login, tag, [b for _, b in flying], sender)
            flying.popleft()
            if not status.upper().startswith(b"OK"):
                _raise_if_to_wait(login, status)
            again.extend(batch.refs.values())
        self._ask_again(login, again, sender)

    def _ask_again(self, login: Login, refs: Sequence[MessageRef], sender: "_Sender") -> None:
        """Answer for what no batch answered: gone, or asked for once more and singly."""
        of_uid = {int(ref.remote_id.partition(":")[2]): ref for ref in refs}
        refusals = 0
        for part in Uids((uid, uid) for uid in of_uid).commands():
            there = listing.search(login, str(part))
            for uid in part:
                answer = (
                    self._one(login, uid, of_uid[uid], sender)
                    if uid in there
                    else _gone(of_uid[uid])
                )
                sender.add(answer)
                refused = isinstance(answer, Missing) and isinstance(answer.error, MessageRefused)
                refusals = refusals + 1 if refused else 0
                if refusals >= listing.MAX_REFUSALS and not self._delivered:
                    raise Unavailable(f"The server refuses every message. {answer.error}")  # type: ignore[union-attr] # refused says it is Missing

    def _next(self) -> _Batch | None:
        try:
            return None if self._stop.is_set() else self._batches.popleft()
        except IndexError:
            return None

    def _one(self, login: Login, uid: int, ref: MessageRef, sender: "_Sender") -> Answer | None:
        """Ask for one message; return why it can't be had, None where it came."""
        alone = Uids([(uid, uid)])
        if self._describes and (found := listing.described(login, self._validity, alone)):
            ref = found[0]
        # Nothing but the body: what the server refuses may be what describes it.
        batch = _Batch({uid: ref})
        tag = login.wire.command(batch.command("UID BODY.PEEK[]"))
        status = self._read_until(login, tag, [batch], sender)
        if not batch.refs:
            return None
        if status.upper().startswith(b"OK"):
            return Missing(ref, MessageRefused("The server has the message and sends no body."))
        _raise_if_to_wait(login, status)
        # Whatever it calls it: the others can be had, this one can't.
        return Missing(ref, MessageRefused(f"The server says: {login.wire.words(status)}"))

    def _read_until(
        self, login: Login, tag: bytes, batches: Sequence[_Batch], sender: "_Sender"
    ) -> bytes:
        """Read replies up to a tagged one; return its status. Answered refs leave their batch."""
        connection = login.wire
        ending = tag + b" "
        unasked = 0
        while True:
            if self._take_usual(connection, batches, sender):
                unasked = 0
                connection.renew()
            # Hand on what is whole before waiting for more; the caller's time is not the server's.
            if not connection.has_buffered and sender.flush():
                connection.renew()
            line = connection.readline()
            if line.startswith(ending):
                return line[len(ending) :].strip()
            if self._is_answer(connection, line, batches, sender):
                unasked = 0
                self._delivered += 1
                connection.renew()
                continue
            unasked += 1
            if unasked > _MAX_UNASKED:
                raise Unavailable("The server sends replies that nobody asked for, without end.")

    def _take_usual(
        self, connection: wire.Wire, batches: Sequence[_Batch], sender: "_Sender"
    ) -> bool:
        """Read all bodies that were received whole and look as usual; tell whether any of them was
        asked for."""
        delivered = self._delivered
        while found := connection.buffered(_USUAL, _USUAL_END, limit=self._max_message_bytes):
            match, body = found
            ref = self._claim(batches, int(match["uid"]), match["items"], empty=not body)
            if ref is not None:
                sender.add(RawMessage(ref, body))
                self._delivered += 1
        return self._delivered > delivered

    def _is_answer(
        self, connection: wire.Wire, line: bytes, batches: Sequence[_Batch], sender: "_Sender"
    ) -> bool:
        """Read the rest of an untagged response; tell whether it was a body that we asked for."""
        match = _BODY.match(line)
        if match is None:
            if line[:6].upper() == b"* BYE ":
                raise connection.bye(line[2:])
            connection.complete(line)
            return False
        if match[2] is not None:
            return self._take(connection, match, batches, sender)
        response = connection.complete(line)
        return match[3] is None and self._take_quoted(response, batches, sender)

    def _take(
        self,
        connection: wire.Wire,
        match: re.Match[bytes],
        batches: Sequence[_Batch],
        sender: "_Sender",
    ) -> bool:
        """Read a body; tell whether it was asked for."""
        size = int(match[2])
        before = _UID.search(match[1])
        if size > self._max_message_bytes:
            return self._pass_over(connection, size, match[1], batches, sender)
        body = connection.body(size)
        rest = connection.complete(connection.readline())[0]
        uid = before or _UID.search(rest)
        said = match[1] if rest == b")\r\n" else match[1] + rest.rpartition(b")")[0]
        ref = self._claim(batches, int(uid[1]), said, empty=not size) if uid else None
        if not _REST.fullmatch(rest):
            # The size that was announced is not the body's: these bytes are no message.
            if isinstance(body, SpooledBody):
                body.close()
            if ref is not None:
                sender.add(Missing(ref, _wrong_size(size)))
            raise Unavailable("The server announced a wrong size of a message.")
        if ref is not None:
            sender.add(RawMessage(ref, body))
        elif isinstance(body, SpooledBody):
            body.close()
        return ref is not None

    def _pass_over(
        self,
        connection: wire.Wire,
        size: int,
        items: bytes,
        batches: Sequence[_Batch],
        sender: "_Sender",
    ) -> bool:
        """Answer for a message that is too large, of which the listing told no size."""
        uid = _UID.search(items)
        ref = self._claim(batches, int(uid[1]), items) if uid else None
        try:
            if size > _MAX_PASSED_OVER_BYTES:
                raise Unavailable(f"The server announced a message of {size:,} bytes.")
            connection.skip(size)
            if not _REST.fullmatch(connection.complete(connection.readline())[0]):
                raise Unavailable("The server announced a wrong size of a message.")
        except Unavailable:
            if ref is not None:
                sender.add(Missing(ref, self._too_large(size)))
            raise
        if ref is not None:
            # It has that size: it is not downloaded again.
            sender.add(Missing(ref._replace(size_bytes=size), self._too_large(size)))
        return ref is not None

    def _claim(
        self, batches: Sequence[_Batch], uid: int, said: bytes, *, empty: bool = False
    ) -> MessageRef | None:
        """Take a reference out of the batch that asked for it, with what the answer says of it;
        None: nobody did, or it was answered.

        An empty body of a message that has a size is none: it stays unanswered, to be asked for
        again.
        """
        for batch in batches:
            ref = batch.refs.get(uid)
            if ref is not None:
                if self._describes:
                    ref = described(ref, said)
                if empty and ref.size_bytes:
                    return None
                del batch.refs[uid]
                return ref
        return None

    def _take_quoted(
        self, response: list[bytes], batches: Sequence[_Batch], sender: "_Sender"
    ) -> bool:
        """Take a short body that came as a quoted string; tell whether it was asked for."""
        values = wire.parse([response[0][2:], *response[1:]])
        items = wire.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}
        uid, body = items.get(b"UID"), items.get(b"BODY[]")
        if not (isinstance(uid, bytes) and uid.isdigit() and isinstance(body, bytes)):
            return False
        ref = self._claim(batches, int(uid), response[0].partition(b"(")[2], empty=not body)
        if ref is not None:
            sender.add(RawMessage(ref, body))
        return ref is not None


class _Outbox:
    """What the threads hand to the caller: at most _WAITING_BYTES wait in it (or one item)."""

    def __init__(self) -> None:
        self._items: collections.deque[tuple[_Item, int]] = collections.deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: "_Item", size: int) -> None:
        """Wait for room. Raises _Stopped where nobody reads any more, but for signs of the end."""
        with self._changed:
            while size and self._bytes and self._bytes + size > _WAITING_BYTES and not self._closed:
                self._changed.wait()
            if self._closed and size:
                raise _Stopped
            self._items.append((item, size))
            self._bytes += size
            self._changed.notify_all()

    def get(self) -> "_Item":
        with self._changed:
            while not self._items:
                self._changed.wait()
            item, size = self._items.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Let go of threads that wait for room."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def discard(self) -> None:
        while self._items:
            _discard(self._items.popleft()[0])


class _Sender:
    """Gathers one thread's answers into chunks: a queue operation per message would cost more."""

    def __init__(self, out: _Outbox) -> None:
        self._out = out
        self._chunk: list[Answer] = []
        self._bytes = 0

    def add(self, answer: Answer | None) -> None:
        if answer is None:
            return
        self._chunk.append(answer)
        if isinstance(answer, RawMessage):
            body = answer.body
            self._bytes += len(body) if isinstance(body, bytes) else SPOOL_BYTES
        if len(self._chunk) >= _CHUNK_MESSAGES or self._bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> bool:
        """Hand the chunk over, waiting for room; tell whether there was one."""
        if not self._chunk:
            return False
        chunk, size = self._chunk, self._bytes
        self._chunk, self._bytes = [], 0
        try:
            self._out.put(chunk, size + 1)
        except _Stopped:
            _discard(chunk)
            raise
        return True

    def give_up(self) -> None:
        """Hand on what is whole, if somebody still wants it. Idempotent."""
        with contextlib.suppress(_Stopped):
            self.flush()


def _expected_bytes(ref: MessageRef) -> int:
    return _USUAL_BYTES if ref.size_bytes is None else ref.size_bytes


def _wrong_size(size: int) -> MessageRefused:
    return MessageRefused(
        f"The server announces {size:,} bytes of it and sends others.", code="wrong_size"
    )


def _gone(ref: MessageRef) -> Missing:
    return Missing(ref, MessageGone("The message was deleted before it could be fetched."))


def _raise_if_to_wait(login: Login, status: bytes) -> None:
    """Raise where a NO is about the account and the moment (throttled), not about the message."""
    error = refusal(login.wire.words(status), otherwise=MessageRefused)
    if must_wait(error):
        raise error


def _discard(item: "_Item") -> None:
    for answer in item if isinstance(item, list) else ():
        if isinstance(answer, RawMessage):
            answer.close()
