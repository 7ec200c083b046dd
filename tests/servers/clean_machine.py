"""Clean machines in name spaces of their own, where the command lines of deploy/ run as they stand.

One has this machine's programs and nothing else: its root can't be written, /opt/ingestion has of this
checkout what it is given, /tmp, /run and /var/lib are empty, and its network is itself, under the names
that it is given. Another has the files of an image instead, and the network of the one that it is put
beside. Only root can make them.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ingestion_project.supervisor import end_with_parent
from tests.servers.stack import ROOT

#: As in the image (Containerfile). It may enter this checkout, and Python, wherever root keeps them.
USER = 10001
_AS_USER = (
    *("--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search"),
    *("--ambient-caps=-all,+dac_read_search", "--securebits=+no_setuid_fixup"),
)
_AS_USER_OF_IMAGE = ("--bounding-set=-all", "--inh-caps=-all")
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
for name in $FILES; do
    if [ -d "$ROOT/$name" ]; then mkdir "opt/ingestion/$name"; else touch "opt/ingestion/$name"; fi
    mount --bind "$ROOT/$name" "opt/ingestion/$name"
done
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
# What is a volume gets owner and mode of the image's directory, as from an engine.
_MAKE_OF_IMAGE = """
set -eu
mount --bind "$ROOT" "$NEW"
cd "$NEW"
for place in dev proc sys; do mount --rbind /$place $place; done
touch etc/hosts
mount --bind "$HOSTS" etc/hosts
for place in tmp var/lib/ingestion; do
    mount -t tmpfs -o "$(stat --format mode=%a,uid=%u,gid=%g $place)" none $place
done
mount -t tmpfs -o mode=755 none run
mkdir -m 755 run/secrets
mount -o remount,bind,ro "$NEW"
exec chroot . sh -c 'echo made; exec sleep infinity'
"""


@dataclasses.dataclass
class Machine:
    """`log` gets all output. What was started ends with the machine."""

    pid: int
    log: Path
    as_user: tuple[str, ...] = _AS_USER
    started: list[subprocess.Popen[bytes]] = dataclasses.field(default_factory=list)

    def command(
        self, words: Sequence[str], environ: Mapping[str, str], *, user: int = USER
    ) -> list[str]:
        return [
            *("nsenter", f"--target={self.pid}", "--net", "--mount", "--root"),
            *("setpriv", "--no-new-privs", "--clear-groups", f"--reuid={user}", f"--regid={user}"),
            *self.as_user,
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


def machine(
    directory: Path, names: Sequence[str], files: Sequence[str]
) -> AbstractContextManager[Machine]:
    """`names` are those of its network, `files` what /opt/ingestion has of this checkout."""
    (directory / "hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
    (directory / "hosts").chmod(0o644)
    environ = {"FILES": " ".join(files), "ROOT": str(ROOT)}
    return _machine(directory, "root", environ, ["unshare", "--net"], _MAKE, _AS_USER)


def machine_of_image(
    directory: Path, root: Path, beside: Machine
) -> AbstractContextManager[Machine]:
    """`directory` is that of `beside`, and `root` where the image's files are."""
    its_network = ["nsenter", f"--net=/proc/{beside.pid}/ns/net", "unshare"]
    environ = {"ROOT": str(root)}
    return _machine(directory, "image", environ, its_network, _MAKE_OF_IMAGE, _AS_USER_OF_IMAGE)


@contextlib.contextmanager
def _machine(
    directory: Path,
    name: str,
    environ: Mapping[str, str],
    unshare: Sequence[str],
    make: str,
    as_user: tuple[str, ...],
) -> Iterator[Machine]:
    new = directory / name
    new.mkdir()
    places = {"NEW": str(new), "HOSTS": str(directory / "hosts"), "USER": str(USER)}
    first = subprocess.Popen(
        [*unshare, "--mount", "--propagation=private", "sh", "-c", make],
        env={**os.environ, **places, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - only a prctl
    )
    assert first.stdout is not None
    made = Machine(first.pid, directory / "machine.log", as_user)
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
