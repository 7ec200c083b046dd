"""Sets of UIDs as ranges, and what a folder holds: millions cost no more than their gaps."""

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Iterator

MAX_UID = 2**32 - 1
#: RFC 7162 s4 wants clients to keep lines below 8,192 bytes; this leaves room for the rest of it.
MAX_SET_BYTES = 6_000


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
        at = bisect.bisect_right(self._ranges, (uid, MAX_UID + 1)) - 1
        return at >= 0 and self._ranges[at][0] <= uid <= self._ranges[at][1]

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self._ranges)

    def __iter__(self) -> Iterator[int]:
        for low, high in self._ranges:
            yield from range(low, high + 1)

    def ranges(self) -> Iterable[tuple[int, int]]:
        """Return them as ascending (low, high)."""
        return self._ranges

    def and_those_of(self, other: "Uids") -> "Uids":
        return Uids([*self._ranges, *other.ranges()])

    def since(self, first: int) -> "Uids":
        """Return those from `first` on."""
        kept = ((max(low, first), high) for low, high in self._ranges if high >= first)
        return Uids(kept)

    def pages(self, size: int | Callable[[], int]) -> Iterator["Uids"]:
        """Yield them in order, at most `size` at a time (which is asked for before each page)."""
        page: list[tuple[int, int]] = []
        room = size() if callable(size) else size
        for low, high in self._ranges:
            first = low
            while first <= high:
                upto = min(high, first + room - 1)
                page.append((first, upto))
                room -= upto - first + 1
                first = upto + 1
                if room == 0:
                    yield Uids(page)
                    page, room = [], size() if callable(size) else size
        if page:
            yield Uids(page)

    def windows(self, size: int, first: int, upto: int) -> Iterator[tuple[int, int]]:
        """Cut the UIDs [first, upto] into (low, high) that hold at most `size` members each."""
        low = first
        for page in self.pages(size):
            high = max(page.last, low)
            if high >= upto:
                break
            yield low, high
            low = high + 1
        if low <= upto:
            yield low, upto

    @property
    def last(self) -> int:
        """The highest, 0 where there is none."""
        return self._ranges[-1][1] if self._ranges else 0

    def before(self, end: int) -> "Uids":
        """Return those below `end`."""
        return Uids((low, min(high, end - 1)) for low, high in self._ranges if low < end)

    def highest(self, count: int) -> "Uids":
        """Return the highest, at most so many."""
        kept: list[tuple[int, int]] = []
        for low, high in reversed(self._ranges):
            if count <= 0:
                break
            kept.append((max(low, high - count + 1), high))
            count -= high - kept[-1][0] + 1
        return Uids(kept)

    def commands(self) -> Iterator["Uids"]:
        """Cut into sets that fit a command line of the strictest servers."""
        part: list[tuple[int, int]] = []
        length = 0
        for low, high in self._ranges:
            own = len(str(low)) + len(str(high)) + 2
            if part and length + own > MAX_SET_BYTES:
                yield Uids(part)
                part, length = [], 0
            part.append((low, high))
            length += own
        if part:
            yield Uids(part)

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
