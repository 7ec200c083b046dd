"""Unpacks gzip in pieces of bounded size: what a stranger sent may pack a thousand to one."""

import zlib
from collections.abc import Iterator

_PIECE_BYTES = 1 << 18


class Gunzip:
    """One stream, of one member or more (RFC 1952 section 2.2). Raises zlib.error where it is
    damaged."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    def pieces(self, packed: bytes) -> Iterator[bytes]:
        """Unpack what came next. Iterate to the end."""
        while packed:
            if self._stream.eof:
                self._stream = zlib.decompressobj(wbits=31)
            yield self._stream.decompress(packed, _PIECE_BYTES)
            packed = self._stream.unused_data or self._stream.unconsumed_tail

    def end(self) -> bytes:
        """Return the last few bytes. Raises zlib.error where the stream was cut off."""
        rest = self._stream.flush()
        if not self._stream.eof:
            raise zlib.error("the stream was cut off")
        return rest
