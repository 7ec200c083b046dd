"""Which hashes were surely never seen: a Bloom filter, of one size for any number of messages."""

import struct
from collections.abc import Iterable

_BITS = 1 << 24  # 2 MB; one of a hundred strangers is taken for a friend among a million
_TWO_PLACES = struct.Struct(">II24x")


class SeenHashes:
    """Holds the SHA-256 hashes that were added to it, and seems to hold a few others."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, hashes: Iterable[bytes]) -> None:
        bits, places = self._bits, _TWO_PLACES.unpack
        for sha256 in hashes:
            first, second = places(sha256)
            bits[first >> 11] |= 1 << (first >> 8 & 7)
            bits[second >> 11] |= 1 << (second >> 8 & 7)

    def holds(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Return those that it holds."""
        bits, places = self._bits, _TWO_PLACES.unpack
        found = set()
        for sha256 in hashes:
            first, second = places(sha256)
            if bits[first >> 11] >> (first >> 8 & 7) & bits[second >> 11] >> (second >> 8 & 7) & 1:
                found.add(sha256)
        return found
