"""Reads the replies to FETCH commands for bodies: what was asked for becomes an answer.

    FETCH (UID 7 ... BODY[] {8000} -> claimed from the batch that asked -> RawMessage or Missing

A server may answer in any order, say more than it was asked, and lie about sizes.
"""

import dataclasses
import re
from collections.abc import Sequence

from connectors.errors import MessageRefused, Unavailable
from connectors.generic_imap import wire
from connectors.generic_imap.describing import described, items_of, uid_of
from connectors.generic_imap.uids import Uids
from connectors.parallel import Worker
from connectors.types import Body, MessageRef, Missing, RawMessage, SpooledBody

#: More untagged responses in a row that nobody asked for are an attack. One flag change by another
#: client may send one per message of the folder.
_MAX_UNASKED = 2_000_000
#: A message above the limit of size that the listing did not tell is read and dropped, so that the
#: connection can go on. One above this is not worth that.
_MAX_PASSED_OVER_BYTES = 1_000_000_000

#: What nearly all servers send, as far as its body: looked at without calling a function per line.
_USUAL = re.compile(
    rb"\* \d+ FETCH \((?P<items>UID (?P<uid>\d{1,10}) [^{\r\n]*)"
    rb"BODY\[\] \{(?P<size>\d{1,7})\}\r\n"
)
_USUAL_END = b")\r\n"
_BODY = re.compile(
    rb"^\* \d+ FETCH \((.*)BODY\[\] (?:~?\{(\d{1,19})\+?\}\r?\n$|(NIL)|\")",
    re.IGNORECASE | re.DOTALL,
)
#: What may follow a body: further items, and the end of the response.
_REST = re.compile(rb"(?: [A-Z][\w.-]* (?:\d+|NIL|\([^()]*\)|\"[^\"]*\"))* ?\)\r?\n", re.IGNORECASE)


#: What Exchange serves as the body of what it can't convert to MIME, each item of a calendar for
#: one. Small, by its subject, and with this sentence in its text (apostrophes vary).
STAND_IN_BYTES, _STAND_IN_HEADER_BYTES = 8_192, 2_048
_STAND_IN = b"Retrieval using the IMAP4 protocol failed"
_STAND_IN_SUBJECT = re.compile(rb"^Subject: *" + _STAND_IN, re.IGNORECASE | re.MULTILINE)
_STAND_IN_TEXT = re.compile(rb"The server could\S{1,12}\s+retrieve\s+the\s+following\s+message")


@dataclasses.dataclass(slots=True)
class Batch:
    """One FETCH command: what it asks for and what is not answered yet."""

    refs: dict[int, MessageRef]

    def command(self, items: str) -> bytes:
        return f"UID FETCH {Uids((uid, uid) for uid in self.refs)} ({items})".encode()


def too_large(size: int, limit: int) -> MessageRefused:
    return MessageRefused(
        f"The message has {size:,} bytes, more than MAX_MESSAGE_BYTES "
        f"({limit:,}) allows. Raise the limit and retry it.",
        code="too_large",
        of_item=True,
    )


def is_stand_in(body: bytes) -> bool:
    """Tell whether the server made this up in place of a message's body."""
    if len(body) >= STAND_IN_BYTES:
        return False
    header, _, text = body.replace(b"\r\n", b"\n").partition(b"\n\n")
    return bool(_STAND_IN_SUBJECT.search(header) and _STAND_IN_TEXT.search(text))


def _not_opened() -> MessageRefused:
    return MessageRefused(
        "The server can't open this message's file and sends a notice in its place: it was moved or"
        " deleted meanwhile, or the server's disk is in trouble. It is tried again.",
        code="stand_in",
    )


def _not_shown() -> MessageRefused:
    return MessageRefused(
        "The server sends a notice in place of this message, whose header has characters that are"
        " not ASCII. It is tried again; whoever runs the server should upgrade Courier.",
        code="stand_in",
        of_item=True,
    )


#: What Courier serves as the body, to the byte, where it can't open a message's file (`unavailable`
#: in its imap/fetch.c), and some versions where a header has 8-bit characters (`canned_msg`).
_COURIER = {
    b"From: System Administrator <root@localhost>\r\nSubject: message unavailable\r\n\r\n"
    b"This message is no longer available on the server.\r\n": _not_opened,
    b"From: Mail Delivery Subsystem <postmaster@localhost>\r\nSubject: Message unavailable\r\n\r\n"
    b"This is a Unicode message that cannot be correctly\r\n"
    b"opened by your E-mail program. Please upgrade to\r\n"
    b"an E-mail program that supports IMAP with UTF-8.\r\n": _not_shown,
}
_COURIER_BYTES = max(map(len, _COURIER))


def _stands_in() -> MessageRefused:
    return MessageRefused(
        "The server can't convert this message and sends a notice of its own in its place. It is"
        " tried again; whoever runs the server may repair or export the message.",
        code="stand_in",
        of_item=True,
    )


class Replies:
    """What one connection answers. `describes`: date and flags were asked for too."""

    def __init__(
        self, connection: wire.Wire, worker: Worker, *, describes: bool, max_message_bytes: int
    ) -> None:
        self._wire, self._worker, self._describes = connection, worker, describes
        self._max_message_bytes = max_message_bytes
        self._unasked = 0
        #: Messages in whose place something else was sent: for whoever knows whether the folder has
        #: any mail. None once that is known to be so.
        self.stand_ins: list[Missing] | None = []

    def read_until(self, tag: bytes, batches: Sequence[Batch]) -> bytes:
        """Read replies up to a tagged one; return its status. Answered refs leave their batch."""
        ending = tag + b" "
        self._unasked = 0
        while True:
            if self._take_usual(batches):
                self._progressed()
            # Hand on what is whole before waiting for more; the caller's time is not the server's.
            if not self._wire.has_buffered and self._worker.flush():
                self._wire.renew()
            line = self._wire.readline()
            if line.startswith(ending):
                return line[len(ending) :].strip()
            if self._is_answer(line, batches):
                self._progressed()
            else:
                self._pass_by()

    def _progressed(self) -> None:
        self._unasked = 0
        self._wire.renew()

    def _pass_by(self) -> None:
        self._unasked += 1
        if self._unasked > _MAX_UNASKED:
            raise Unavailable("The server sends replies that nobody asked for, without end.")

    def _take_usual(self, batches: Sequence[Batch]) -> bool:
        """Read all bodies that were received whole and look as usual; tell whether any of them was
        asked for."""
        any_asked_for = False
        while found := self._wire.buffered(_USUAL, _USUAL_END, limit=self._max_message_bytes):
            match, body = found
            ref = self._claim(batches, int(match["uid"]), match["items"], empty=not body)
            if ref is None:
                self._pass_by()
            else:
                self._add(ref, body)
                any_asked_for = True
        return any_asked_for

    def _is_answer(self, line: bytes, batches: Sequence[Batch]) -> bool:
        """Read the rest of an untagged response; tell whether it was a body that we asked for."""
        match = _BODY.match(line)
        if match is None:
            if line[:6].upper() == b"* BYE ":
                raise self._wire.bye(line[2:])
            self._wire.complete(line)
            return False
        items, size, nil = match.groups()
        if size is not None:
            return self._take(int(size), items, batches)
        response = self._wire.complete(line)
        return nil is None and self._take_quoted(response, batches)

    def _take(self, size: int, items: bytes, batches: Sequence[Batch]) -> bool:
        """Read a body that comes as a literal; tell whether it was asked for."""
        if size > self._max_message_bytes:
            refusal = too_large(size, self._max_message_bytes)
            return self._pass_over(size, items, batches, refusal, left=size)
        try:
            raw = RawMessage(_NOBODY, self._wire.body(size))
        except MessageRefused as no_room:
            return self._pass_over(size, items, batches, no_room, left=0)
        try:
            rest = self._rest()
        except BaseException:
            raw.close()
            raise
        said = items if rest == _USUAL_END else items + rest.rpartition(b")")[0]
        ref = self._claim(batches, uid_of(said), said, empty=not size)
        if not _REST.fullmatch(rest):
            # The size that was announced is not the body's: these bytes are no message.
            raw.close()
            if ref is not None:
                self._worker.add(Missing(ref, _wrong_size(size)))
            raise Unavailable("The server announced a wrong size of a message.")
        if ref is None:
            raw.close()
            return False
        self._add(ref, raw.body)
        return True

    def _pass_over(
        self,
        size: int,
        items: bytes,
        batches: Sequence[Batch],
        refusal: MessageRefused,
        *,
        left: int,
    ) -> bool:
        """Answer for a message that can't be taken, of which so many bytes are still to come; tell
        whether it was asked for."""
        said = items
        proven: int | None = None
        try:
            said += self._skipped(left)
            proven = size  # with it, it is not downloaded again
        finally:
            ref = self._claim(batches, uid_of(said), items)
            if ref is not None:
                ref = ref._replace(size_bytes=proven or ref.size_bytes)
                self._worker.add(Missing(ref, refusal))
        return ref is not None

    def _skipped(self, size: int) -> bytes:
        """Read a body that nobody wants; return the rest of its response."""
        if size > _MAX_PASSED_OVER_BYTES:
            raise Unavailable(f"The server announced a message of {size:,} bytes.")
        self._wire.skip(size)
        rest = self._rest()
        if not _REST.fullmatch(rest):
            raise Unavailable("The server announced a wrong size of a message.")
        return rest

    def _rest(self) -> bytes:
        return self._wire.complete(self._wire.readline())[0]

    def _take_quoted(self, response: Sequence[bytes], batches: Sequence[Batch]) -> bool:
        """Take a short body that came as a quoted string; tell whether it was asked for."""
        body = items_of([response[0][2:], *response[1:]]).get(b"BODY[]")
        if not isinstance(body, bytes):
            return False
        said = response[0].partition(b"(")[2]
        ref = self._claim(batches, uid_of(said), said, empty=not body)
        if ref is not None:
            self._add(ref, body)
        return ref is not None

    def _add(self, ref: MessageRef, body: Body) -> None:
        if isinstance(body, bytes) and len(body) <= _COURIER_BYTES and body in _COURIER:
            self._worker.add(Missing(ref, _COURIER[body]()))
        elif (
            isinstance(body, SpooledBody)
            or body.find(_STAND_IN, 0, _STAND_IN_HEADER_BYTES) < 0  # cheap: for each message
            or not is_stand_in(body)
        ):
            self._worker.add(RawMessage(ref, body))
        elif self.stand_ins is None:
            self._worker.add(Missing(ref, _stands_in()))
        else:
            self.stand_ins.append(Missing(ref, _stands_in()))

    def _claim(
        self, batches: Sequence[Batch], uid: int | None, said: bytes, *, empty: bool = False
    ) -> MessageRef | None:
        """Take a reference out of the batch that asked for it, with what the answer says of it;
        None: nobody did, or it was answered.

        An empty body of a message that may have a size is none: it stays unanswered, to be asked
        for again when its size is known.
        """
        if uid is None:
            return None
        for batch in batches:
            ref = batch.refs.get(uid)
            if ref is not None:
                if self._describes:
                    ref = described(ref, said)
                if empty and ref.size_bytes != 0:
                    return None
                del batch.refs[uid]
                return ref
        return None


_NOBODY = MessageRef("")


def _wrong_size(size: int) -> MessageRefused:
    return MessageRefused(
        f"It is not of the {size:,} bytes that the server announced.",
        code="wrong_size",
        of_item=True,
    )
