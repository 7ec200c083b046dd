"""Commands on messages of the open folder: which there are, what they are, what labels they have.

Whoever asks says which folder is open (`opening`); what an answer's line says is in `describing`.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator

from connectors.errors import Unavailable
from connectors.generic_imap import syntax
from connectors.generic_imap.client import Login
from connectors.generic_imap.describing import ITEMS, number, reference, relabelled
from connectors.generic_imap.refusals import must_wait, refusal
from connectors.generic_imap.uids import MAX_UID, Uids
from connectors.generic_imap.wire import MAX_REPLY_BYTES, held_bytes
from connectors.types import MessageRef

#: After so many refusals in a row, and nothing else, it is the server and not the messages.
_MAX_REFUSALS = 20
#: So many messages' flags are held at once (about 200 bytes each).
FLAGS_WINDOW = 20_000
#: For so many messages one command by sequence number asks.
SEQUENCE_STEP = 5_000
#: And one by UID: what it answers is held (up to 180 bytes each), and more than 350,000 of them
#: are a reply without end (`wire.MAX_REPLY_BYTES`).
UIDS_WINDOW = 100_000

_COUNT = re.compile(rb" *(\d{1,19}) +(EXISTS|EXPUNGE)\s*$", re.IGNORECASE)
_LIMITED = re.compile(rb"(?:OK|NO) +\[MESSAGELIMIT \d{1,10} (\d{1,10})\]", re.IGNORECASE)
_VANISHED = re.compile(rb"VANISHED (?!\(EARLIER)([0-9:,]+)", re.IGNORECASE)


class CommandRefused(Unavailable):
    """A NO or BAD to a command on messages: about them, as far as we know."""


def search(login: Login, uid_set: str) -> Uids:
    """Return which UIDs of a set exist. "n:*" always has the last one, even below n."""
    extended = login.can("ESEARCH")
    command = f"UID SEARCH {'RETURN (ALL) ' if extended else ''}UID {{}}"
    found: list[tuple[int, int]] = []
    for response in run(login, command, uid_set):
        kind, _, rest = response[0].partition(b" ")
        if kind.upper() == b"ESEARCH":
            if match := re.search(rb"\bALL ([0-9:,]+)", rest):
                found.extend(syntax.ranges(match[1]))
        elif kind.upper() == b"SEARCH":
            words = re.sub(rb"\(.*?\)", b"", rest).split()
            found.extend((uid, uid) for word in words if (uid := number(word)) is not None)
    return Uids(found)


def run(login: Login, command: str, of: str) -> list[list[bytes]]:
    """Run a command on messages `of` the open folder, a set that takes the place of "{}".

    A server may work on the highest of them alone and say how far it got down (RFC 9738 section
    3.1): it is asked for the rest until it says that no more. Raises CommandRefused, or what asks
    to wait.
    """
    answers: list[list[bytes]] = []
    left, lowest, size = of, MAX_UID + 1, 0
    while left:
        status, untagged = login.wire.run(command.format(left).encode())
        _count(login, [response[0] for response in untagged])
        answers += untagged
        limited = _LIMITED.match(status)
        if limited is None and not status.upper().startswith(b"OK"):
            error = refusal(login.wire.words(status), otherwise=CommandRefused)
            raise error if must_wait(error) else CommandRefused(str(error))
        if limited is None or not command.startswith("UID "):
            return answers
        if (reached := int(limited[1])) >= lowest:
            raise CommandRefused("The server answers for too few messages at once.")
        lowest = reached
        left = _below(of, lowest)
        if (size := size + sum(map(held_bytes, untagged))) > MAX_REPLY_BYTES:
            raise CommandRefused("The server answers in parts without end.")
    return answers


def of_all(login: Login, items: str, *, known: Uids | None = None) -> Iterator[list[list[bytes]]]:
    """Ask for items of all messages of the open folder; yield what each command is answered.
    `known`: what SEARCH told, where it was asked."""
    if login.exists is None or (login.exists and login.wire.uid_only):
        return by_uid(login, items, known=known)
    return _by_sequence_number(login, items)


def by_uid(
    login: Login,
    items: str,
    first: int = 1,
    *,
    before: int | None = None,
    known: Uids | None = None,
) -> Iterator[list[list[bytes]]]:
    """Ask for items of the messages from one UID on, and perhaps of the last one below it; yield
    what each command is answered. `before`: they are below this one, where that is known. SEARCH,
    which some servers cap, says at most where to cut: what it left out would be passed over."""
    bounds = (login.exists, None if before is None else before - first)
    most = min((bound for bound in bounds if bound is not None), default=UIDS_WINDOW + 1)
    windows: Iterable[tuple[int, int]] = [(first, MAX_UID)]
    if most > UIDS_WINDOW:
        found = search(login, f"{first}:*") if known is None else known
        windows = found.windows(UIDS_WINDOW, first, MAX_UID)
    for low, high in windows:
        of = f"{low}:{'*' if high == MAX_UID else high}"
        yield run(login, f"UID FETCH {{}} ({items})", of)


def _by_sequence_number(login: Login, items: str) -> Iterator[list[list[bytes]]]:
    """Ask so for all, also for those that come meanwhile. The numbers move down with each EXPUNGE:
    a window that saw some is read again from before it."""
    start, step = 1, min(SEQUENCE_STEP, login.message_limit)
    while start <= (exists := login.exists or 0):
        before = login.expunged
        stop = min(start + step - 1, exists)
        yield run(login, f"FETCH {{}} ({items})", f"{start}:{stop}")
        moved = login.expunged - before
        start = max(1, start - moved) if moved else stop + 1


def _below(uid_set: str, end: int) -> str:
    """Return those of a set ("1:5,9:*") below `end`; "" where there are none."""
    ends = uid_set.replace("*", str(MAX_UID)).encode()
    return str(Uids(syntax.ranges(ends)).before(end))


def _count(login: Login, lines: list[bytes]) -> None:
    """Follow the number of messages, which a server may change in any reply."""
    vanished: list[tuple[int, int]] = []
    for line in lines:
        gone = 0
        if match := _COUNT.match(line):
            if match[2].upper() == b"EXISTS":
                login.exists = int(match[1])
            else:
                gone = 1
        elif match := _VANISHED.match(line):
            uids = Uids(syntax.ranges(match[1]))
            gone = len(uids)
            vanished.extend(uids.ranges())
        login.expunged += gone
        if login.exists is not None:
            login.exists -= gone
    if vanished:  # once for all lines: a merge costs as much as all that vanished before
        login.vanished = login.vanished.and_those_of(Uids(vanished))


def described(login: Login, validity: int, uids: Uids) -> list[MessageRef]:
    """Ask of messages of the open folder what there is to say; leave out those that are gone."""
    refs = _Descriptions(login, validity).of(uids)
    absent = Uids((uid, uid) for uid in uids if uid not in refs)
    for part in absent.commands():
        for uid in search(login, str(part)):
            if uid in part:
                # It is there, and the server can't describe it: fetch() says what is wrong.
                refs[uid] = MessageRef(f"{validity}:{uid}", labels=None)
    return [refs[uid] for uid in sorted(refs)]


def labels_of(login: Login, validity: int, uids: Uids) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ask for the labels of messages of the open folder; yield those that the server tells."""
    for page in uids.pages(FLAGS_WINDOW):
        for part in page.commands():
            with contextlib.suppress(CommandRefused):
                for response in run(login, f"UID FETCH {{}} ({label_items(login)})", str(part)):
                    if (found := relabelled(response, validity)) is not None:
                        yield found


def label_items(login: Login) -> str:
    return "UID FLAGS X-GM-LABELS" if login.can("X-GM-EXT-1") else "UID FLAGS"


class _Descriptions:
    def __init__(self, login: Login, validity: int) -> None:
        self._login, self._validity = login, validity
        self._items = ITEMS
        if login.can("X-GM-EXT-1"):
            self._items += " X-GM-MSGID X-GM-THRID X-GM-LABELS"
        elif login.can("OBJECTID"):
            self._items += " EMAILID THREADID"
        self._found: dict[int, MessageRef] = {}
        self._refusals = 0

    def of(self, uids: Uids) -> dict[int, MessageRef]:
        for part in uids.commands():
            self._ask(part)
        return self._found

    def _ask(self, uids: Uids) -> None:
        """Ask in halves where the server refuses: one bad message must not hide others."""
        plain = not self._login.has_stable_ids
        try:
            for response in run(self._login, f"UID FETCH {{}} ({self._items})", str(uids)):
                uid, ref = reference(response, self._validity, plain=plain)
                if ref is not None and uid in uids:
                    self._found[uid] = ref
        except CommandRefused:
            if len(uids) > 1:
                for half in uids.pages((len(uids) + 1) // 2):
                    self._ask(half)
                return
            self._refusals += 1
            if self._refusals >= _MAX_REFUSALS and not self._found:
                raise  # it refuses everything: nothing is wrong with these messages
