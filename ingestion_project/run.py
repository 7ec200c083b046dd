"""`make run`: the whole service on this machine, from one command.

Owns the order: lock, port, embedded services, database, then every entry of the Procfile, kept
running until Ctrl-C. Running processes is the supervisor's; in production any process manager runs
the same Procfile.
"""

import argparse
import contextlib
import errno
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from honcho.environ import parse_procfile

from ingestion_project import forks
from ingestion_project.embedded import EmbeddedError, Local
from ingestion_project.supervisor import Program, StoppedError, Supervisor

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)
#: Until a server or the pages answer: seconds, but minutes where others keep the machine busy.
_READY_SECONDS = 180.0


class CannotStartError(RuntimeError):
    """The service can't start here; the text says why and what to do."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ingestion_project.run", description=__doc__)
    parser.add_argument(
        "--only-services",
        action="store_true",
        help="run the embedded PostgreSQL and Redis alone, e.g. beside a development server",
    )
    parser.add_argument(
        "--no-fsync",
        action="store_true",
        help="faster, for tests: a crash of the machine may lose the database",
    )
    options = parser.parse_args(arguments)
    try:
        run(only_services=options.only_services, durable=not options.no_fsync)
    except StoppedError:
        pass
    except ImproperlyConfigured as error:
        print(f"The settings are not complete: {error}", file=sys.stderr)
        return 2
    except (CannotStartError, EmbeddedError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(*, only_services: bool = False, durable: bool = True) -> None:
    """Run until a signal asks to stop.

    Raises CannotStartError, EmbeddedError or TimeoutError when it can't come up, and
    ImproperlyConfigured on bad settings; nothing that it started is left then.
    """
    from ingestion_project import settings  # noqa: PLC0415 - reads the environment; may raise

    local = Local(settings.VAR_DIR)
    own_database = "DATABASE_URL" not in os.environ
    own_broker = "REDIS_URL" not in os.environ
    with contextlib.ExitStack() as stack:
        if own_database or own_broker:
            stack.enter_context(only_one(settings.VAR_DIR / "services.lock"))
        if own_database:
            local.make_secrets()
        if not only_services:
            stack.enter_context(only_one(settings.VAR_DIR / "run.lock"))
            check_port(settings.HOST, settings.PORT)
        output = Output(["postgres", "redis", "setup", *_procfile(settings.BASE_DIR)])
        supervisor = stack.enter_context(Supervisor(output.show))
        if own_database:
            supervisor.start(local.postgres(durable=durable))
        if own_broker:
            supervisor.start(local.redis())
        if not only_services:
            forks.load_libraries()  # while those come up
        for name in ["postgres"] * own_database + ["redis"] * own_broker:
            supervisor.wait_until_ready(name, timeout_seconds=_READY_SECONDS)
        if only_services:
            output.show("system", f"PostgreSQL and Redis are ready under {settings.VAR_DIR}.")
        else:
            _start_application(supervisor, output)
        supervisor.run_until_stopped()
        output.show("system", "stopping")


def _start_application(supervisor: Supervisor, output: "Output") -> None:
    from ingestion_project import settings  # noqa: PLC0415 - see run()

    environ = _child_environ(settings.VAR_DIR)
    base = settings.BASE_DIR
    setup = Program(
        name="setup",
        command=(str(base / "ingestion_project/bootstrap.py"),),
        entry="ingestion_project.bootstrap:main",
        environ=environ,
        directory=base,
    )
    if supervisor.run_once(setup) != 0:
        raise CannotStartError("The service can't start here: see the lines above.")
    entries = {found.name: found.value for found in entry_points(group="console_scripts")}
    for name, line in _procfile(base).items():
        script, *words = shlex.split(line)
        supervisor.start(
            Program(
                name=name,
                command=(str(Path(sys.executable).with_name(script)), *words),
                entry=entries[script],
                environ=environ,
                directory=base,
                ready=lambda: _listens(settings.HOST, settings.PORT),
            )
        )
    supervisor.wait_until_ready("web", timeout_seconds=_READY_SECONDS)
    where = address(settings.HOST, settings.PORT)
    output.show("system", f"Ready: admin {where}/admin/   API documentation {where}/api/docs")


def _procfile(base: Path) -> dict[str, str]:
    return dict(parse_procfile((base / "Procfile").read_text()).processes)


def _child_environ(var_dir: Path) -> dict[str, str]:
    binaries = str(Path(sys.executable).parent)
    return {
        "LOG_FORMAT": "console",
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
        "VAR_DIR": str(var_dir),
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process. Raises CannotStartError when another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CannotStartError(
                f"The service already runs on {path.parent} (process {file.read().strip()}). "
                "Stop it first, or set VAR_DIR to another directory."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def check_port(host: str, port: int) -> None:
    """Raise CannotStartError unless the port can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStartError(
                f"Can't listen on {host}:{port}: {error.strerror}. "
                f"Set PORT to a free one, for example PORT={port + 1} make run."
            ) from None


def _reachable(host: str) -> str:
    """Return an address of this machine that reaches a server listening on `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound


def address(host: str, port: int) -> str:
    """Return what people open. "localhost" where that reaches it: Google and Microsoft send
    signed-in people back to no other address without TLS."""
    reached = _reachable(host)
    return f"http://{'localhost' if reached == '127.0.0.1' else reached}:{port}"


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((_reachable(host).strip("[]"), port), timeout=1).close()
    except OSError:
        return False
    return True


class Output:
    """Writes lines with the program's name before them, coloured on a terminal."""

    def __init__(self, names: list[str]) -> None:
        self._width = max(len(name) for name in [*names, "system"])
        self._colours = dict(zip(names, _COLOURS, strict=False))
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._broken = False

    def show(self, name: str, line: str) -> None:
        if self._broken:
            return
        label = f"{name:<{self._width}} |"
        if self._coloured:
            label = f"\033[{self._colours.get(name, 1)}m{label}\033[0m"
        try:
            print(label, line, flush=True)
        except OSError as error:
            # Where a disk is full, the line is lost. Else whoever read the lines is gone: a pipe's
            # reader, or a terminal. The service goes on, or ends as it does.
            self._broken = error.errno not in (errno.ENOSPC, errno.EDQUOT)


if __name__ == "__main__":
    sys.exit(main())
