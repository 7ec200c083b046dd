"""What changed in a folder since a cursor: new messages, flags, removals. Lists, never downloads.

A cursor is {"v": UIDVALIDITY, "n": the next UID to list, "m": HIGHESTMODSEQ or null,
"u": the UIDNEXT that the server told or null, "c": message count or null, "t": when all UIDs were
listed last (Unix time), "k": where numbers are provisional, how many messages there were ("of", or
null) and what the highest were ("looks": digests by UID), "w": at Gmail, the roles of messages that
the options left out, "done": whether the folder had been listed to its end}. In the middle of a
pass also "f": [up to which UID flags were told, what "m" is after it], and "a": up to which UID
messages were told again.

    first listing   all UIDs, in pages (with sizes, dates and flags where those matter before the
                    download); the last page says what is present, for the case that an earlier
                    UIDVALIDITY was listed before
    later           the UIDs from "n" on in pages, flags of those before it (CHANGEDSINCE, or all of
                    them) with removals (VANISHED), and where the counts differ what is present

What is told of older messages may take longer than a worker's slice. So new mail comes first, and
each page's cursor says where the next slice goes on. "t" is 0 while not all of those that are told
again were: that is due.

"m" is the value from before the pass, so what changes meanwhile is seen by the next one; a first
listing that was interrupted follows the flags of its earlier part before it ends. "n" and
"c" are of one EXAMINE: "c" messages had UIDs below "n". "c" is null where that is not certain (a
page in the middle; a server that shows less than it counts): the next pass then looks for itself.

UIDNEXT is believed only where it was right the last time: a server that does not tell it, or tells
it wrongly, is asked. One below what was told before means that UIDs are given out again, as does a
UID that vanished and is there. Where the messages are not as many as they should be, all UIDs are
listed, and those below "n" are told again, for a message that came late: servers that copy, bridge
or cluster number some in hindsight. That happens now and then in any case.

Courier keeps the numbers that EXAMINE told only once somebody opens the folder to write, and by
then a message may have come between: the highest ones are compared with what they were. Until then
each EXAMINE has another UIDVALIDITY, too: while the folder looks as it did, it is not read again,
but for once in a while.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from connectors.errors import CursorExpired, IdsReused
from connectors.generic_imap import commands, opening, syntax
from connectors.generic_imap.client import Login
from connectors.generic_imap.commands import FLAGS_WINDOW, CommandRefused
from connectors.generic_imap.describing import ROLES, relabelled, uid_of
from connectors.generic_imap.opening import Opened
from connectors.generic_imap.uids import Present, Uids
from connectors.types import Cursor, MessageRef, Page, RemoteFolder, Wanted

#: A described page costs a few round trips before its first body: a third of the time with 2,000 at
#: 20 ms.
PAGE_MESSAGES = 10_000
#: But what takes longer than a worker's slice is begun anew in each, and Exchange converts every
#: message to tell its size: a page is what the server describes in so many seconds, as told by the
#: one before.
_DESCRIBING_SECONDS = 20.0
_FIRST_PAGE_MESSAGES, _FEWEST_PAGE_MESSAGES = 1_000, 100
#: Bare references take a quarter of the memory.
BARE_PAGE_MESSAGES = 20_000
#: More removals than this are told as "all but these", so that a page stays small.
_MAX_REMOVED = 10_000

#: How often all UIDs are listed though nothing seems to have changed; more seldom where each of the
#: messages must be described for it. So old may flags be, too, where no mod-sequence tells of them.
_AUDIT_SECONDS, _DESCRIBED_AUDIT_SECONDS = 86_400, 7 * 86_400

#: So many messages are compared, by so much of their beginning. One that comes between moves all
#: that are above it: a single one would do, were none of them ever deleted.
_COMPARED, _COMPARED_BYTES = 10, 2_000


def changes(
    login: Login, folder: RemoteFolder, since: Cursor | None, *, wanted: Wanted
) -> Iterator[Page]:
    """Yield the pages of `MailboxSession.changes`.

    References are bare where nobody needs more before the download, which asks for the rest. They
    are not where the server has stable ids, or where the date matters.
    """
    state = folder.state
    describe = wanted.since is not None or login.has_stable_ids
    left_out = sorted(wanted.left_out & ROLES)
    if since is not None:
        if not set(left_out).issuperset(since.get("w", ())):
            raise CursorExpired("The options want what was left out before.")
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
    found = opening.examine(login, folder)
    if since is None:
        since = {"v": found.validity, "n": 1, "u": found.next_uid, "m": found.modseq}
        since |= {"c": None, "t": 0, "done": False}
    if login.can("X-GM-EXT-1"):  # from here on these are left out, whatever were before
        since = {**since, "w": left_out}
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
    # It was ahead, if it is far ahead now: it would not be due until that time.
    return bool(abs(time.time() - since.get("t", 0)) >= period)


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
        #: Up to which UID flags were told, and "m" once all of them are.
        self._flags_upto, self._modseq = since.get("f", (0, opened.modseq))
        self._page_messages = BARE_PAGE_MESSAGES
        if describe:
            self._page_messages = min(_FIRST_PAGE_MESSAGES, PAGE_MESSAGES)

    def first(self) -> Iterator[Page]:
        """List from the cursor to the end, and say what is present."""
        uids, whole = self._all_uids()
        last = {**self._last_cursor(uids, certain=whole), "t": int(time.time())}
        present = Present(self._opened.validity, uids, last["n"]) if whole else None
        # The part of the listing before an interruption knows the flags from when it began.
        end = itertools.chain(self._flags(), [self._end(last, present)])
        yield from self._pages(uids.since(self._since["n"]), end)

    def follow(self) -> Iterator[Page]:
        """List what changed since a complete pass."""
        self._compare()
        new = self._new()
        yield from self._pages(new, self._older(new))

    def _new(self) -> Uids:
        """Return the UIDs from "n" on."""
        first, new = self._since["n"], Uids([])
        told = self._opened.next_uid if self._since.get("u", first) == first else None
        if told != first:
            with self._where_empty():
                parts = commands.by_uid(self._login, "UID", first, before=told)
                new = _uids_in(parts).since(first)
        return new

    def _older(self, new: Uids) -> Iterator[Page]:
        """Tell what became of messages that were listed before; then where the listing is."""
        since = self._since
        gone = yield from self._flags()
        expected = None if since["c"] is None else since["c"] - len(gone)
        as_many = expected is not None and self._login.exists == expected + len(new)
        audit = _audit_is_due(since, self._describe)
        if as_many and not audit:
            yield self._end(self._last_cursor(new, certain=True))
            return
        uids, certain = self._all_uids()
        if len(uids.and_those_of(gone)) < len(uids) + len(gone):
            raise IdsReused("The server gave UIDs of removed messages to others.")
        older, newer = uids.before(since["n"]), new.and_those_of(uids.since(since["n"]))
        if len(newer) > len(new):
            yield from self._pages(newer)
        last = self._last_cursor(newer, certain=certain)
        some_came_late = expected is not None and (self._login.exists or 0) > expected + len(newer)
        if audit or some_came_late or not self._describe:
            upto = 0 if some_came_late else since.get("a", 0)
            owed = {**last, "t": 0, "f": [last["n"] - 1, self._modseq], "a": upto}
            if new:  # which goes with it
                yield Page(owed)
            yield from self._again(older.since(upto + 1), owed)
            last["t"] = int(time.time())
        present = Present(self._opened.validity, uids, since["n"]) if certain else None
        yield self._end(last, present)

    def _end(self, cursor: Cursor, present: Present | None = None) -> Page:
        """Make the last page of a pass. One that went on in several slices has "m" of the first of
        them: who went since is told once more, and must not be taken away from "c" again."""
        if self._modseq != self._opened.modseq:
            cursor = {**cursor, "c": None}
        return Page(cursor, present=present)

    def _again(self, uids: Uids, owed: Cursor) -> Iterator[Page]:
        """Tell of messages that were listed before, but for those that came late."""
        for page in uids.pages(lambda: self._page_messages):
            cursor = {**owed, "a": page.last}
            yield Page(cursor, added=self._references(page), again=True)

    def _pages(self, uids: Uids, then: Iterable[Page] = ()) -> Iterator[Page]:
        """Tell of new messages, and the last of them with the first page of `then`: two pages would
        be two transactions of each poll that finds mail."""
        cursor, left, others = {**self._reached, "c": None}, len(uids), iter(then)
        for page in uids.pages(lambda: self._page_messages):
            refs = self._references(page)
            left -= len(page)
            cursor["n"] = page.last + 1
            self._reached = dict(cursor)
            first = Page(self._reached) if left else next(others, Page(self._reached))
            yield dataclasses.replace(first, added=[*refs, *first.added])
        yield from others

    def _references(self, uids: Uids) -> list[MessageRef]:
        validity = self._opened.validity
        if not self._describe:
            return [MessageRef(f"{validity}:{uid}", labels=None) for uid in uids]
        self._stay()
        began = time.monotonic()
        refs = commands.described(self._login, validity, uids)
        took_seconds = max(0.001, time.monotonic() - began)
        as_many = int(len(uids) * _DESCRIBING_SECONDS / took_seconds)
        self._page_messages = min(max(as_many, _FEWEST_PAGE_MESSAGES), PAGE_MESSAGES)
        return refs

    def _last_cursor(self, uids: Uids, *, certain: bool) -> dict[str, Any]:
        opened, whole = self._opened, certain
        following = max(self._since["n"], opened.next_uid or 1, uids.last + 1)
        if opened.next_uid is None:
            certain = certain and self._login.exists == opened.count
        else:  # beyond it: came after EXAMINE counted, or a server that counts wrongly
            certain = certain and following == opened.next_uid
        count = opened.count if certain else None
        cursor = {"v": opened.validity, "n": following, "u": opened.next_uid, "m": self._modseq}
        if opened.provisional:
            highest = self._compared().and_those_of(uids).highest(_COMPARED)
            cursor["k"] = {"of": opened.count if whole else None, "looks": self._looks(highest)}
        if "w" in self._since:
            cursor["w"] = self._since["w"]
        return {**cursor, "c": count, "t": self._since.get("t", 0), "done": True}

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
        self._stay()
        self._login.count_anew()
        uids = Uids([])
        with self._where_empty():
            uids = self._search("1:*")
        if self._login.exists is not None and not self._login.lacking(uids):
            return uids, True
        # Some servers cap what SEARCH returns (Yahoo: 10,000 of 17,501). What it told does not
        # count here: it may have been of those who were expunged.
        self._login.count_anew()
        told = _uids_in(commands.of_all(self._login, "UID", known=uids))
        whole = not self._login.lacking(told, otherwise=self._folder.state.get("messages", 0))
        return uids.and_those_of(told), whole

    def _where_empty(self) -> contextlib.AbstractContextManager[None]:
        """Some servers refuse to look for anything in a folder without messages."""
        if self._login.exists == 0:
            return contextlib.suppress(CommandRefused)
        return contextlib.nullcontext()

    def _search(self, uid_set: str) -> Uids:
        self._stay()
        return commands.search(self._login, uid_set)

    # -- flags -----------------------------------------------------------------------------------

    def _flags_may_differ(self) -> bool:
        return self._modseq is None or self._modseq != self._since["m"]

    def _modseq_goes_on(self) -> bool:
        """Tell whether the server can say what changed since the cursor. One that was restored
        counts from where it was."""
        now, before = self._opened.modseq, self._since["m"]
        return now is not None and before is not None and now >= before

    def _tells_removals(self) -> bool:
        return self._modseq_goes_on() and b"QRESYNC" in self._login.wire.enabled

    def _flags(self) -> Generator[Page, None, Uids]:
        """Yield changed flags and, where the server tells them, removals: of UIDs before "n".
        Return what was removed."""
        modifier = ""
        if self._modseq_goes_on():
            vanished = " VANISHED" if self._tells_removals() else ""
            modifier = f" (CHANGEDSINCE {self._since['m']}{vanished})"
        command = f"UID FETCH {{}} ({commands.label_items(self._login)}){modifier}"
        removed = Uids([])
        for low, high in self._flag_windows():
            changed: list[tuple[str, tuple[str, ...]]] = []
            gone: list[tuple[int, int]] = []
            for response in self._run(command, f"{low}:{high}"):
                if response[0][:9].upper() == b"VANISHED ":
                    gone.extend(syntax.ranges(response[0].split()[-1]))
                elif (found := relabelled(response, self._opened.validity)) is not None:
                    changed.append(found)
            here = Uids(gone).since(low).before(high + 1)
            removed = removed.and_those_of(here)
            self._reached = {**self._reached, "f": [high, self._modseq]}
            if self._reached["c"] is not None:
                self._reached["c"] -= len(here)
            if changed or len(here):
                yield dataclasses.replace(self._vanished(here), relabelled=changed)
        return removed

    def _flag_windows(self) -> Iterator[tuple[int, int]]:
        first, last = self._flags_upto + 1, self._since["n"] - 1
        if first > last or not self._flags_may_differ():
            return
        if self._login.exists is not None and self._login.exists <= FLAGS_WINDOW:
            yield first, last
        else:
            yield from self._search(f"{first}:*").windows(FLAGS_WINDOW, first, last)

    def _vanished(self, gone: Uids) -> Page:
        validity, upto = self._opened.validity, self._since["n"]
        if len(gone) <= _MAX_REMOVED:
            return Page(self._reached, removed=[f"{validity}:{uid}" for uid in gone])
        return Page(self._reached, present=Present(validity, gone, upto, inverted=True))

    # -- commands --------------------------------------------------------------------------------

    def _run(self, command: str, of: str) -> list[list[bytes]]:
        self._stay()
        return commands.run(self._login, command, of)

    def _stay(self) -> None:
        """Open the folder again where another was read meanwhile."""
        if opening.opened(self._login, self._folder) != self._opened.validity:
            raise CursorExpired("The folder's UIDVALIDITY changed.")


def _uids_in(parts: Iterable[list[list[bytes]]]) -> Uids:
    """Return the UIDs that responses tell. Part by part: as ranges they cost little."""
    uids = Uids([])
    for responses in parts:
        found = (uid_of(response[0].partition(b"(")[2]) for response in responses)
        uids = uids.and_those_of(Uids((uid, uid) for uid in found if uid is not None))
    return uids
