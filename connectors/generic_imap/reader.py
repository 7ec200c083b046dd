"""Streaming download of bodies: several commands in flight, each message handed on as it completes.

Latency is hidden by pipelining; work is bounded in bytes by the batches and by the queue between
the connections' threads and the caller (`outbox`). Every reference is answered exactly once.

A download begins on one connection. Another is opened where the caller waits for the server more
than half of the time: from a server that is faster than the archive it would only cost.
"""

import collections
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from connectors.errors import (
    ConnectorError,
    MessageGone,
    MessageRefused,
    Skippable,
    Unavailable,
)
from connectors.generic_imap import listing
from connectors.generic_imap.client import Login, must_wait, refusal
from connectors.generic_imap.describing import ITEMS_WITH_BODY
from connectors.generic_imap.outbox import Answer, Outbox, Sender, Stopped
from connectors.generic_imap.replies import Batch, Replies, too_large
from connectors.generic_imap.uids import Uids
from connectors.types import MessageRef, Missing, RemoteFolder

#: Measured on loopback: more per command gains nothing, less costs at 40 ms of latency.
_BATCH_BYTES = 1_000_000
_BATCH_MESSAGES = 400
_BODY_ALONE = "UID BODY.PEEK[]"
#: What a message counts whose size the listing does not tell.
_USUAL_BYTES = 10_000
_IN_FLIGHT = 4
#: A second connection pays for its login only on more than this.
_BYTES_PER_CONNECTION = 4_000_000
_MESSAGES_PER_CONNECTION = 500
#: How long a download goes on before it is told what it waits for.
_PATIENCE_SECONDS = 0.2


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
        self._out = Outbox()
        self._stop = threading.Event()
        self._validity = 0
        self._refs = refs
        #: Whether date and flags come with the body.
        self._describes = not main.has_stable_ids
        self._items = ITEMS_WITH_BODY if self._describes else _BODY_ALONE
        self._next_refs = iter(refs)
        self._left = len(refs)
        self._cutting = threading.Lock()
        self._threads: list[threading.Thread] = []
        #: Which connection a thread reads from; one that still logs in has none.
        self._logins: dict[threading.Thread, Login] = {}

    def answers(self) -> Iterator[Answer]:
        """Yield every answer. Raises Retryable after what had arrived whole was yielded."""
        self._validity = listing.opened(self._main, self._folder)
        problem: BaseException | None = None
        began, useful = time.monotonic(), self._connections_that_pay()
        try:
            self._start()
            running = 1
            while running:
                item = self._out.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    problem = problem or item
                else:
                    yield from item
                if len(self._threads) < useful and problem is None and self._is_starved(began):
                    self._start()
                    running += 1
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

    # -- how many connections --------------------------------------------------------------------

    def _connections_that_pay(self) -> int:
        size = sum(map(_expected_bytes, self._refs)) if self._connections > 1 else 0
        by_work = max(size // _BYTES_PER_CONNECTION, len(self._refs) // _MESSAGES_PER_CONNECTION)
        return int(max(1, min(by_work, self._connections)))

    def _is_starved(self, began: float) -> bool:
        """Tell whether the caller waits for the connections there are, and there is more to ask."""
        elapsed = time.monotonic() - began
        due = elapsed > _PATIENCE_SECONDS * len(self._threads)
        return due and self._out.waited_seconds > elapsed / 2 and self._left > 0

    def _start(self) -> None:
        number = len(self._threads)
        thread = threading.Thread(target=self._work, args=(number,), name="imap", daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- in a thread ---------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        sender = Sender(self._out)
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
            if not isinstance(error, Stopped):
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

    def _download(self, login: Login, sender: Sender) -> None:
        replies = Replies(
            login.wire,
            sender,
            describes=self._describes,
            max_message_bytes=self._max_message_bytes,
        )
        flying: collections.deque[tuple[bytes, Batch]] = collections.deque()
        again: list[MessageRef] = []
        while True:
            while len(flying) < _IN_FLIGHT and (batch := self._next(sender)) is not None:
                flying.append((login.wire.command(batch.command(self._items)), batch))
            if not flying:
                break
            tag, batch = flying[0]
            status = replies.read_until(tag, [b for _, b in flying])
            flying.popleft()
            if not status.upper().startswith(b"OK"):
                _raise_if_to_wait(login, status)
            again.extend(batch.refs.values())
        self._ask_again(login, again, replies, sender)

    def _next(self, sender: Sender) -> Batch | None:
        """Cut off the next batch, answering for what can't be asked for; None: there is no more."""
        prefix = f"{self._validity}:"
        refs: dict[int, MessageRef] = {}
        size = 0
        with self._cutting:
            while size < _BATCH_BYTES and len(refs) < _BATCH_MESSAGES and not self._stop.is_set():
                ref = next(self._next_refs, None)
                if ref is None:
                    break
                self._left -= 1
                if not ref.remote_id.startswith(prefix):
                    error: Skippable = MessageGone("The folder was renumbered by the server.")
                    sender.add(Missing(ref, error))
                elif ref.size_bytes is not None and ref.size_bytes > self._max_message_bytes:
                    error = too_large(ref.size_bytes, self._max_message_bytes)
                    sender.add(Missing(ref, error))
                else:
                    refs[int(ref.remote_id[len(prefix) :])] = ref
                    size += _expected_bytes(ref)
        return Batch(refs) if refs else None

    def _ask_again(
        self, login: Login, refs: Sequence[MessageRef], replies: Replies, sender: Sender
    ) -> None:
        """Answer for what no batch answered: gone, or asked for once more and singly."""
        of_uid = {int(ref.remote_id.partition(":")[2]): ref for ref in refs}
        refusals = 0
        for part in Uids((uid, uid) for uid in of_uid).commands():
            there = listing.search(login, str(part))
            for uid in part:
                missing = (
                    self._one(login, uid, of_uid[uid], replies)
                    if uid in there
                    else _gone(of_uid[uid])
                )
                if missing is not None:
                    sender.add(missing)
                refused = missing is not None and isinstance(missing.error, MessageRefused)
                refusals = refusals + 1 if refused else 0
                if refusals >= listing.MAX_REFUSALS and not self._out.delivered:
                    raise Unavailable(f"The server refuses every message. {missing.error}")  # type: ignore[union-attr] # refused says there is one

    def _one(self, login: Login, uid: int, ref: MessageRef, replies: Replies) -> Missing | None:
        """Ask for one message; return why it can't be had, None where it came."""
        alone = Uids([(uid, uid)])
        if ref.size_bytes is None and (found := listing.described(login, self._validity, alone)):
            ref = found[0]
        # Nothing but the body: what the server refuses may be what describes it.
        batch = Batch({uid: ref})
        tag = login.wire.command(batch.command(_BODY_ALONE))
        status = replies.read_until(tag, [batch])
        if not batch.refs:
            return None
        if status.upper().startswith(b"OK"):
            return Missing(ref, MessageRefused("The server has the message and sends no body."))
        _raise_if_to_wait(login, status)
        # Whatever it calls it: the others can be had, this one can't.
        return Missing(ref, MessageRefused(f"The server says: {login.wire.words(status)}"))


def _expected_bytes(ref: MessageRef) -> int:
    return _USUAL_BYTES if ref.size_bytes is None else ref.size_bytes


def _gone(ref: MessageRef) -> Missing:
    return Missing(ref, MessageGone("The message was deleted before it could be fetched."))


def _raise_if_to_wait(login: Login, status: bytes) -> None:
    """Raise where a NO is about the account and the moment (throttled), not about the message."""
    error = refusal(login.wire.words(status), otherwise=MessageRefused)
    if must_wait(error):
        raise error
