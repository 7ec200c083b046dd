"""Runs programs, shows their output, starts again whatever dies, and ends them all with itself.

Owns processes; knows nothing of Django or of what the programs are (`ingestion_project.run`
does). One thread: the kernel ends a child when the *thread* that started it is gone.

A program in Python may be a fork of the supervisor (`forks`), which then has its libraries already.

How nothing is left behind:
- every program is a process group of its own, and the whole group is killed once its first
  process has ended, so that no child of a killed program lives on;
- the kernel sends `orphan_signal` when the supervisor dies, even by kill -9 (PR_SET_PDEATHSIG).
  Programs whose children must not outlive them set the same for those (celery.py, web.py).
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Self

from ingestion_project import forks

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
#: A program that ran this long was well: its next death is waited for as if it were the first.
WELL_AFTER_SECONDS = 30.0
STOP_GRACE_SECONDS = 10.0
_LINE_LIMIT_BYTES = 64 * 1024


def end_with_parent(signal_number: int = signal.SIGKILL, *, parent: int | None = None) -> None:
    """Have the kernel send this process a signal as soon as its parent (thread) is gone.

    `parent` is the pid of who started it: whoever does not say finds it gone only from now on.
    """
    parent = os.getppid() if parent is None else parent
    _libc.prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal_number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and how. `before_start` is called before every start, also a later one.

    Where it has an `entry` ("package.module:function"), a fork of this process calls that, in place
    of executing the command.
    """

    name: str
    command: Sequence[str]
    entry: str = ""
    environ: Mapping[str, str]
    directory: Path
    before_start: Callable[[], None] = lambda: None
    ready: Callable[[], bool] = lambda: True
    stop_signal: int = signal.SIGTERM
    orphan_signal: int = signal.SIGKILL


class _Running:
    """One program's present process, and the plan for its next."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | forks.Fork | None = None
        self.started_at = 0.0
        self.start_at = 0.0
        self.backoff_seconds = FIRST_BACKOFF_SECONDS
        self.pipe: IO[bytes] | None = None
        self.pending = b""

    def start(self) -> None:
        program = self.program
        program.before_start()
        first = functools.partial(end_with_parent, program.orphan_signal, parent=os.getpid())
        if program.entry:
            self.process = forks.Fork(
                program.command,
                entry=program.entry,
                env=program.environ,
                cwd=program.directory,
                first=first,
            )
        else:
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                program.command,
                env=dict(program.environ),
                cwd=program.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=first,  # noqa: PLW1509 - one thread
            )
        self.pipe = self.process.stdout
        self.started_at = time.monotonic()
        self.pending = b""

    @property
    def alive(self) -> bool:
        return self.process is not None

    def reap(self) -> int | None:
        """Return the exit status of a process that has ended, its whole group gone; else None."""
        if self.process is None:
            return None
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        self.kill_group()  # before the pid is free for others
        status = self.process.wait()
        self.process = None
        return status

    def kill_group(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill what is left of it, and wait until it is gone."""
        self.kill_group()
        if self.process is not None:
            self.process.wait()
            self.process = None

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                # Not send_signal(): that polls, and takes the exit status away from reap().
                os.kill(self.process.pid, number)


class StoppedError(Exception):
    """A signal asked the supervisor to end while it was waiting for something."""


class Supervisor:
    """Programs that are kept running until `stop()`. A context manager: leaving it stops them.

    `show(name, line)` gets every line of output, and the supervisor's own words as "system".
    """

    def __init__(self, show: Callable[[str, str], None]) -> None:
        self._show = show
        self._running: dict[str, _Running] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._asked_to_stop = 0
        self._kept: dict[int, object] = {}

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._kept[number] = signal.signal(number, self._on_stop_signal)
        self._kept[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        signal.set_wakeup_fd(-1)
        for number, handler in self._kept.items():
            signal.signal(number, handler)  # type: ignore[arg-type] # what signal() gave us
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _on_stop_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked_to_stop += 1
        if self._asked_to_stop > 1:  # impatience: end now
            for running in self._running.values():
                running.kill_group()

    # -- what a runner calls -----------------------------------------------------------------------
    def start(self, program: Program) -> None:
        """Start a program and keep it running from now on. Raises what `before_start` raises."""
        running = _Running(program)
        running.start()
        self._running[program.name] = running
        self._watch(running)

    def wait_until_ready(self, name: str, *, timeout_seconds: float) -> None:
        """Go on once the program says that it is ready.

        Raises StoppedError when asked to stop meanwhile, TimeoutError when it takes too long.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._running[name].program.ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not ready after {timeout_seconds:.0f} s.")
            self._step(0.02)
            if self._asked_to_stop:
                raise StoppedError

    def run_once(self, program: Program) -> int:
        """Run a program to its end and return its exit status. Raises StoppedError."""
        running = _Running(program)
        running.start()
        self._watch(running)
        try:
            while (status := running.reap()) is None:
                self._step(0.2)
                if self._asked_to_stop:
                    raise StoppedError
        finally:
            running.end()
            self._finish(running)
        return status

    def run_until_stopped(self) -> None:
        while not self._asked_to_stop:
            self._step(1.0)

    def stop(self) -> None:
        """End all programs, the last started first, each with a grace period; idempotent.

        Programs that stand on others are told first; the first ones only once those are gone.
        """
        self._asked_to_stop = max(self._asked_to_stop, 1)
        for group in self._stop_order():
            for running in group:
                running.signal(running.program.stop_signal)
                running.signal(signal.SIGCONT)  # one that was stopped hears nothing else
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            while any(running.alive for running in group):
                self._step(0.1)
                if time.monotonic() > deadline:
                    for running in group:
                        running.kill_group()
        self._running.clear()

    # -- inside ------------------------------------------------------------------------------------
    def _stop_order(self) -> Iterator[list[_Running]]:
        """Yield what stops together: first what is only restarted, then what others stand on."""
        everything = list(self._running.values())
        servers = [r for r in everything if r.program.name in ("postgres", "redis")]
        yield [r for r in everything if r not in servers]
        yield servers

    def _watch(self, running: _Running) -> None:
        assert running.pipe is not None
        os.set_blocking(running.pipe.fileno(), False)
        self._selector.register(running.pipe, selectors.EVENT_READ, running)

    def _step(self, timeout_seconds: float) -> None:
        """Wait for output, a signal or the time; show the output; see to what has died."""
        for key, _ in self._selector.select(self._until_next_start(timeout_seconds)):
            if key.fileobj == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 512)
            else:
                self._pump(key.data)
        for running in list(self._running.values()):
            self._see_to(running)

    def _until_next_start(self, timeout_seconds: float) -> float:
        if self._asked_to_stop:  # there is none: to wait for it would be to wait for nothing
            return timeout_seconds
        waits = [r.start_at - time.monotonic() for r in self._running.values() if not r.alive]
        return max(0.0, min([timeout_seconds, *waits]))

    def _pump(self, running: _Running) -> bool:
        """Show what the program has said since; return whether there may be more right now."""
        assert running.pipe is not None
        try:
            chunk = os.read(running.pipe.fileno(), _LINE_LIMIT_BYTES)
        except BlockingIOError:
            return False
        *lines, running.pending = (running.pending + chunk).split(b"\n")
        if not chunk or len(running.pending) > _LINE_LIMIT_BYTES:
            lines.append(running.pending)
            running.pending = b""
        for line in lines:
            if line:
                self._show(running.program.name, line.decode(errors="backslashreplace"))
        if not chunk:
            self._forget(running)
        return bool(chunk)

    def _finish(self, running: _Running) -> None:
        """Show the last words of a program that has ended, and let go of its pipe."""
        while running.pipe is not None and self._pump(running):
            pass
        self._forget(running)

    def _forget(self, running: _Running) -> None:
        if running.pipe is not None:
            self._selector.unregister(running.pipe)
            running.pipe.close()
            running.pipe = None

    def _see_to(self, running: _Running) -> None:
        """Note a death and plan the next start; start what is due."""
        if running.alive:
            status = running.reap()
            if status is None:
                return
            self._finish(running)
            if time.monotonic() - running.started_at > WELL_AFTER_SECONDS:
                running.backoff_seconds = FIRST_BACKOFF_SECONDS
            running.start_at = time.monotonic() + running.backoff_seconds
            if not self._asked_to_stop:
                self._show(
                    "system",
                    f"{running.program.name} {describe_exit(status)}; "
                    f"starting it again in {running.backoff_seconds:.1f} s",
                )
            running.backoff_seconds = min(running.backoff_seconds * 2, LONGEST_BACKOFF_SECONDS)
        elif not self._asked_to_stop and time.monotonic() >= running.start_at:
            try:
                running.start()
            except OSError as error:  # no process or file to be had just now
                self._show("system", f"{running.program.name} could not start: {error}")
                running.start_at = time.monotonic() + LONGEST_BACKOFF_SECONDS
            else:
                self._watch(running)


def describe_exit(status: int) -> str:
    """Say in words how a process ended: "was killed by SIGKILL", "ended with status 1"."""
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"
