"""Which hashes were surely never seen: a Bloom filter, of one size for any number of messages."""

import struct
from collections.abc import Iterable

_BITS = 1 << 24  # 2 MB; one of a hundred strangers is taken for a friend among a million
_TWO_PLACES = struct.Struct(">II24x")


class SeenHashes:
    """Holds the SHA-256 hashes that were added to it, and seems to hold a few others."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Add these; return those that it seemed to hold before. What becomes of one does not
        matter: whoever meets it again is told so, and asks."""
        bits, places = self._bits, _TWO_PLACES.unpack
        found = set()
        for sha256 in hashes:
            first, second = places(sha256)
            one, other = 1 << (first >> 8 & 7), 1 << (second >> 8 & 7)
            first, second = first >> 11, second >> 11
            before, after = bits[first], bits[second]
            if before & one and after & other:
                found.add(sha256)
            else:
                bits[first] = before | one
                bits[second] |= other
        return found
