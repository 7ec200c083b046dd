"""Every hash that was seen is recognised, and few others are taken for one."""

import hashlib

from ingestion.services.engine.seen_hashes import SeenHashes


def hashes(first: int, count: int) -> set[bytes]:
    return {hashlib.sha256(b"%d" % number).digest() for number in range(first, first + count)}


def test_all_that_was_added_is_recognised_and_few_others() -> None:
    seen = SeenHashes()
    assert len(seen.add(hashes(0, 100_000))) < 100
    assert seen.add(hashes(0, 100_000)) == hashes(0, 100_000)
    assert len(seen.add(hashes(100_000, 50_000))) < 100
