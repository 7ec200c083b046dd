"""One pool of threads for every provider's `MailboxSession.fetch()`: Pool, Worker, Stopped,
and `asked_again`, for providers whose first word that a message is gone is not yet to be believed.

    Pool(refs, work, name="gmail", workers=8).answers()     # in the thread that fetches

    def work(worker):                                       # in each thread: how messages are had
        for ref in worker.one_by_one():
            worker.add(answer_for(ref))

What is the same everywhere is here: every reference is taken once; what waits for the caller is
bounded in bytes; refusals in a row are an outage (`connectors.outages`); what came whole is
yielded before the first error is raised; no thread is left behind. A provider says how one message
is had, or, where that is faster, a group of them.
"""

import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from connectors.errors import MessageGone, Unavailable
from connectors.outages import RefusalGuard
from connectors.types import SPOOL_BYTES, MessageRef, Missing, RawMessage

#: What waits for the caller; a worker holds one message or chunk more. Measured with IMAP: more
#: gains nothing, because what waits for a slower caller waits at the server's end too.
_WAITING_BYTES = 4_000_000
#: Answers are handed on in chunks: a queue operation for each costs more where thousands come.
_CHUNK_BYTES, _CHUNK_MESSAGES = 500_000, 64
#: An answer without its body.
_ANSWER_BYTES = 500
#: What a message is taken for before any came: the first commands ask for few.
_FIRST_GUESS_BYTES = 50_000
#: How long a download goes on, for each worker, before it is told what it waits for.
_PATIENCE_SECONDS = 0.2

#: After so long a replica has what another told of: 3 s were enough where somebody waited for that
#: (byeokim/gmailpush#10).
_REPLICATION_SECONDS = 3.0

Answer = RawMessage | Missing


class Stopped(Exception):
    """The caller wants no more."""


class Pool:
    """One call of `fetch()`. Iterate `answers` once.

    Up to `workers` threads do `work`; `begin` of them at once (all, unless given), the others where
    the caller waits for the server more than half of the time. An error of a worker ends the
    others once they have done what is under way, if it is a `stopped_by`; otherwise only itself.
    """

    def __init__(
        self,
        refs: Sequence[MessageRef],
        work: Callable[["Worker"], None],
        *,
        name: str,
        workers: int,
        begin: int | None = None,
        stopped_by: type[BaseException] = BaseException,
    ) -> None:
        self._work, self._name, self._stopped_by = work, name, stopped_by
        self._most = min(workers, len(refs))
        self._begin = self._most if begin is None else min(begin, self._most)
        #: Begin nothing more, and wait for no better time: it failed, or the caller has left.
        self.stop = threading.Event()
        #: The caller has left: nobody wants even what is under way.
        self.left = threading.Event()
        self._changed = threading.Condition()
        self._todo = collections.deque(refs)
        self._threads: dict[Worker, threading.Thread] = {}
        self._running = 0
        #: Workers that took something and have not ended. Nobody waits for others once all is
        #: taken: a connection that is not needed any more may still be logging in.
        self._busy: set[Worker] = set()
        self._ready: collections.deque[tuple[list[Answer], int]] = collections.deque()
        self._ready_bytes = 0
        self._came, self._came_bytes = 0, 0
        self._waited_seconds = 0.0
        self._problem: BaseException | None = None

    def answers(self) -> Generator[Answer]:
        """Yield every answer, those of one worker in their order. Raises the first error after what
        had come whole was yielded. To leave early, close() the iterator: that frees what waits."""
        guard = RefusalGuard()
        line: collections.deque[Answer] = collections.deque()
        began = time.monotonic()
        try:
            for _ in range(self._begin):
                self._start()
            while (chunk := self._next_chunk()) is not None:
                outage = _put_in_line(chunk, line, guard)
                while line:
                    yield line.popleft()
                if outage is not None:
                    raise outage
                if self._is_starved(began):
                    self._start()
        finally:
            self._end()
            _free(line)
        if self._problem is not None:
            raise self._problem
        yield from guard.end()

    def _start(self) -> None:
        worker = Worker(self, len(self._threads))
        thread = threading.Thread(target=self._run, args=(worker,), name=self._name, daemon=True)
        with self._changed:
            self._running += 1
        thread.start()
        self._threads[worker] = thread

    def _is_starved(self, began: float) -> bool:
        """Tell whether the caller waits for the workers there are, and there is more to do."""
        if not self._todo or len(self._threads) >= self._most or self._problem is not None:
            return False
        elapsed = time.monotonic() - began
        due = elapsed > _PATIENCE_SECONDS * len(self._threads)
        return due and self._waited_seconds > elapsed / 2

    def _next_chunk(self) -> list[Answer] | None:
        """Wait for answers; None: there are no more."""
        with self._changed:
            if not self._ready:
                since = time.monotonic()
                while not self._ready and self._goes_on():
                    self._changed.wait()
                self._waited_seconds += time.monotonic() - since
            if not self._ready:
                return None
            chunk, size = self._ready.popleft()
            self._ready_bytes -= size
            if self._ready_bytes <= _WAITING_BYTES // 2:  # not each time: to wake a thread costs
                self._changed.notify_all()
            return chunk

    def _goes_on(self) -> bool:
        wanted = bool(self._todo) and self._running > 0 and not self.stop.is_set()
        return wanted or bool(self._busy)

    def _end(self) -> None:
        """Stop the threads and wait for them; free what nobody took."""
        self.stop.set()
        self.left.set()
        with self._changed:
            self._changed.notify_all()
        for worker, thread in self._threads.items():
            worker.interrupt()
            thread.join()
        for chunk, _ in self._ready:
            _free(chunk)
        self._ready.clear()

    # -- in the workers' threads -------------------------------------------------------------------

    def _run(self, worker: "Worker") -> None:
        try:
            self._work(worker)
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self._failed(error)
            worker.interrupt()
        finally:
            worker.can_be_interrupted(None)  # nothing is under way there: it may be used again
            with contextlib.suppress(Stopped):
                worker.flush()
            with self._changed:
                self._running -= 1
                self._busy.discard(worker)
                self._changed.notify_all()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Stopped):
            return
        with self._changed:
            self._problem = self._problem or error
        if isinstance(error, self._stopped_by):
            self.stop.set()

    def take(self, worker: "Worker", most: int, upto_bytes: float) -> list[MessageRef]:
        """As Worker.take."""
        taken: list[MessageRef] = []
        size = 0
        with self._changed:
            if self.stop.is_set():
                return taken
            guess = self._came_bytes // self._came if self._came else _FIRST_GUESS_BYTES
            while self._todo and size < upto_bytes and len(taken) < most:
                ref = self._todo.popleft()
                taken.append(ref)
                size += guess if ref.size_bytes is None else ref.size_bytes
            if taken:
                self._busy.add(worker)
        return taken

    def put(self, chunk: list[Answer], size: int) -> None:
        """Hand a chunk of so many bytes over, once there is room. Raises Stopped."""
        with self._changed:
            while (
                self._ready and self._ready_bytes + size > _WAITING_BYTES and not self.left.is_set()
            ):
                self._changed.wait()
            if not self.left.is_set():
                self._ready.append((chunk, size))
                self._ready_bytes += size
                self._came += len(chunk)
                self._came_bytes += size
                self._changed.notify_all()
                return
        _free(chunk)
        raise Stopped


class Worker:
    """One thread of a pool, as a provider's `work` sees it. `number` counts from 0.

    `stop` and `left` are the pool's: what waits for a better time ends at the one, what can be
    given up half-way at the other.
    """

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool, self.number = pool, number
        self.stop, self.left = pool.stop, pool.left
        self._chunk: list[Answer] = []
        self._bytes = 0
        self._interrupt: Callable[[], None] | None = None

    def one_by_one(self) -> Iterator[MessageRef]:
        """Yield the next reference. What was added for one is handed on before the next."""
        while refs := self.take():
            yield refs[0]
            self.flush()

    def take(self, most: int = 1, upto_bytes: float = math.inf) -> list[MessageRef]:
        """Take the next references, in their order, until they are so many or so large; those of
        unknown size are expected to be like those that came. []: no more are to be had."""
        return self._pool.take(self, most, upto_bytes)

    def add(self, answer: Answer) -> None:
        """Answer for a reference that was taken. May wait for room; raises Stopped."""
        self._chunk.append(answer)
        if isinstance(answer, RawMessage):
            body = answer.body
            # Those on disk count too: so few files wait.
            self._bytes += len(body) if isinstance(body, bytes) else SPOOL_BYTES
        if len(self._chunk) >= _CHUNK_MESSAGES or self._bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> bool:
        """Hand on what was added, waiting for room; tell whether there was any. Raises Stopped."""
        if not self._chunk:
            return False
        chunk, size = self._chunk, self._bytes + _ANSWER_BYTES * len(self._chunk)
        self._chunk, self._bytes = [], 0
        self._pool.put(chunk, size)
        return True

    def can_be_interrupted(self, how: Callable[[], None] | None) -> None:
        """Say how another thread ends what this one waits for; at once, where that is wanted. It is
        also done where `work` raises: what was under way is of no use any more."""
        self._interrupt = how
        if how is not None and self.stop.is_set():
            how()

    def interrupt(self) -> None:
        """End what the worker waits for, if it said how."""
        if (how := self._interrupt) is not None:
            how()


def asked_again(
    refs: Sequence[MessageRef], ask: Callable[[Sequence[MessageRef]], Generator[Answer]]
) -> Generator[Answer]:
    """Yield the answers to `ask(refs)`, and ask for those that are gone once more when all others
    have come. A cloud answers from replicas: one may not have yet what another has listed, and who
    believes it would never hear of that message again."""
    gone: list[MessageRef] = []
    with contextlib.closing(ask(refs)) as answers:
        for answer in answers:
            if isinstance(answer, Missing) and isinstance(answer.error, MessageGone):
                gone.append(answer.ref)
            else:
                yield answer
    if gone:
        time.sleep(_REPLICATION_SECONDS)
        yield from ask(gone)


def _put_in_line(
    answers: Sequence[Answer], line: collections.deque[Answer], guard: RefusalGuard
) -> Unavailable | None:
    """Put answers in line, but for refusals that may be signs of an outage; return it if it is."""
    if all(isinstance(answer, RawMessage) and answer.body for answer in answers):  # as usual
        line.extend(guard.delivered())
        line.extend(answers)
        return None
    rest = iter(answers)
    try:
        for answer in rest:
            line.extend(guard.take(answer))
    except Unavailable as error:
        _free(rest)
        return error
    return None


def _free(answers: Iterable[Answer]) -> None:
    """Free what nobody wants."""
    for answer in answers:
        if isinstance(answer, RawMessage):
            answer.close()
