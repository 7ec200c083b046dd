"""A disk that takes no more: not a full one, but the same moment."""

import contextlib
import os
import resource
from collections.abc import Iterator

from tests.servers.stack import packing_processes


@contextlib.contextmanager
def file_sizes_limited(size_bytes: int) -> Iterator[None]:
    """For this process and those that pack for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(limits: tuple[int, int]) -> None:
        for pid in (os.getpid(), *packing_processes()):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    limit((size_bytes, before[1]))
    try:
        yield
    finally:
        limit(before)
