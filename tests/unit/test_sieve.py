"""A sieve never passes over what it holds, and lets few strangers through."""

import hashlib

from ingestion.services.sieve import Sieve


def hashes(first: int, count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(first, first + count)]


def test_a_sieve_holds_all_that_was_added_and_few_others() -> None:
    sieve = Sieve()
    for sha256 in hashes(0, 100_000):
        sieve.add(sha256)
    assert all(sha256 in sieve for sha256 in hashes(0, 100_000))
    assert sum(sha256 in sieve for sha256 in hashes(100_000, 100_000)) < 100
