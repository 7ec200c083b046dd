"""The service as real processes: the supervisor with gunicorn, Celery workers and beat.

Owns starting, killing and quieting them. What they serve is the test database: it has the name
that the service uses by default, so that any `manage.py` with the same VAR_DIR sees it too.
"""

import contextlib
import dataclasses
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis
from django.db import connection, transaction
from django.db.utils import OperationalError

from ingestion_project.supervisor import end_with_parent

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")
#: Each process has its own numbers, whatever seed a test has set.
_PORTS = random.SystemRandom()


def wait_for(
    predicate: Callable[[], T | None], timeout_seconds: float = 120, *, every_seconds: float = 0.05
) -> T:
    """Return the predicate's first true answer. Raises AssertionError when none comes in time.

    Who asks by starting a program asks less often: it takes the time that what it waits for needs.
    """
    deadline = time.monotonic() + timeout_seconds
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Still {answer!r} after {timeout_seconds} s.")
        time.sleep(every_seconds)
    return answer


def client(url: str, **options: Any) -> httpx.Client:
    """Return a client of the service, which keeps no connection for as long as gunicorn does (5 s):
    that may close it just as a request is sent.

    It encrypts nothing: to read the certificates of the world's authorities takes 40 ms.
    """
    limits = httpx.Limits(keepalive_expiry=2)
    return httpx.Client(
        base_url=url, trust_env=False, verify=False, timeout=240, limits=limits, **options
    )


def free_port() -> int:
    """Return a port that nobody uses, for a server that is started later.

    It is none of those that the kernel gives to whoever connects (from 32768 on): of the thousands
    of connections that tests make, one might have it by then.
    """
    while True:
        port = _PORTS.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclasses.dataclass
class Supervised:
    """`python -m ingestion_project.run` with its output in a file."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, *arguments: str, env: Mapping[str, str], log: Path) -> "Supervised":
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "ingestion_project.run", *arguments],
                cwd=ROOT,
                env=dict(env),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - only a prctl
            )
        return cls(process, log)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_line(self, text: str, timeout_seconds: float = 240) -> None:
        def said() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"It ended with {self.process.returncode}:\n{self.output()}")
            return text in self.output()

        try:
            wait_for(said, timeout_seconds)
        except AssertionError as error:
            raise AssertionError(f"{error} No {text!r} in:\n{self.output()}") from None

    def children(self) -> dict[str, int]:
        """Return the pids of the programs by name: what gunicorn, Celery and the servers call."""
        found = {}
        for pid in child_pids(self.process.pid):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                for name, pattern in _COMMANDS.items():
                    if re.search(pattern, command):
                        found[name] = pid
        return found

    @contextlib.contextmanager
    def standing_still(self, program: str) -> Iterator[None]:
        """Stop a program and all below it, and let them go on at the end."""
        pid = self.children()[program]
        pids = [pid, *descendants(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self, timeout_seconds: float = 240) -> int:
        self.process.terminate()
        try:
            return self.process.wait(timeout_seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


_COMMANDS = {
    "web": r"gunicorn",
    "worker": r"celery .*--queues sync",
    "control": r"celery .*--queues control",
    "index": r"celery .*--queues index",
    "beat": r"celery .* beat",
    "postgres": r"bin/postgres ",
    "redis": r"redis-server",
}


def child_pids(pid: int) -> list[int]:
    """Return the direct children of a process, of all its threads; none of one that has ended."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                pids += [int(word) for word in (task / "children").read_text().split()]
    return pids


def descendants(pid: int) -> list[int]:
    return [p for child in child_pids(pid) for p in (child, *descendants(child))]


def let_nobody_give_way(below: int) -> None:
    """Have the processes below one have their turn as it has, where we are root: on a machine that
    other tests keep busy, those of `index` would get a second of a core in ten minutes."""
    usual = os.getpriority(os.PRIO_PROCESS, below)
    for pid in descendants(below):
        with contextlib.suppress(OSError):  # it ended, or we are not root
            if os.getpriority(os.PRIO_PROCESS, pid) > usual:
                os.setpriority(os.PRIO_PROCESS, pid, usual)
                Path(f"/proc/{pid}/autogroup").write_text(str(usual))


def packing_processes(pid: int | None = None) -> list[int]:
    """Return the processes that pack for this one, or for another."""
    return [
        child
        for child in child_pids(pid or os.getpid())
        if b"ingestion.packs.process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@dataclasses.dataclass
class Service:
    """The running service. `env` makes a `manage.py` process of a test part of it."""

    url: str
    env: dict[str, str]
    supervised: Supervised

    @classmethod
    def start(cls, *, env: Mapping[str, str], log: Path) -> "Service":
        """Start web, worker, control, index and beat on the services that run already."""
        from django.conf import settings  # the environment must be set up before

        port = free_port()
        database = settings.DATABASES["default"]
        own = {
            **env,
            "PORT": str(port),
            "WORKER_CONCURRENCY": "2",
            "API_REQUESTS_PER_MINUTE": "1000000",
            "ADMIN_PASSWORD": "the-admin-of-the-tests",
            "METRICS_TOKEN": "the-metrics-of-the-tests",
        }
        addresses = {
            "DATABASE_URL": f"postgres://postgres@/{database['HOST']}/{database['NAME']}",
            "REDIS_URL": settings.REDIS_URL,
            "SECRET_KEY": settings.SECRET_KEY,
            "ENCRYPTION_KEYS": ",".join(settings.ENCRYPTION_KEYS),
        }
        supervised = Supervised.start(env={**own, **addresses}, log=log)
        try:
            supervised.wait_for_line("Ready: ")
        except BaseException:
            supervised.stop()
            raise
        return cls(f"http://127.0.0.1:{port}", own, supervised)

    def wait_for_web(self) -> None:
        """Return when it answers."""

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return one.get("/healthz", timeout=10).is_success
            return False

        with client(self.url) as one:
            wait_for(answers)

    def pid(self, name: str) -> int:
        """Return the pid of a program of the Procfile."""
        return wait_for(lambda: self.supervised.children().get(name))

    def kill(self, name: str) -> int:
        """Kill -9 the program's main process and return its pid; the supervisor restarts it."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def output(self) -> str:
        """Return everything that the processes have said so far."""
        return self.supervised.output()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the processes work, then leave an empty database and all of them standing still.

        So no other test of this process meets workers that do what it only wrote down. One that is
        in the middle of something finds its source gone once it goes on, and gives up.
        """
        _flush_redis()  # of what others have rung for since
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP, "beat")  # nothing new starts
            _flush_redis()
            empty_database()
            wait_for(self._stands_still)

    def _stands_still(self) -> bool:
        """Stop all that works by itself, unless that keeps a transaction open."""
        self._signal(signal.SIGSTOP)
        if _nobody_is_busy():
            return True
        self._signal(signal.SIGCONT, "worker", "control", "index")
        return False

    def _signal(self, number: int, *names: str) -> None:
        """Send it to these programs, or to all but web, and to all below them."""
        for name in names or ("beat", "worker", "control", "index"):
            pid = self.pid(name)
            for each in (pid, *descendants(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, number)

    def stop(self) -> None:
        self._signal(signal.SIGCONT)  # who stands still does not hear that it shall end
        self.supervised.stop()


def _flush_redis() -> None:
    from django.conf import settings  # the environment must be set up before

    client = redis.Redis.from_url(settings.REDIS_URL)
    client.flushdb()
    client.close()


@contextlib.contextmanager
def database_gone() -> Iterator[None]:
    """Have PostgreSQL be gone for this process and the service: nobody is connected any more, and
    its socket is not there."""
    database = connection.settings_dict
    [socket_path] = Path(database["HOST"]).glob(".s.PGSQL.*[0-9]")
    with connection.cursor() as cursor:
        aside = socket_path.rename(socket_path.with_name("aside"))
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    connection.close()
    try:
        yield
    finally:
        aside.rename(socket_path)


#: What migrations made, and no test changes.
_KEPT = ["django_migrations", "django_content_type", "auth_permission"]
#: Where the tables have grown beyond it, all of them are truncated.
_DELETED_BYTES = 2_000_000
#: The tables that hold something, or did since they were truncated: others have no bytes.
_USED = """
SELECT quote_ident(relname), bytes FROM pg_class, pg_relation_size(oid) AS bytes
 WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND bytes > 0 AND relname <> ALL(%s)
"""


def empty_database() -> None:
    """Delete all that tests write, giving way to transactions that are under way.

    A TRUNCATE makes new files for each table and index, and Django's own flush makes the
    permissions anew: 0.1 s a test. Deleting a few rows takes 2 ms; what they leave behind until the
    tables are truncated is bounded.
    """

    def emptied() -> bool:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '1s'")
                # Without triggers: in any order, and the audit too.
                cursor.execute("SET LOCAL session_replication_role = replica")
                cursor.execute(_USED, [_KEPT])
                used = dict(cursor.fetchall())
                if sum(used.values()) > _DELETED_BYTES:
                    cursor.execute(f"TRUNCATE {', '.join(used)} CASCADE")
                elif used:
                    cursor.execute("; ".join(f"DELETE FROM {name}" for name in used))
        except OperationalError:  # a deadlock with, or a lock held by, a worker that ends soon
            return False
        return True

    wait_for(emptied)


def _nobody_is_busy() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND state <> 'idle'"
        )
        row = cursor.fetchone()
    return bool(row and row[0] == 0)
