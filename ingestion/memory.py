"""How the processes that copy mail use memory: what an import needs again at once is kept."""

import ctypes
import gc

#: glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Above what a batch needs, below what one large message does.
_KEPT_BYTES = 32_000_000


def keep() -> None:
    """Settle in for making and freeing the same kinds of objects for hours.

    The collector of cycles comes seldom, and not to what lives as long as the process: an import
    makes a million small objects and hardly a cycle, and it took a tenth of the CPU time. What is
    freed stays with the process, up to a limit in each of malloc's arenas (about one a thread): to
    give it back to the kernel, and to have it filled with zeros again, took a fifteenth.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
