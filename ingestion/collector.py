"""How the processes that copy mail use Python's garbage collector."""

import gc


def spare() -> None:
    """Look for cycles seldom, and not among what lives as long as the process.

    An import makes a million small objects and hardly a cycle; the collector's default took a
    tenth of its CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
