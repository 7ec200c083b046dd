"""A sieve never passes over what it holds, and lets few strangers through."""

import hashlib

from ingestion.services.engine.seen_hashes import Sieve


def hashes(first: int, count: int) -> set[bytes]:
    return {hashlib.sha256(b"%d" % number).digest() for number in range(first, first + count)}


def test_a_sieve_holds_all_that_was_added_and_few_others() -> None:
    sieve = Sieve()
    assert not sieve.holds(hashes(0, 1_000))
    sieve.add(hashes(0, 100_000))
    assert sieve.holds(hashes(0, 100_000)) == hashes(0, 100_000)
    assert len(sieve.holds(hashes(100_000, 100_000))) < 100
