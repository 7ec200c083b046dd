"""Starts programs that are written in Python as forks of a process that has their libraries.

Owns the list of those libraries and what makes a fork a process like one that was executed. Most of
what a start costs is importing them, and it is the same for each program. Of ours nothing is kept:
a fork reads the settings and all code of this project anew, in its own environment.
"""

import atexit
import contextlib
import gc
import importlib
import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

#: What the programs import. Nothing that reads Django's settings or the environment when it is
#: imported (prometheus_client does), and nothing that starts a thread: a fork would not have it.
LIBRARIES = """
celery.apps.beat celery.apps.worker celery.bin.celery celery.concurrency.prefork
celery.concurrency.thread celery.worker.components celery.worker.consumer celery.worker.worker
cryptography.x509 django.contrib.admin django.contrib.postgres.search
django.core.cache.backends.redis django.core.handlers.wsgi django.core.mail
django.core.management.commands.migrate django.template.backends.django django.views.generic
django_filters environ fernet_fields fido2.server gunicorn.app.wsgiapp httpcore httpx imapclient
kombu.transport.redis markdown_it psycopg requests rest_framework.serializers structlog
whitenoise.middleware
""".split()
_OURS = ("connectors", "ingestion", "ingestion_project")


def load_libraries() -> None:
    """Import what the programs need, for all forks to come: two seconds of a core, once."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collector that looks at an object writes to it: these stay shared


class Fork:
    """A running program. It has what `subprocess.Popen` has, as far as the supervisor asks."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        entry: str,
        env: Mapping[str, str],
        cwd: Path,
        first: Callable[[], object],
    ) -> None:
        """Start "package.module:function", with these words as its command line.

        `first` is called before all else. Raises OSError where no process is to be had.
        """
        output, its_output = os.pipe()
        self.stdout = os.fdopen(output, "rb", buffering=0)
        # A signal that comes before the fork has let go of our handlers waits until it has.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _live(first, its_output, mask, words=words, entry=entry, env=env, cwd=cwd)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(its_output)

    def wait(self) -> int:
        """Return the exit status, negative where a signal ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _live(
    first: Callable[[], object],
    output: int,
    mask: set[int],
    *,
    words: Sequence[str],
    entry: str,
    env: Mapping[str, str],
    cwd: Path,
) -> NoReturn:
    """Call the entry point as its console script does, and end as an interpreter does."""
    status = 1
    try:
        os.setsid()
        first()
        _leave_the_parent(output, mask)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        sys.argv = list(words)
        _show(" ".join(words))
        for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
            del sys.modules[name]
        sys.exit(pkgutil.resolve_name(entry)())
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:  # noqa: BLE001 - the process ends here, and says why
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 - waits for them
            atexit._run_exitfuncs()  # noqa: SLF001 - what an interpreter's end would call
            sys.stdout.flush()
        finally:  # never back into the parent's code
            os._exit(status & 0xFF)


def _leave_the_parent(output: int, mask: set[int]) -> None:
    """Let go of its files and of its handlers of signals."""
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", 1, "utf-8")
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace")
    signal.set_wakeup_fd(-1)
    for signal_number in signal.valid_signals():
        if callable(signal.getsignal(signal_number)):
            signal.signal(signal_number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _show(line: str) -> None:
    """Have `ps` show this as the process's command line.

    It is written over that of the parent and over its environment, where nobody reads that any
    more: setting a variable puts it elsewhere.
    """
    with contextlib.suppress(OSError):  # then it is shown as its parent is
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end, limit = (int(fields[number - 3]) for number in (48, 49, 51))  # see proc(5)
        text = line.encode()[: limit - begin - 1] + b"\0"
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(text.ljust(end - begin, b"\0"))
