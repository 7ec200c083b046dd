"""Downloads of messages, four at a time: their `$value`, which is MIME that Exchange generates."""

import functools
import threading
from collections.abc import Generator, Sequence

from connectors.errors import ConnectorError, MessageGone, MessageRefused, Skippable
from connectors.microsoft.bodies import body_of
from connectors.microsoft.client import Call, Pace, quoted
from connectors.microsoft.folders import probe_path
from connectors.microsoft.refusals import OutOfOrder, Refusal
from connectors.parallel import Answer, Pool, Worker, asked_again
from connectors.types import Body, MessageRef, Missing, RawMessage


class Download:
    """The answers to one fetch()."""

    def __init__(
        self,
        pace: Pace,
        base: str,
        refs: Sequence[MessageRef],
        *,
        connections: int,
        max_message_bytes: int,
    ) -> None:
        self._pace, self._base, self._refs = pace, base, refs
        self._connections, self._max_message_bytes = connections, max_message_bytes

    def answers(self) -> Generator[Answer]:
        """As Pool.answers."""
        return asked_again(self._refs, self._ask)

    def _ask(self, refs: Sequence[MessageRef]) -> Generator[Answer]:
        return Pool(refs, self._work, name="graph", workers=self._connections).answers()

    def _work(self, worker: Worker) -> None:
        for ref in worker.one_by_one():
            worker.add(self._answer(ref, worker.left))

    def _answer(self, ref: MessageRef, left: threading.Event) -> Answer:
        try:
            return RawMessage(ref, self._body(ref, left))
        except Skippable as error:
            return Missing(ref, error)

    def _body(self, ref: MessageRef, left: threading.Event) -> Body:
        path = f"{self._base}/messages/{quoted(ref.remote_id)}"
        take = functools.partial(body_of, max_bytes=self._max_message_bytes, stop=left)
        try:
            body: Body = self._pace.ask(Call(f"{path}/$value", take), stop=left)
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
