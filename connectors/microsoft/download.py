"""Downloads of messages, four at a time: their `$value`, which is MIME that Exchange generates."""

import collections
import functools
import threading
from collections.abc import Iterator, Sequence

from connectors.errors import ConnectorError, MessageGone, MessageRefused, Skippable
from connectors.microsoft.bodies import body_of
from connectors.microsoft.client import Call, Pace, Stopped, quoted
from connectors.microsoft.folders import probe_path
from connectors.microsoft.refusals import OutOfOrder, Refusal
from connectors.refusals import RefusalGuard
from connectors.types import SPOOL_BYTES, Body, MessageRef, Missing, RawMessage

#: What waits for the caller; each thread holds up to SPOOL_BYTES more.
_WAITING_BYTES = 8_000_000

Answer = RawMessage | Missing


class Download:
    """One call of `MailboxSession.fetch`. Iterate `answers` once; close() stops its threads."""

    def __init__(
        self,
        pace: Pace,
        base: str,
        refs: Sequence[MessageRef],
        *,
        connections: int,
        max_message_bytes: int,
    ) -> None:
        self._pace, self._base = pace, base
        self._max_message_bytes = max_message_bytes
        self._refs = collections.deque(refs)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._ready: collections.deque[Answer] = collections.deque()
        self._waiting_bytes = 0
        self._problem: BaseException | None = None
        self._running = min(connections, len(refs))
        self._threads = [
            threading.Thread(target=self._work, name="graph-download", daemon=True)
            for _ in range(self._running)
        ]

    def answers(self) -> Iterator[Answer]:
        """Yield every answer. Raises what went wrong after what had arrived whole was yielded."""
        guard = RefusalGuard()
        try:
            for thread in self._threads:
                thread.start()
            while (answer := self._next()) is not None:
                yield from guard.take(answer)
        finally:
            self.close()
        if self._problem is not None:
            raise self._problem
        yield from guard.end()

    def close(self) -> None:
        """Stop the threads, wait for them, and free what nobody took."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        while self._ready:
            _free(self._ready.popleft())

    def _next(self) -> Answer | None:
        with self._changed:
            while not self._ready:
                if self._running == 0:
                    return None
                self._changed.wait()
            answer = self._ready.popleft()
            self._waiting_bytes -= _held(answer)
            self._changed.notify_all()
            return answer

    # -- in a thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (ref := self._take()) is not None:
                self._hand_over(self._answer(ref))
        except Stopped:
            pass  # the caller wants no more
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            with self._changed:
                self._problem = self._problem or error
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _take(self) -> MessageRef | None:
        with self._changed:
            if self._problem is not None or self._stop.is_set() or not self._refs:
                return None
            return self._refs.popleft()

    def _hand_over(self, answer: Answer) -> None:
        with self._changed:
            while self._waiting_bytes > _WAITING_BYTES and not self._stop.is_set():
                self._changed.wait()
            if self._stop.is_set():
                _free(answer)
                return
            self._ready.append(answer)
            self._waiting_bytes += _held(answer)
            self._changed.notify_all()

    def _answer(self, ref: MessageRef) -> Answer:
        try:
            return RawMessage(ref, self._body(ref))
        except Skippable as error:
            return Missing(ref, error)

    def _body(self, ref: MessageRef) -> Body:
        path = f"{self._base}/messages/{quoted(ref.remote_id)}"
        take = functools.partial(body_of, max_bytes=self._max_message_bytes, stop=self._stop)
        try:
            body: Body = self._pace.ask(Call(f"{path}/$value", take), stop=self._stop)
        except (OutOfOrder, Refusal) as problem:
            raise self._meaning(problem) from problem
        return body

    def _meaning(self, problem: OutOfOrder | Refusal) -> ConnectorError:
        """Return why a body is not given out: the message, where its mailbox can be read."""
        if isinstance(problem, Refusal):
            meaning = problem.of_message()
            if isinstance(meaning, MessageGone) or meaning.of_item:
                return meaning
        else:
            meaning = MessageRefused(
                f"Microsoft has the message and fails to give it out. {problem}"
            )
        try:
            self._pace.get(probe_path(self._base))
        except Refusal as refusal:
            return refusal.of_mailbox()
        return meaning


def _held(answer: Answer) -> int:
    """Return the bytes that an answer counts for. Those on disk count too: so few files wait."""
    if not isinstance(answer, RawMessage):
        return 500
    return len(answer.body) if isinstance(answer.body, bytes) else SPOOL_BYTES


def _free(answer: Answer) -> None:
    if isinstance(answer, RawMessage):
        answer.close()
