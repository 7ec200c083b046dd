"""The small C programs of the bench, compiled in the run: the floor and the delaying proxy."""

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.results import BenchError

_HERE = Path(__file__).parent
#: A command as a client sends it: a tag, then the verb (UID FETCH counts as one).
_COMMAND = re.compile(rb"^[A-Za-z0-9.]+ ((?:UID )?[A-Za-z]+)(?=[ \r])", re.MULTILINE)


def build(name: str, directory: Path) -> Path:
    """Compile a program of this folder; return it. Raises BenchError."""
    target, compiler = directory / name, shutil.which("cc")
    if compiler is None:
        raise BenchError("There is no C compiler. As root: apt-get install gcc libc6-dev")
    words = ["-O2", "-Wall", "-Wextra", "-pthread", "-o", str(target), str(_HERE / f"{name}.c")]
    done = subprocess.run([compiler, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{name}.c could not be compiled: {done.stderr}")
    return target


@contextlib.contextmanager
def proxy(
    program: Path,
    port: int,
    *,
    each_way_seconds: float = 0.0,
    bytes_per_second: int = 0,
    log: Path | None = None,
) -> Iterator[int]:
    """Run the proxy before `port` of this machine; yield the port that it listens on."""
    words = [str(program), str(port), str(round(each_way_seconds * 1e6)), str(bytes_per_second)]
    with subprocess.Popen(
        [*words, *([str(log)] if log else [])], stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        try:
            yield int(running.stdout.readline())
        finally:
            running.send_signal(signal.SIGKILL)


def commands(log: Path) -> list[str]:
    """Return the verbs of all IMAP commands that went through a proxy with this log, in order."""
    found = []
    for file in sorted(log.parent.glob(f"{log.name}.*")):
        found += [match[1].decode().upper() for match in _COMMAND.finditer(file.read_bytes())]
    return found


def forget_commands(log: Path) -> None:
    """Let `commands` tell only of connections that are made from now on."""
    for file in log.parent.glob(f"{log.name}.*"):
        file.unlink()
