"""Streaming download of bodies: several commands in flight, each message handed on as it completes.

Latency is hidden by pipelining, so a worker of the pool is a connection and takes a batch of
references at a time. A download begins on one connection, and another is opened where the caller
waits for the server more than half of the time: from a server that is faster than the archive it
would only cost. One that broke ends alone: the others go on, unless the server asked to wait.
"""

import collections
from collections.abc import Callable, Iterator, Sequence

from connectors.errors import (
    ConnectorError,
    FolderRefused,
    MessageGone,
    MessageRefused,
    RateLimited,
    Skippable,
)
from connectors.generic_imap import commands, opening
from connectors.generic_imap.client import Login
from connectors.generic_imap.describing import ITEMS_WITH_BODY, items_of
from connectors.generic_imap.refusals import must_wait, refusal
from connectors.generic_imap.replies import (
    STAND_IN_BYTES,
    Batch,
    Replies,
    is_stand_in,
    too_large,
)
from connectors.generic_imap.uids import Uids
from connectors.generic_imap.wire import Wire
from connectors.parallel import Answer, Pool, Worker
from connectors.types import MessageRef, Missing, RemoteFolder

#: Measured on loopback: more per command gains nothing, less costs at 40 ms of latency.
_BATCH_BYTES = 1_000_000
_BATCH_MESSAGES = 200
_BODY_ALONE = "UID BODY.PEEK[]"
_IN_FLIGHT = 4
#: After so many refusals in a row the server is asked whether it hands out any bodies.
_REFUSALS_BEFORE_DOUBT = 5
#: A folder in which so many messages, from the oldest to the newest, are stand-ins holds no mail.
_SAMPLES = 20


class Download:
    """The answers to one fetch()."""

    def __init__(
        self,
        folder: RemoteFolder,
        refs: Sequence[MessageRef],
        *,
        main: Login,
        more: Callable[[int, Callable[[Wire], None], Callable[[], bool]], Login | None],
        connections: int,
        max_message_bytes: int,
    ) -> None:
        self._folder, self._main, self._more = folder, main, more
        self._connections = connections
        self._max_message_bytes = max_message_bytes
        self._refs = refs
        self._validity = 0
        #: Whether date and flags come with the body.
        self._describes = not main.has_stable_ids
        self._items = ITEMS_WITH_BODY if self._describes else _BODY_ALONE

    def answers(self) -> Iterator[Answer]:
        """As Pool.answers. Raises FolderRefused where none of the messages is mail."""
        self._validity = opening.opened(self._main, self._folder)
        yield from Pool(
            self._refs,
            self._work,
            name="imap",
            workers=self._connections,
            begin=1,
            stopped_by=RateLimited,  # the others' next commands would be refused too
        ).answers()

    # -- in a thread ---------------------------------------------------------------------------

    def _work(self, worker: Worker) -> None:
        was_reached = False

        def reached(wire: Wire) -> None:
            nonlocal was_reached
            was_reached = True
            worker.can_be_interrupted(wire.cut)

        def is_wanted() -> bool:  # nobody ends a connection that is not there yet
            return not (was_reached and worker.stop.is_set())

        login: Login | None = self._main
        if worker.number:
            login = self._more(worker.number, reached, is_wanted)
        if login is None:
            return
        reached(login.wire)
        if not worker.number or self._has_same_folder(login):
            self._download(login, worker)

    def _has_same_folder(self, login: Login) -> bool:
        """Open the folder on a further connection, whatever it had open: that proves that it is
        alive, too. One that finds another folder under the name (made again meanwhile), or none, is
        of no use: its UIDs would name other messages."""
        try:
            return opening.examine(login, self._folder).validity == self._validity
        except ConnectorError:
            return False

    def _download(self, login: Login, worker: Worker) -> None:
        replies = Replies(
            login.wire,
            worker,
            describes=self._describes,
            max_message_bytes=self._max_message_bytes,
        )
        flying: collections.deque[tuple[bytes, Batch]] = collections.deque()
        in_flight = 1 if login.wire.one_at_a_time else _IN_FLIGHT
        again: list[MessageRef] = []
        while True:
            while (
                len(flying) < in_flight
                and not replies.stand_ins  # first it has to be known what these mean
                and (batch := self._next(worker)) is not None
            ):
                flying.append((login.wire.command(batch.command(self._items)), batch))
            if not flying and replies.stand_ins:
                _judge_stand_ins(login, replies, worker)
                continue
            if not flying:
                break
            tag, batch = flying[0]
            status = replies.read_until(tag, [b for _, b in flying])
            flying.popleft()
            if not status.upper().startswith(b"OK"):
                _raise_if_to_wait(login, status)
            again.extend(batch.refs.values())
        self._ask_again(login, again, replies, worker)

    def _next(self, worker: Worker) -> Batch | None:
        """Cut off the next batch, answering for what can't be asked for; None: there is no more."""
        prefix = f"{self._validity}:"
        most = min(_BATCH_MESSAGES, self._main.message_limit)
        while taken := worker.take(most, _BATCH_BYTES):
            refs: dict[int, MessageRef] = {}
            for ref in taken:
                if not ref.remote_id.startswith(prefix):
                    error: Skippable = MessageGone("The folder was renumbered by the server.")
                    worker.add(Missing(ref, error))
                elif ref.size_bytes is not None and ref.size_bytes > self._max_message_bytes:
                    error = too_large(ref.size_bytes, self._max_message_bytes)
                    worker.add(Missing(ref, error))
                else:
                    refs[int(ref.remote_id[len(prefix) :])] = ref
            if refs:
                return Batch(refs)
        return None

    def _ask_again(
        self, login: Login, refs: Sequence[MessageRef], replies: Replies, worker: Worker
    ) -> None:
        """Answer for what no batch answered: gone, or asked for once more and singly."""
        in_a_row = 0
        works = False
        for part in Uids((uid, uid) for uid in map(_uid, refs)).commands():
            there = self._there(login, part)
            for ref in (ref for ref in refs if _uid(ref) in part):
                if worker.stop.is_set():
                    return
                found = there.get(ref.remote_id)
                missing = _gone(ref) if found is None else self._one(login, ref, found, replies)
                if missing is None:
                    in_a_row = 0
                    continue
                if isinstance(missing.error, MessageRefused) and not missing.error.of_item:
                    in_a_row += 1
                    if in_a_row % _REFUSALS_BEFORE_DOUBT == 0:
                        works = bool(_samples(login, 3, 1))
                    missing.error.of_item = works
                worker.add(missing)

    def _there(self, login: Login, uids: Uids) -> dict[str, MessageRef]:
        """Return which of these the server has, with what it says of them, which may be nothing."""
        try:
            found = commands.described(login, self._validity, uids)
        except commands.CommandRefused:
            there = commands.search(login, str(uids))
            found = [MessageRef(f"{self._validity}:{uid}", labels=None) for uid in there]
        return {ref.remote_id: ref for ref in found}

    def _one(
        self, login: Login, ref: MessageRef, found: MessageRef, replies: Replies
    ) -> Missing | None:
        """Ask for one message; return why it can't be had, None where it came."""
        if found.labels is not None:
            ref = found
        # Nothing but the body: what the server refuses may be what describes it.
        batch = Batch({_uid(ref): ref})
        tag = login.wire.command(batch.command(_BODY_ALONE))
        status = replies.read_until(tag, [batch])
        if not batch.refs:
            return None
        if status.upper().startswith(b"OK"):
            return Missing(ref, MessageRefused("The server has the message and sends no body."))
        _raise_if_to_wait(login, status)
        # Whatever it calls it: the others can be had, this one can't.
        return Missing(ref, MessageRefused(f"The server says: {login.wire.words(status)}"))


def _uid(ref: MessageRef) -> int:
    return int(ref.remote_id.partition(":")[2])


def _judge_stand_ins(login: Login, replies: Replies, worker: Worker) -> None:
    """Answer for messages in whose place others came. Raises FolderRefused where it is so all over
    the folder: Exchange lists calendars, contacts and tasks."""
    bodies = _samples(login, _SAMPLES, STAND_IN_BYTES)
    if len(bodies) >= _SAMPLES and all(map(is_stand_in, bodies)):
        raise FolderRefused(
            f"This folder holds no mail: in place of each of {_SAMPLES} items the server sends a"
            " notice that it can't be had by IMAP, as Exchange does for calendars, contacts and"
            " tasks. Exclude the folder from the source.",
            code="no_mail",
        )
    for missing in replies.stand_ins or ():
        worker.add(missing)
    replies.stand_ins = None


def _samples(login: Login, count: int, size: int) -> list[bytes]:
    """Return how so many messages of the open folder begin, spread evenly from the oldest to the
    newest: those that the server hands out."""
    uids = list(commands.search(login, "1:*")) if login.wire.uid_only else []
    last = (len(uids) or login.exists or 1) - 1
    numbers = sorted({last * index // (count - 1) for index in range(count)}) if last > 0 else [0]
    if uids:
        command = f"UID FETCH {','.join(str(uids[n]) for n in numbers)}"
    else:
        command = f"FETCH {','.join(str(n + 1) for n in numbers)}"
    command += f" (BODY.PEEK[]<0.{size}>)"
    _, untagged = login.wire.run(command.encode())
    found = (items_of(response).get(b"BODY[]<0>") for response in untagged)
    return [begin for begin in found if isinstance(begin, bytes) and begin]


def _gone(ref: MessageRef) -> Missing:
    return Missing(ref, MessageGone("The message was deleted before it could be fetched."))


def _raise_if_to_wait(login: Login, status: bytes) -> None:
    """Raise where a NO is about the account and the moment (throttled), not about the message."""
    error = refusal(login.wire.words(status), otherwise=MessageRefused)
    if must_wait(error):
        raise error
