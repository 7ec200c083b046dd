"""Sets of message ids, at 8 bytes each: Gmail's are 64-bit numbers in hexadecimal."""

import bisect
import heapq
import itertools
from array import array
from collections.abc import Iterable, Iterator


def order(remote_id: str) -> tuple[int, str]:
    """Sort hexadecimal numbers as numbers, and whatever else somehow."""
    return len(remote_id), remote_id


class Ids:
    """Add, then look up. An id that is no such number is kept as the text it is."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._numbers = array("Q")
        self._texts: set[str] = set()
        self._sorted = True
        self.update(ids)

    def update(self, ids: Iterable[str]) -> None:
        for text in ids:
            number = _number(text)
            if number is None:
                self._texts.add(text)
            else:
                self._numbers.append(number)
        self._sorted = False

    def __contains__(self, remote_id: object) -> bool:
        if not isinstance(remote_id, str):
            return False
        number = _number(remote_id)
        if number is None:
            return remote_id in self._texts
        self._sort()
        at = bisect.bisect_left(self._numbers, number)
        return at < len(self._numbers) and self._numbers[at] == number

    def __iter__(self) -> Iterator[str]:
        """Yield every id once, by `order`."""
        self._sort()
        numbers = (format(number, "x") for number, _ in itertools.groupby(self._numbers))
        return heapq.merge(numbers, sorted(self._texts, key=order), key=order)

    def _sort(self) -> None:
        if not self._sorted:
            self._numbers = array("Q", sorted(self._numbers))
            self._sorted = True


def _number(text: str) -> int | None:
    """Return the number that is written exactly so, or None."""
    if not 1 <= len(text) <= 16 or not text.isascii() or not text.isalnum():
        return None
    try:
        number = int(text, 16)
    except ValueError:
        return None
    return number if format(number, "x") == text else None
