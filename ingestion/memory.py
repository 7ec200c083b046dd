"""How processes that live for hours use memory: what they have, and will need again, is kept."""

import ctypes
import gc

#: glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Above what a batch needs, below what one large message does.
_KEPT_BYTES = 32_000_000


def keep() -> None:
    """Settle in for making and freeing the same kinds of objects for hours.

    An import makes a million small objects and hardly a cycle, and the collector of cycles took a
    tenth of the CPU time. What is freed stays with the process, up to a limit in each of malloc's
    arenas (about one a thread): to give it back to the kernel, and to have it filled with zeros
    again, took a fifteenth.
    """
    keep_objects()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def keep_objects() -> None:
    """Let the collector of cycles come seldom, and not to what there is now, which lives as long as
    the process: to look through all of Django takes 60 ms, in the middle of somebody's search."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def collect_cycles(**_: object) -> None:
    """Collect now what the collector would come for by itself, as a receiver of Django's
    `request_finished`: what an answer leaves takes 1 to 3 ms while nobody waits for it, and what a
    dozen do 100 ms in the middle of the next one."""
    is_due = [
        count > limit for count, limit in zip(gc.get_count(), gc.get_threshold(), strict=True)
    ]
    gc.collect(2 if is_due[2] else 1 if is_due[1] else 0)
