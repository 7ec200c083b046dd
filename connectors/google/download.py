"""Downloads messages with several connections at once, as fast as the quota allows.

Concurrent gets, not batches. Measured on a server that answers after 50 ms: 8 connections made 141
messages/s of 2 kB and 110 of 100 kB, batches of 50 made 343 and 113; the quota allows 5 or 50. So
either is enough, and a batch would be in memory whole before its first message could be stored.
"""

import datetime as dt
from collections.abc import Generator, Sequence

from connectors.errors import (
    Fatal,
    MailboxUnavailable,
    MessageGone,
    MessageRefused,
    Unavailable,
)
from connectors.google.bodies import Answered, Unreadable, read
from connectors.google.client import Caller
from connectors.google.mailbox import GmailMailbox, roles_of
from connectors.google.refusals import DENIED, Absent, BadRequest, OutOfOrder
from connectors.google.transport import ResponseTooLarge
from connectors.parallel import Answer, Pool, Worker, asked_again
from connectors.types import MessageRef, Missing, RawMessage


class Download:
    """The answers to one fetch()."""

    def __init__(self, mailbox: GmailMailbox, refs: Sequence[MessageRef]) -> None:
        self._mailbox, self._refs = mailbox, refs

    def answers(self) -> Generator[Answer]:
        """As Pool.answers."""
        return asked_again(self._refs, self._ask)

    def _ask(self, refs: Sequence[MessageRef]) -> Generator[Answer]:
        connections = self._mailbox.connections
        return Pool(refs, self._work, name="gmail", workers=connections).answers()

    def _work(self, worker: Worker) -> None:
        caller = self._mailbox.caller(worker.stop)
        try:
            for ref in worker.one_by_one():
                worker.add(self._answer(caller, ref))
        finally:
            self._mailbox.give_back(caller)

    def _answer(self, caller: Caller, ref: MessageRef) -> Answer:
        try:
            got: Answered = self._mailbox.download(caller, ref.remote_id, read)
        except Absent:
            return Missing(ref, MessageGone("Deleted before it could be downloaded."))
        except BadRequest as error:
            return Missing(ref, MessageRefused(f"It can't be had. {error}"))
        except ResponseTooLarge:
            text = "It is larger than MAX_MESSAGE_BYTES."
            return Missing(ref, MessageRefused(text, code="too_large", of_item=True))
        except Unreadable as error:
            return Missing(ref, MessageRefused(str(error)))
        except MessageRefused as error:
            return Missing(ref, error)
        except (OutOfOrder, MailboxUnavailable, Fatal) as error:
            if not isinstance(error, OutOfOrder) and error.code != DENIED:
                raise
            self._mailbox.probe(caller)  # raises where it is not only this message
            text = f"Google fails at this message, and not at others. {error}"
            return Missing(ref, MessageRefused(text))
        return RawMessage(self._described(ref, got), got.body)

    def _described(self, ref: MessageRef, got: Answered) -> MessageRef:
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


def _date(milliseconds: str) -> dt.datetime | None:
    if not milliseconds.lstrip("-").isdigit():
        return None
    try:
        return dt.datetime.fromtimestamp(int(milliseconds) / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None
