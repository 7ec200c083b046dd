"""The archive of this deployment, and what its users need to know of stores."""

import functools
import os
from pathlib import Path

from django.conf import settings

from ingestion.packs.base import PackFile, PackStore, PackWriter, told_of_tmpdir
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.format import Entry, Extent
from ingestion.packs.location import Bucket, parse

__all__ = [
    "Entry",
    "Extent",
    "PackFile",
    "PackStore",
    "PackWriter",
    "at",
    "store",
    "told_of_tmpdir",
]


def store() -> PackStore:
    """The archive of this deployment (settings.ARCHIVE_URL, else ARCHIVE_DIR)."""
    return (
        at(settings.ARCHIVE_URL) if settings.ARCHIVE_URL else DirectoryStore(settings.ARCHIVE_DIR)
    )


def at(url: str) -> PackStore:
    """The archive at a URL (`packs.location`). Raises ValueError where it can't be read."""
    place = parse(url)
    if isinstance(place, Path):
        return DirectoryStore(place)
    return _in_bucket(place, settings.ARCHIVE_LOCK_DAYS, settings.NETWORK_TIMEOUT_SECONDS)


@functools.lru_cache(maxsize=4)
def _in_bucket(bucket: Bucket, lock_days: int, read_seconds: float) -> PackStore:
    """One for all in this process: it remembers what was read last."""
    from ingestion.packs.s3 import ObjectStore  # noqa: PLC0415 - only here is botocore needed

    return ObjectStore(bucket, lock_days=lock_days, read_seconds=read_seconds)


os.register_at_fork(after_in_child=_in_bucket.cache_clear)
