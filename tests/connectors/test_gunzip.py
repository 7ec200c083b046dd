"""Unpacking what comes: whole, or with an error."""

import gzip
import zlib

import pytest

from connectors.gunzip import Gunzip

WHOLE = b"Subject: a\r\n\r\n" + b"first half " * 3 + b"second half\r\n"


def _unpacked(packed: bytes, step: int) -> bytes:
    gunzip = Gunzip()
    pieces = [
        piece
        for at in range(0, len(packed), step)
        for piece in gunzip.pieces(packed[at : at + step])
    ]
    return b"".join(pieces) + gunzip.end()


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_stream_of_several_members_is_unpacked_to_its_end(step: int) -> None:
    assert _unpacked(gzip.compress(WHOLE[:30]) + gzip.compress(WHOLE[30:]), step) == WHOLE


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_member_that_is_cut_off_is_an_error(step: int) -> None:
    packed = gzip.compress(WHOLE[:30]) + gzip.compress(WHOLE[30:])
    with pytest.raises(zlib.error):
        _unpacked(packed[:-3], step)


def test_what_follows_and_is_no_member_is_an_error() -> None:
    with pytest.raises(zlib.error):
        _unpacked(gzip.compress(WHOLE) + b"more", 10_000)
