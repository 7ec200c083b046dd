"""A clean machine in name spaces of its own, where the command lines of deploy/ run as they stand.

It has this machine's programs and nothing else: its root can't be written, /opt/ingestion is this
checkout, /tmp, /run and /var/lib are empty, and its network is itself, under the names that it is
given. Only root can make one.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ingestion_project.supervisor import end_with_parent
from tests.servers.stack import ROOT

#: As in the image (Containerfile). It may enter this checkout, and Python, wherever root keeps them.
USER = 10001
_AS_USER = (
    *("setpriv", "--no-new-privs", "--clear-groups", "--bounding-set=-all,+dac_read_search"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    "--securebits=+no_setuid_fixup",
)
_MAKE = """
set -eu
ip link set lo up
mount -t tmpfs -o mode=755 none "$NEW"
cd "$NEW"
for place in /*; do
    case $place in /opt | /run | /tmp | /var | /data) continue ;; esac
    if [ -L $place ]; then cp -P $place .; elif [ -d $place ]; then mkdir .$place && mount --rbind $place .$place; fi
done
mkdir -p opt/ingestion var/lib/ingestion data run tmp
mount --bind "$ROOT" opt/ingestion
mount --bind "$HOSTS" etc/hosts
for place in data run tmp var/lib; do mount -t tmpfs -o mode=1777 none $place; done
# The programs of its virtual environment name their interpreter by where it lies.
[ -d ".$ROOT" ] || { mkdir -p ".$ROOT" && mount --bind "$ROOT" ".$ROOT"; }
mkdir -m 755 run/secrets
mkdir -m 700 var/lib/ingestion
chown $USER:$USER var/lib/ingestion
mount -o remount,bind,ro "$NEW"
exec chroot . sh -c 'echo made; exec sleep infinity'
"""


@dataclasses.dataclass
class Machine:
    """`log` gets all output. What was started ends with the machine."""

    pid: int
    log: Path
    started: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    def command(
        self, words: Sequence[str], environ: Mapping[str, str], *, user: int = USER
    ) -> list[str]:
        return [
            *("nsenter", f"--target={self.pid}", "--net", "--mount", "--root"),
            *(*_AS_USER, f"--reuid={user}", f"--regid={user}"),
            *("env", "--ignore-environment", "--chdir=/opt/ingestion"),
            *(f"{name}={value}" for name, value in environ.items()),
            *words,
        ]

    def start(
        self, words: Sequence[str], environ: Mapping[str, str], *, user: int = USER
    ) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                self.command(words, environ, user=user),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - only a prctl
            )
        self.started.append(process)
        return process

    def run(
        self, words: Sequence[str], environ: Mapping[str, str], *, user: int = USER
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(words, environ, user=user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def write(self, path: str, content: str) -> None:
        """Write a file that all may read, as root does."""
        line = f"umask 022; cat >{shlex.quote(path)}"
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--root", "env", "--chdir=/"]
        subprocess.run([*enter, "sh", "-c", line], input=content, text=True, check=True)


@contextlib.contextmanager
def machine(directory: Path, names: Sequence[str]) -> Iterator[Machine]:
    hosts = directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
    new = directory / "root"
    new.mkdir()
    environ = {"NEW": str(new), "ROOT": str(ROOT), "HOSTS": str(hosts), "USER": str(USER)}
    first = subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c", _MAKE],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - only a prctl
    )
    assert first.stdout is not None
    made = Machine(first.pid, directory / "machine.log")
    try:
        said = first.stdout.readline()
        assert said == b"made\n", (said + first.stdout.read()).decode()
        yield made
    finally:
        for process in made.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        first.kill()
        first.wait()
        first.stdout.close()
