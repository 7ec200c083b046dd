"""What changed in a folder since a cursor: new messages, flags, removals. Lists, never downloads.

A cursor is {"v": UIDVALIDITY, "n": the next UID to list, "m": HIGHESTMODSEQ or null,
"c": message count or null, "done": whether the folder had been listed to its end}.

    first listing   all UIDs (ESEARCH ranges), then their sizes, dates and flags in pages
    later           flags and removals of the UIDs before "n" (QRESYNC, CONDSTORE, or a full pass
                    over the flags), then the UIDs from "n" on in pages

"m" is the value from before the pass, so what changes meanwhile is seen by the next one.
"""

import bisect
import dataclasses
import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from connectors.errors import ConnectorError, CursorExpired, Fatal, FolderGone, Unavailable
from connectors.generic_imap import wire
from connectors.generic_imap.client import Login, refusal
from connectors.generic_imap.folders import decoded, name_of
from connectors.types import Cursor, MessageRef, Page, RemoteFolder

PAGE_MESSAGES = 2_000
#: More removals than this are told as "all but these", so that a page stays small.
_MAX_REMOVED = 10_000
_SEQUENCE_STEP = 5_000
_MAX_UID = 2**32 - 1

_UID = re.compile(rb"\bUID (\d+)")
_SIZE = re.compile(rb"\bRFC822\.SIZE (\d+)")
_FLAGS = re.compile(rb"\bFLAGS \(([^)]*)\)")
_DATE = re.compile(rb'\bINTERNALDATE "([^"]*)"')
_FETCH = re.compile(rb"\d+ FETCH \(", re.IGNORECASE)
_MONTHS = {
    m: i for i, m in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}


class Uids:
    """A set of UIDs as sorted ranges: half a million cost a few bytes where they are dense."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._ranges: list[tuple[int, int]] = []
        for low, high in sorted(ranges):
            if self._ranges and low <= self._ranges[-1][1] + 1:
                last = self._ranges[-1]
                self._ranges[-1] = (last[0], max(last[1], high))
            else:
                self._ranges.append((low, high))

    def __contains__(self, uid: int) -> bool:
        at = bisect.bisect_right(self._ranges, (uid, _MAX_UID + 1)) - 1
        return at >= 0 and self._ranges[at][0] <= uid <= self._ranges[at][1]

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self._ranges)

    def __iter__(self) -> Iterator[int]:
        for low, high in self._ranges:
            yield from range(low, high + 1)

    def since(self, first: int) -> "Uids":
        """Return those from `first` on."""
        kept = ((max(low, first), high) for low, high in self._ranges if high >= first)
        return Uids(kept)

    def pages(self, size: int) -> Iterator["Uids"]:
        """Yield them in order, at most `size` at a time."""
        page: list[tuple[int, int]] = []
        room = size
        for low, high in self._ranges:
            first = low
            while first <= high:
                upto = min(high, first + room - 1)
                page.append((first, upto))
                room -= upto - first + 1
                first = upto + 1
                if room == 0:
                    yield Uids(page)
                    page, room = [], size
        if page:
            yield Uids(page)

    def __str__(self) -> str:
        return ",".join(f"{a}" if a == b else f"{a}:{b}" for a, b in self._ranges)


@dataclasses.dataclass(frozen=True, slots=True)
class Present:
    """The remote ids that are in the folder. `listed` may be all but these (`inverted`)."""

    validity: int
    listed: Uids
    upto: int
    inverted: bool = False

    def __contains__(self, remote_id: object) -> bool:
        validity, _, uid_text = str(remote_id).partition(":")
        if validity != str(self.validity) or not uid_text.isdigit():
            return False
        uid = int(uid_text)
        if uid >= self.upto:
            return True  # newer than this listing
        return (uid in self.listed) != self.inverted


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What EXAMINE told."""

    validity: int
    next_uid: int | None
    count: int
    modseq: int | None


def examine(login: Login, folder: RemoteFolder) -> Opened:
    """Open a folder read-only. Raises FolderGone, or what the server's code says."""
    login.opened = None
    line, untagged = login.wire.run(b"EXAMINE", wire.string(name_of(folder)))
    if not line.upper().startswith(b"OK"):
        raise refusal(wire.printable(line), otherwise=FolderGone)
    text = b"\n".join(response[0] for response in untagged)
    validity = _number(rb"\[UIDVALIDITY (\d+)\]", text)
    if validity is None:
        raise Fatal("The server gives its folders no UIDVALIDITY.", code="no_uidvalidity")
    login.opened = (folder.remote_id, validity)
    return Opened(
        validity,
        _number(rb"\[UIDNEXT (\d+)\]", text),
        _number(rb"(?m)^(\d+) EXISTS", text) or 0,
        _number(rb"\[HIGHESTMODSEQ (\d+)\]", text),
    )


def changes(login: Login, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
    """Yield the pages of `MailboxSession.changes`."""
    state = folder.state
    if since is not None:
        if state.get("uidvalidity", since["v"]) != since["v"]:
            raise CursorExpired("The folder's UIDVALIDITY changed.")
        if since["done"] and _unchanged(state, since):
            return
    opened = examine(login, folder)
    if since is not None and opened.validity != since["v"]:
        raise CursorExpired("The folder's UIDVALIDITY changed.")
    if since is None:
        since = {"v": opened.validity, "n": 1, "m": opened.modseq, "c": None, "done": False}
    if since["done"]:
        yield from _flags_and_removals(login, opened, since)
    yield from _new_messages(login, opened, since)


def _unchanged(state: Any, since: Cursor) -> bool:
    known = (since["n"], since["c"], since["m"])
    return known == (state.get("uidnext"), state.get("messages"), state.get("highestmodseq"))


def _new_messages(login: Login, opened: Opened, since: Cursor) -> Iterator[Page]:
    first = since["n"]
    whole = not since["done"]
    if whole:
        uids = _all_uids(login, opened)
    elif opened.next_uid is not None and first >= opened.next_uid:
        uids = Uids([])
    else:
        uids = _search(login, f"{first}:*").since(first)
    cursor = dict(since)
    for page in uids.since(first).pages(PAGE_MESSAGES):
        refs = _describe(login, opened.validity, page)
        cursor["n"] = max(page) + 1
        yield Page(dict(cursor), added=refs)
    following = max(cursor["n"], opened.next_uid or 1)
    yield Page(
        {
            "v": opened.validity,
            "n": following,
            "m": _seen_modseq(opened, since),
            "c": opened.count,
            "done": True,
        },
        present=Present(opened.validity, uids, following) if whole else None,
    )


def _seen_modseq(opened: Opened, since: Cursor) -> int | None:
    """The mod-sequence up to which flags are known. A first listing that was interrupted knows
    them only from when it began."""
    modseq: int | None = opened.modseq if since["done"] else since["m"]
    return modseq


# -- which UIDs there are ----------------------------------------------------------------------


def _all_uids(login: Login, opened: Opened) -> Uids:
    if opened.count == 0:
        return Uids([])
    uids = _search(login, "1:*")
    if len(uids) >= opened.count:
        return uids
    # Some servers cap what SEARCH returns (Yahoo: 10,000 of 17,501): ask by sequence number.
    found: list[tuple[int, int]] = []
    for start in range(1, opened.count + 1, _SEQUENCE_STEP):
        stop = min(opened.count, start + _SEQUENCE_STEP - 1)
        replies = (_UID.search(reply[0]) for reply in _run(login, f"FETCH {start}:{stop} (UID)"))
        found.extend((int(match[1]), int(match[1])) for match in replies if match)
    return Uids([*found, *((uid, uid) for uid in uids)])


def _search(login: Login, uid_set: str) -> Uids:
    """Return which UIDs of a set exist. "n:*" always has the last one, even below n."""
    extended = login.can("ESEARCH")
    command = f"UID SEARCH {'RETURN (ALL) ' if extended else ''}UID {uid_set}"
    found: list[tuple[int, int]] = []
    for response in _run(login, command):
        kind, _, rest = response[0].partition(b" ")
        if kind.upper() == b"ESEARCH":
            if match := re.search(rb"\bALL ([0-9:,]+)", rest):
                found.extend(wire.ranges(match[1]))
        elif kind.upper() == b"SEARCH":
            numbers = re.sub(rb"\(.*?\)", b"", rest).split()
            found.extend((int(n), int(n)) for n in numbers if n.isdigit())
    return Uids(found)


def exists(login: Login, uid: int) -> bool:
    """Tell whether a UID is in the open folder."""
    return uid in _search(login, str(uid))


# -- what they are -----------------------------------------------------------------------------


def _describe(login: Login, validity: int, uids: Uids) -> list[MessageRef]:
    gmail = login.can("X-GM-EXT-1")
    items = "UID RFC822.SIZE INTERNALDATE FLAGS"
    if gmail:
        items += " X-GM-MSGID X-GM-THRID X-GM-LABELS"
    elif login.can("OBJECTID"):
        items += " EMAILID THREADID"
    refs: dict[int, MessageRef] = {}
    for response in _run(login, f"UID FETCH {uids} ({items})"):
        if _FETCH.match(response[0]):
            uid, ref = _reference(response, validity, plain=items.endswith("FLAGS"))
            if ref is not None and uid in uids:
                refs[uid] = ref
    absent = [uid for uid in uids if uid not in refs]
    if absent and (
        still := [u for u in absent if u in _search(login, str(Uids((a, a) for a in absent)))]
    ):
        raise Unavailable(
            f"The server left out {len(still)} messages of its listing.", code="short_reply"
        )
    return [refs[uid] for uid in sorted(refs)]


def _reference(
    response: Sequence[bytes], validity: int, *, plain: bool
) -> tuple[int, MessageRef | None]:
    line = response[0]
    if plain and len(response) == 1:
        uid, size = _UID.search(line), _SIZE.search(line)
        flags, date = _FLAGS.search(line), _DATE.search(line)
        if not uid or not flags or not date:
            return 0, None  # unsolicited: only flags
        return int(uid[1]), MessageRef(
            f"{validity}:{int(uid[1])}",
            size_bytes=int(size[1]) if size else None,
            received_at=_internal_date(date[1]),
            labels=_labels(flags[1].split()),
        )
    values = wire.parse(response)
    items = wire.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}
    if not isinstance(items.get(b"UID"), bytes) or b"INTERNALDATE" not in items:
        return 0, None
    uid_number = int(items[b"UID"])
    size_text = items.get(b"RFC822.SIZE")
    return uid_number, MessageRef(
        f"{validity}:{uid_number}",
        size_bytes=int(size_text) if size_text and size_text.isdigit() else None,
        stable_id=_object_id(items, b"X-GM-MSGID", b"EMAILID"),
        thread_id=_object_id(items, b"X-GM-THRID", b"THREADID"),
        received_at=_internal_date(items[b"INTERNALDATE"] or b""),
        labels=_labels([*(items.get(b"FLAGS") or ()), *(items.get(b"X-GM-LABELS") or ())]),
    )


def _object_id(items: dict[bytes, Any], *names: bytes) -> str:
    for name in names:
        value = items.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, bytes):
            return wire.printable(value)
    return ""


def _labels(words: Iterable[Any]) -> tuple[str, ...]:
    texts = {decoded(w) for w in words if isinstance(w, bytes)}
    return tuple(sorted(texts - {"\\Recent"}))


def _internal_date(text: bytes) -> dt.datetime | None:
    """Parse " 1-Feb-2024 12:34:56 +0100" (RFC 9051 section 9, date-time)."""
    try:
        day, month, rest = text.strip().split(b"-", 2)
        year, clock, zone = rest.split()
        hour, minute, second = clock.split(b":")
        offset = dt.timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
        local = dt.datetime(  # the zone is taken off below
            int(year),
            _MONTHS[month.title()],
            int(day),
            int(hour),
            int(minute),
            min(int(second), 59),
            tzinfo=dt.UTC,
        )
        return local + offset if zone[:1] == b"-" else local - offset
    except (ValueError, KeyError, IndexError, OverflowError):
        return None


# -- flags and removals ------------------------------------------------------------------------


def _flags_and_removals(login: Login, opened: Opened, since: Cursor) -> Iterator[Page]:
    last = since["n"] - 1
    if last < 1 or (opened.modseq is not None and opened.modseq == since["m"]):
        return
    modifier = ""
    by_modseq = opened.modseq is not None and since["m"] is not None
    if by_modseq:
        quick = login.can("QRESYNC")
        modifier = f" (CHANGEDSINCE {since['m']}{' VANISHED' if quick else ''})"
    vanished: list[tuple[int, int]] = []
    changed: list[tuple[str, tuple[str, ...]]] = []
    cursor = dict(since)
    gmail = " X-GM-LABELS" if login.can("X-GM-EXT-1") else ""
    for response in _stream(login, f"UID FETCH 1:{last} (UID FLAGS{gmail}){modifier}"):
        if response[0][:9].upper() == b"VANISHED ":
            vanished.extend(wire.ranges(response[0].split()[-1]))
        elif (found := _relabelled(response, opened.validity)) is not None:
            changed.append(found)
            if len(changed) >= PAGE_MESSAGES:
                yield Page(cursor, relabelled=changed)
                changed = []
    yield Page(cursor, relabelled=changed)
    if by_modseq and login.can("QRESYNC"):
        yield from _vanished(opened, cursor, vanished)
    else:
        listed = _search(login, f"1:{last}")
        yield Page(cursor, present=Present(opened.validity, listed, since["n"]))


def _vanished(
    opened: Opened, cursor: dict[str, Any], vanished: list[tuple[int, int]]
) -> Iterator[Page]:
    gone = Uids((low, min(high, cursor["n"] - 1)) for low, high in vanished if low < cursor["n"])
    if not len(gone):
        return
    if len(gone) <= _MAX_REMOVED:
        yield Page(cursor, removed=[f"{opened.validity}:{uid}" for uid in gone])
    else:
        present = Present(opened.validity, gone, cursor["n"], inverted=True)
        yield Page(cursor, present=present)


def _relabelled(response: Sequence[bytes], validity: int) -> tuple[str, tuple[str, ...]] | None:
    if not _FETCH.match(response[0]):
        return None
    values = wire.parse(response)
    items = wire.pairs(values[2]) if len(values) > 2 and isinstance(values[2], list) else {}
    uid = items.get(b"UID")
    if not isinstance(uid, bytes) or b"FLAGS" not in items:
        return None
    words = [*(items[b"FLAGS"] or ()), *(items.get(b"X-GM-LABELS") or ())]
    return f"{validity}:{int(uid)}", _labels(words)


# -- commands ----------------------------------------------------------------------------------


def _run(login: Login, command: str) -> list[list[bytes]]:
    return list(_stream(login, command))


def _stream(login: Login, command: str) -> Iterator[list[bytes]]:
    """Yield the untagged responses of a command. Must be read to its end."""
    tag = login.wire.command(command.encode())
    while True:
        line = login.wire.readline()
        if line.startswith(b"* "):
            response = login.wire.complete(line)
            response[0] = response[0][2:]
            if response[0][:4].upper() == b"BYE ":
                raise login.wire.bye(response[0])
            yield response
        elif line.startswith(tag + b" "):
            status = line[len(tag) + 1 :].strip()
            if not status.upper().startswith(b"OK"):
                raise refusal(wire.printable(status), otherwise=_refused)
            return


def _refused(text: str) -> ConnectorError:
    return Unavailable(text, code="refused")


def _number(pattern: bytes, text: bytes) -> int | None:
    match = re.search(pattern, text, re.IGNORECASE)
    return int(match[1]) if match else None
