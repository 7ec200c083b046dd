"""What changed in a folder since a cursor: new messages, flags, removals. Lists, never downloads.

A cursor is {"v": UIDVALIDITY, "n": the next UID to list, "m": HIGHESTMODSEQ or null,
"u": the UIDNEXT that the server told or null, "c": message count or null, "t": when all UIDs were
listed last (Unix time), "k": where numbers are provisional, how many messages there were ("of", or
null) and what the highest were ("looks": digests by UID), "done": whether the folder had been
listed to its end}.

    first listing   all UIDs, in pages (with sizes, dates and flags where those matter before the
                    download); the last page says what is present, for the case that an earlier
                    UIDVALIDITY was listed before
    later           flags of the UIDs before "n" (CHANGEDSINCE, or all of them), removals (VANISHED,
                    or what is present where the counts differ), then the UIDs from "n" on in pages

"m" is the value from before the pass, so what changes meanwhile is seen by the next one; a first
listing that was interrupted follows the flags of its earlier part before it ends. "n" and
"c" are of one EXAMINE: "c" messages had UIDs below "n". "c" is null where that is not certain (a
page in the middle; a server that shows less than it counts): the next pass then looks for itself.

UIDNEXT is believed only where it was right the last time: a server that does not tell it, or tells
it wrongly, is asked. One below what was told before means that UIDs are given out again. Whenever
all UIDs are listed, those below "n" are told again, for a message that came late: servers that
copy, bridge or cluster number some in hindsight. That happens now and then in any case.

Courier keeps the numbers that EXAMINE told only once somebody opens the folder to write, and by
then a message may have come between: the highest ones are compared with what they were. Until then
each EXAMINE has another UIDVALIDITY, too: while the folder looks as it did, it is not read again,
but for once in a while.
"""

import contextlib
import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from connectors.errors import (
    CursorExpired,
    FolderGone,
    FolderRefused,
    IdsReused,
    RateLimited,
    Unavailable,
)
from connectors.generic_imap import wire
from connectors.generic_imap.client import Login
from connectors.generic_imap.describing import ITEMS, reference, relabelled, uid_of
from connectors.generic_imap.folders import MAX_DIGITS, name_of
from connectors.generic_imap.refusals import must_wait, refusal
from connectors.generic_imap.uids import MAX_UID, Present, Uids
from connectors.types import Cursor, MessageRef, Page, RemoteFolder

#: A described page costs a few round trips before its first body: a third of the time with 2,000 at
#: 20 ms.
PAGE_MESSAGES = 10_000
#: Bare references take a quarter of the memory.
BARE_PAGE_MESSAGES = 20_000
#: More removals than this are told as "all but these", so that a page stays small.
_MAX_REMOVED = 10_000
_SEQUENCE_STEP = 5_000
#: After so many refusals in a row, and nothing else, it is the server and not the messages.
MAX_REFUSALS = 20
#: So many messages' flags are held at once (about 200 bytes each).
_FLAGS_WINDOW = 20_000

#: How often all UIDs are listed though nothing seems to have changed; more seldom where each of the
#: messages must be described for it.
_AUDIT_SECONDS, _DESCRIBED_AUDIT_SECONDS = 86_400, 7 * 86_400

#: So many messages are compared, by so much of their beginning. One that comes between moves all
#: that are above it: a single one would do, were none of them ever deleted.
_COMPARED, _COMPARED_BYTES = 10, 2_000

_COUNT = re.compile(rb" *(\d+) +(EXISTS|EXPUNGE)\s*$", re.IGNORECASE)
_CLOSED = re.compile(rb"OK +\[CLOSED\]", re.IGNORECASE)
_LIMITED = re.compile(rb"(?:OK|NO) +\[MESSAGELIMIT \d{1,10} (\d{1,10})\]", re.IGNORECASE)
_VANISHED = re.compile(rb"VANISHED (?!\(EARLIER)([0-9:,]+)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What EXAMINE told."""

    validity: int
    next_uid: int | None
    #: None where it did not tell.
    count: int | None
    modseq: int | None
    #: Whether UIDs may be given to other messages yet: of servers that tell no UIDNEXT here.
    provisional: bool


def examine(login: Login, folder: RemoteFolder) -> Opened:
    """Open a folder read-only.

    Raises FolderGone where the server says that it does not exist, RateLimited, and FolderRefused
    for whatever else it says: the folder is there, and nobody can tell what is in it.
    """
    login.opened = None
    line, untagged = login.wire.run(b"EXAMINE", wire.string(name_of(folder)))
    if not line.upper().startswith(b"OK"):
        raise refusal(
            login.wire.words(line), otherwise=FolderRefused, allowed=(FolderGone, RateLimited)
        )
    said = [response[0] for response in untagged]
    # What comes before is still about the folder that was open (RFC 7162 section 3.2.11).
    closed = [at for at, text in enumerate(said) if _CLOSED.match(text)]
    text = b"\n".join(said[closed[-1] :] if closed else said)
    validity = _number(rb"\[UIDVALIDITY (\d+)\]", text)
    if validity is None:
        raise FolderRefused("The server gives this folder no UIDVALIDITY.", code="no_uidvalidity")
    login.opened = (folder.remote_id, validity)
    login.exists, login.expunged = _number(rb"(?m)^ *(\d+) +EXISTS\b", text), 0
    next_uid = told = _number(rb"\[UIDNEXT (\d+)\]", text)
    if not next_uid and folder.state.get("uidvalidity") == validity:
        next_uid = folder.state.get("uidnext")  # some tell it in STATUS alone
    modseq = _number(rb"\[HIGHESTMODSEQ (\d+)\]", text) or None
    return Opened(validity, next_uid or None, login.exists, modseq, provisional=not told)


def opened(login: Login, folder: RemoteFolder) -> int:
    """Have a folder open on a connection, whatever was read meanwhile; return its UIDVALIDITY."""
    if login.opened is None or login.opened[0] != folder.remote_id:
        return examine(login, folder).validity
    return login.opened[1]


def changes(
    connect: Callable[[], Login], folder: RemoteFolder, since: Cursor | None, *, describe: bool
) -> Iterator[Page]:
    """Yield the pages of `MailboxSession.changes`; calls `connect` only where it must.

    References are bare where nobody needs more before the download, which asks for the rest. They
    are not where the server has stable ids, or with `describe`.
    """
    state = folder.state
    if since is not None:
        same = state.get("uidvalidity", since["v"]) == since["v"]
        if not same and not since.get("k"):
            raise CursorExpired("The folder's UIDVALIDITY changed.")
        if (
            same
            and since["done"]
            and _unchanged(state, since)
            and not _audit_is_due(since, describe)
        ):
            return
    login = connect()
    describe = describe or login.has_stable_ids
    found = examine(login, folder)
    if since is None:
        since = {"v": found.validity, "n": 1, "u": found.next_uid, "m": found.modseq}
        since |= {"c": None, "t": 0, "done": False}
    listing = _Listing(login, folder, found, since, describe=describe)
    if found.validity != since["v"]:
        if found.provisional and not _audit_is_due(since, describe) and listing.looks_the_same():
            return
        raise CursorExpired("The folder's UIDVALIDITY changed.")
    told = since.get("u", since["n"])
    if found.next_uid is not None and told is not None and found.next_uid < told:
        raise IdsReused("The server gives UIDs out again, under the same UIDVALIDITY.")
    yield from listing.follow() if since["done"] else listing.first()


def _unchanged(state: Any, since: Cursor) -> bool:
    known = (since["n"], since["c"], since["m"])
    return (
        since["c"] is not None
        and since.get("u", since["n"]) == since["n"]
        and known == (state.get("uidnext"), state.get("messages"), state.get("highestmodseq"))
    )


def _audit_is_due(since: Cursor, describe: bool) -> bool:
    period = _DESCRIBED_AUDIT_SECONDS if describe else _AUDIT_SECONDS
    return bool(time.time() - since.get("t", 0) >= period)


class _Listing:
    """One pass over one folder. At each page the connection is idle: the engine fetches then."""

    def __init__(
        self,
        login: Login,
        folder: RemoteFolder,
        opened: Opened,
        since: Cursor,
        *,
        describe: bool,
    ) -> None:
        self._login, self._folder, self._opened, self._since = login, folder, opened, since
        self._describe = describe
        #: How far the pages that were yielded are.
        self._reached = since
        #: When all UIDs were listed.
        self._listed_at = since.get("t", 0)

    def first(self) -> Iterator[Page]:
        """List from the cursor to the end, and say what is present."""
        uids, whole = self._all_uids()
        self._listed_at = int(time.time())
        last = self._last_cursor(uids, certain=whole)
        yield from self._pages(uids.since(self._since["n"]))
        if self._since["n"] > 1 and self._flags_may_differ():
            # The part of the listing before an interruption knows the flags from when it began.
            yield from self._flags()
        present = Present(self._opened.validity, uids, last["n"]) if whole else None
        yield Page(last, present=present)

    def follow(self) -> Iterator[Page]:
        """List what changed since a complete pass."""
        opened, since = self._opened, self._since
        self._compare()
        new = Uids([])
        if not opened.next_uid == since["n"] == since.get("u", since["n"]):
            # Not SEARCH, which some servers cap: what it left out, the cursor would pass over.
            with self._where_empty():
                new = self._uids_by("UID FETCH {} (UID)", f"{since['n']}:*").since(since["n"])
        certain = True
        audit = _audit_is_due(since, self._describe)
        if since["n"] > 1 or audit:
            told = self._flags_may_differ() and self._tells_removals()
            agree = told or self._counts_agree(new)
            if since["n"] > 1 and self._flags_may_differ():
                yield from self._flags()
            if audit or not agree:
                uids, certain = self._all_uids()
                new = new.and_those_of(uids.since(since["n"]))
                if audit or not self._describe:
                    self._listed_at = int(time.time())
                    yield from self._again(uids.before(since["n"]))
                if certain:
                    present = Present(opened.validity, uids, since["n"])
                    yield Page(dict(since), present=present)
        last = self._last_cursor(new, certain=certain)
        yield from self._pages(new)
        yield Page(last)

    def _again(self, uids: Uids) -> Iterator[Page]:
        """Tell of messages that were listed before, but for those that came late."""
        for page in uids.pages(PAGE_MESSAGES if self._describe else BARE_PAGE_MESSAGES):
            yield Page(self._reached, added=self._references(page), again=True)

    def _pages(self, uids: Uids) -> Iterator[Page]:
        cursor = {**self._since, "c": None}
        for page in uids.pages(PAGE_MESSAGES if self._describe else BARE_PAGE_MESSAGES):
            refs = self._references(page)
            cursor["n"] = page.last + 1
            self._reached = dict(cursor)
            yield Page(self._reached, added=refs)

    def _references(self, uids: Uids) -> list[MessageRef]:
        validity = self._opened.validity
        if not self._describe:
            return [MessageRef(f"{validity}:{uid}", labels=None) for uid in uids]
        self._stay()
        return described(self._login, validity, uids)

    def _last_cursor(self, uids: Uids, *, certain: bool) -> dict[str, Any]:
        opened, whole = self._opened, certain
        told = opened.next_uid or 1
        following = max(self._since["n"], told, uids.last + 1)
        # Beyond UIDNEXT: came after EXAMINE counted, or a server that counts wrongly.
        certain = certain and following == told
        count = opened.count if certain else None
        cursor = {"v": opened.validity, "n": following, "u": opened.next_uid, "m": opened.modseq}
        if opened.provisional:
            highest = self._compared().and_those_of(uids).highest(_COMPARED)
            cursor["k"] = {"of": opened.count if whole else None, "looks": self._looks(highest)}
        return {**cursor, "c": count, "t": self._listed_at, "done": True}

    def _compare(self) -> None:
        """Raise IdsReused where the highest messages are not those that had these UIDs."""
        for uid, look in self._looks(self._compared()).items():
            if self._since["k"]["looks"][uid] != look:
                raise IdsReused("The server gave UIDs of this folder to other messages.")

    def looks_the_same(self) -> bool:
        """Tell whether there are as many messages as when the folder was listed, and the highest
        are the same under the same UIDs."""
        known = self._since.get("k") or {"of": None}
        as_many = known["of"] is not None and known["of"] == self._opened.count
        return as_many and self._looks(self._compared()) == known["looks"]

    def _compared(self) -> Uids:
        looks = (self._since.get("k") or {"looks": ()})["looks"]
        return Uids((int(uid), int(uid)) for uid in looks)

    def _looks(self, uids: Uids) -> dict[str, str]:
        """Return a digest of how messages begin, by UID: of those that are there."""
        looks = {}
        items = f"UID RFC822.SIZE BODY.PEEK[]<0.{_COMPARED_BYTES}>"
        if len(uids):
            with contextlib.suppress(CommandRefused):
                for response in self._run(f"UID FETCH {{}} ({items})", str(uids)):
                    said = response[0].partition(b"(")[2]
                    if len(response) > 1 and (uid := uid_of(said)) is not None:
                        look = hashlib.sha256(b"".join([said, *response[1:]]))
                        looks[str(uid)] = look.hexdigest()[:16]
        return looks

    # -- which UIDs there are --------------------------------------------------------------------

    def _all_uids(self) -> tuple[Uids, bool]:
        """Return all UIDs, and whether they are as many as the server counts. What it counts never
        decides by itself that there are none."""
        uids = Uids([])
        with self._where_empty():
            uids = self._search("1:*")
        if self._login.exists is not None and len(uids) >= self._login.exists:
            return uids, True
        # Some servers cap what SEARCH returns (Yahoo: 10,000 of 17,501).
        if self._login.exists is None or self._login.wire.uid_only:
            uids = uids.and_those_of(self._uids_by("UID FETCH {} (UID)", "1:*"))
        else:
            uids = uids.and_those_of(self._by_sequence_number())
        told = self._login.exists
        return uids, len(uids) >= (self._folder.state.get("messages", 0) if told is None else told)

    def _by_sequence_number(self) -> Uids:
        """Ask so for all UIDs. The numbers move down with each EXPUNGE: a window that saw some is
        read again from before it."""
        uids = Uids([])
        start, step = 1, min(_SEQUENCE_STEP, self._login.message_limit)
        while start <= (exists := self._login.exists or 0):
            before = self._login.expunged
            stop = min(start + step - 1, exists)
            uids = uids.and_those_of(self._uids_by("FETCH {} (UID)", f"{start}:{stop}"))
            moved = self._login.expunged - before
            start = max(1, start - moved) if moved else stop + 1
        return uids

    def _where_empty(self) -> contextlib.AbstractContextManager[None]:
        """Some servers refuse to look for anything in a folder without messages."""
        if self._login.exists == 0:
            return contextlib.suppress(CommandRefused)
        return contextlib.nullcontext()

    def _counts_agree(self, new: Uids) -> bool:
        """Tell whether there are as many messages as there were, apart from the new ones."""
        known = self._since["c"]
        return known is not None and self._login.exists == known + len(new)

    def _uids_by(self, command: str, of: str) -> Uids:
        found = (uid_of(response[0].partition(b"(")[2]) for response in self._run(command, of))
        return Uids((uid, uid) for uid in found if uid is not None)

    def _search(self, uid_set: str) -> Uids:
        self._stay()
        return search(self._login, uid_set)

    # -- flags -----------------------------------------------------------------------------------

    def _flags_may_differ(self) -> bool:
        modseq = self._opened.modseq
        return modseq is None or modseq != self._since["m"]

    def _tells_removals(self) -> bool:
        known = None not in (self._opened.modseq, self._since["m"])
        return known and b"QRESYNC" in self._login.wire.enabled

    def _flags(self) -> Iterator[Page]:
        """Yield changed flags and, where the server tells them, removals: of UIDs before "n"."""
        since, opened = self._since, self._opened
        modifier = ""
        if opened.modseq is not None and since["m"] is not None:
            vanished = " VANISHED" if self._tells_removals() else ""
            modifier = f" (CHANGEDSINCE {since['m']}{vanished})"
        items = _label_items(self._login)
        gone: list[tuple[int, int]] = []
        for low, high in self._flag_windows():
            changed: list[tuple[str, tuple[str, ...]]] = []
            for response in self._run(f"UID FETCH {{}} ({items}){modifier}", f"{low}:{high}"):
                if response[0][:9].upper() == b"VANISHED ":
                    gone.extend(wire.ranges(response[0].split()[-1]))
                elif (found := relabelled(response, opened.validity)) is not None:
                    changed.append(found)
            for at in range(0, len(changed), PAGE_MESSAGES):
                yield Page(self._reached, relabelled=changed[at : at + PAGE_MESSAGES])
        yield from self._vanished(Uids(gone).before(since["n"]))

    def _flag_windows(self) -> Iterator[tuple[int, int]]:
        last = self._since["n"] - 1
        if self._login.exists is not None and self._login.exists <= _FLAGS_WINDOW:
            yield 1, last
        else:
            yield from self._search("1:*").windows(_FLAGS_WINDOW, last)

    def _vanished(self, gone: Uids) -> Iterator[Page]:
        validity, cursor = self._opened.validity, self._reached
        if 0 < len(gone) <= _MAX_REMOVED:
            yield Page(cursor, removed=[f"{validity}:{uid}" for uid in gone])
        elif len(gone):
            upto = self._since["n"]
            yield Page(cursor, present=Present(validity, gone, upto, inverted=True))

    # -- commands --------------------------------------------------------------------------------

    def _run(self, command: str, of: str) -> list[list[bytes]]:
        self._stay()
        return run(self._login, command, of)

    def _stay(self) -> None:
        """Open the folder again where another was read meanwhile."""
        if opened(self._login, self._folder) != self._opened.validity:
            raise CursorExpired("The folder's UIDVALIDITY changed.")


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
    for page in uids.pages(_FLAGS_WINDOW):
        for part in page.commands():
            with contextlib.suppress(CommandRefused):
                for response in run(login, f"UID FETCH {{}} ({_label_items(login)})", str(part)):
                    if (found := relabelled(response, validity)) is not None:
                        yield found


def _label_items(login: Login) -> str:
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
            if self._refusals >= MAX_REFUSALS and not self._found:
                raise  # it refuses everything: nothing is wrong with these messages


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
                found.extend(wire.ranges(match[1]))
        elif kind.upper() == b"SEARCH":
            numbers = re.sub(rb"\(.*?\)", b"", rest).split()
            found.extend((int(n), int(n)) for n in numbers if n.isdigit())
    return Uids(found)


def run(login: Login, command: str, of: str) -> list[list[bytes]]:
    """Run a command on messages `of` the open folder, a set that takes the place of "{}".

    A server may work on the highest of them alone and say how far it got down (RFC 9738 section
    3.1): it is asked for the rest until it says that no more. Raises CommandRefused, or what asks
    to wait.
    """
    answers: list[list[bytes]] = []
    left, lowest = of, MAX_UID + 1
    while left:
        status, untagged = login.wire.run(command.format(left).encode())
        for response in untagged:
            _count(login, response[0])
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
    return answers


def _below(uid_set: str, end: int) -> str:
    """Return those of a set ("1:5,9:*") below `end`; "" where there are none."""
    ends = uid_set.replace("*", str(MAX_UID)).encode()
    return str(Uids(wire.ranges(ends)).before(end))


def _count(login: Login, line: bytes) -> None:
    """Follow the number of messages, which a server may change in any reply."""
    gone = 0
    if match := _COUNT.match(line):
        if match[2].upper() == b"EXISTS":
            login.exists = int(match[1])
        else:
            gone = 1
    elif match := _VANISHED.match(line):
        gone = len(Uids(wire.ranges(match[1])))
    login.expunged += gone
    if login.exists is not None:
        login.exists -= gone


def _number(pattern: bytes, text: bytes) -> int | None:
    """Return the number that was told last; None where it was not, or is none of IMAP's."""
    found = re.findall(pattern, text, re.IGNORECASE)
    return int(found[-1]) if found and len(found[-1]) <= MAX_DIGITS else None
