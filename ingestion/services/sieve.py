"""Which hashes were surely never seen: a Bloom filter, of one size for any number of messages."""

_BITS = 1 << 24  # 2 MB; one of a hundred strangers is taken for a friend among a million


class Sieve:
    """Holds what was added to it, and seems to hold a few others. For evenly distributed hashes."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, sha256: bytes) -> None:
        first, second = int.from_bytes(sha256[:3], "big"), int.from_bytes(sha256[3:6], "big")
        self._bits[first >> 3] |= 1 << (first & 7)
        self._bits[second >> 3] |= 1 << (second & 7)

    def __contains__(self, sha256: bytes) -> bool:
        first, second = int.from_bytes(sha256[:3], "big"), int.from_bytes(sha256[3:6], "big")
        bits = self._bits
        return bool(bits[first >> 3] >> (first & 7) & bits[second >> 3] >> (second & 7) & 1)
