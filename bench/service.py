"""The real service under measure: web, worker, control, index, beat, PostgreSQL with fsync, Redis.

Owns a VAR_DIR of its own, and knows how to import an account and what that took.
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg

from bench import processes
from bench.results import BenchError, Sample
from ingestion_project.embedded import Local
from tests.servers.stack import ROOT, Supervised, free_port, packing_processes

#: The user's own deployment must not be what is measured.
_FOREIGN = (
    *("ADMIN_PASSWORD", "ARCHIVE_DIR", "ARCHIVE_LOCK_DAYS", "ARCHIVE_URL", "DATABASE_URL"),
    *("ENCRYPTION_KEYS", "EXTRA_CA_FILE", "HOST"),
    *("HTTPS", "LOG_FORMAT", "REDIS_URL", "SECRET_KEY", "WORKER_CONCURRENCY"),
)
_PATIENCE_SECONDS = 900.0
_WEEK_SECONDS = 604_800


def clean_environ(**own: str) -> dict[str, str]:
    """Return this process's environment without the settings of another deployment."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN} | own


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    """An account on the server, and what lies in it."""

    user: str
    password: str
    messages: int
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A source of the service whose credentials are proven."""

    id: str
    account: Account


class Service:
    """`python -m ingestion_project.run` on a directory. A context manager.

    Its index stage stands still but while `indexing`: what it owes of one import would be at work
    beside the next, or beside a peer.
    """

    def __init__(
        self, directory: Path, *, server_pid: int, env: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self._still = contextlib.ExitStack()
        self._server_pid = server_pid
        self._port = free_port()
        self.env = clean_environ(VAR_DIR=str(directory), PORT=str(self._port), **(env or {}))

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)  # it may have an archive already
        self.supervised = Supervised.start(env=self.env, log=self.directory / "service.log")
        try:
            self.supervised.wait_for_line("Ready: ", 120)
            key = subprocess.run(
                [*self._manage, "create_api_key", "--user", "admin", "--name", "bench"],
                cwd=ROOT,
                env=self.env,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            self._api = httpx.Client(
                base_url=f"http://127.0.0.1:{self._port}/api/v1",
                headers={"Authorization": f"Bearer {key}"},
                timeout=30,
            )
            self.database = self._connect()
            self._still.enter_context(self.supervised.standing_still("index"))
        except BaseException:
            self.supervised.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.database.close()
        self._api.close()
        self._still.close()
        self.supervised.stop()

    @property
    def _manage(self) -> list[str]:
        return [sys.executable, str(ROOT / "manage.py")]

    @contextlib.contextmanager
    def indexing(self) -> Iterator[None]:
        """Let the index stage work meanwhile."""
        self._still.close()
        try:
            yield
        finally:
            self._still.enter_context(self.supervised.standing_still("index"))

    def worker_pid(self) -> int:
        return self.supervised.children()["worker"]

    # -- what is measured --------------------------------------------------------------------------
    def connect(self, account: Account, *, port: int, **config: Any) -> Source:
        """Make a source and wait until its credentials are proven."""
        body = {
            "name": account.user,
            "provider": "generic_imap",
            "providerConfig": {
                "host": "127.0.0.1",
                "port": port,
                "secure": False,
                "username": account.user,
                "password": account.password,
                **config,
            },
            "options": {"syncIntervalSeconds": _WEEK_SECONDS},
        }
        made = self._post("/ingestion", body)
        deadline = time.monotonic() + 60
        while (found := self._api.get(f"/ingestion/{made['id']}").json())[
            "status"
        ] != "auth_success":
            if found["status"] == "error" or time.monotonic() > deadline:
                raise BenchError(f"The source is {found['status']}: {found.get('statusMessage')}")
            time.sleep(0.1)
        return Source(made["id"], account)

    def begin(self, source: Source) -> None:
        """Begin an import that is not measured."""
        self._post(f"/ingestion/{source.id}/import")

    def delete(self, source: Source) -> None:
        self._api.delete(f"/ingestion/{source.id}").raise_for_status()

    def measure(self, *sources: Source, verb: str = "import") -> Sample:
        """Import (or `verb="sync"`) these sources at once; return what it took until all was done.

        From the trigger to the run's last transaction, both by the database's clock. Raises
        BenchError unless every message is archived afterwards.
        """
        programs = self.supervised.children()
        worker = programs["worker"]
        children = processes.tree(worker)
        processes.forget_peaks(children)
        before = self._counters(sources)
        server, cpu = processes.cpu_seconds(self._server_pid), self._cpu(programs)
        started = self._now()
        for source in sources:
            self._post(f"/ingestion/{source.id}/{verb}")
        finished = self._wait_for_runs(sources)
        used = {name: after - cpu[name] for name, after in self._cpu(programs).items()}
        server = processes.cpu_seconds(self._server_pid) - server
        after = self._counters(sources)
        self._check(sources, after)
        return Sample(
            seconds=finished - started,
            messages=after[0] - before[0],
            size=after[1] - before[1],
            cpu_seconds=used["worker"] + used["packing process"],
            server_cpu_seconds=server,
            database_cpu_seconds=used["PostgreSQL"],
            cpu_by_process=used,
            rss_bytes=processes.peak_rss_bytes(children),
        )

    def read(self, ids: Sequence[str]) -> Sample:
        """Download these messages one after the other, over HTTP; return what it took of `web`."""
        web = self.supervised.children()["web"]
        cpu, started, size = processes.cpu_seconds(web), time.monotonic(), 0
        for pk in ids:
            answer = self._api.get(f"/emails/{pk}/raw")
            if answer.is_error:
                raise BenchError(f"GET /emails/{pk}/raw: {answer.status_code} {answer.text}")
            size += len(answer.content)
        return Sample(
            seconds=time.monotonic() - started,
            messages=len(ids),
            size=size,
            cpu_seconds=processes.cpu_seconds(web) - cpu,
        )

    def some_messages(self, source: Source, count: int) -> list[str]:
        """Return ids of messages of a source, all over it."""
        query = """SELECT m.id::text FROM ingestion_message m
                     JOIN ingestion_mailbox b ON b.id = m.mailbox_id
                    WHERE b.source_id = %s ORDER BY m.sha256 LIMIT %s"""
        return [pk for (pk,) in self.ask(query, [source.id, count])]

    def verify(self, source: Source) -> Sample:
        """Have a source verified by a command; return what that took."""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            [*self._manage, "verify_archive", source.id, "--json"],
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"verify_archive: {done.stdout[-500:]} {done.stderr[-500:]}")
        after, said = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(done.stdout)
        return Sample(
            seconds=time.monotonic() - started,
            messages=said["messages"],
            size=said["bytes"],
            cpu_seconds=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        )

    def documents(self) -> int:
        """Return how many messages are indexed."""
        return int(self.ask("SELECT count(*) FROM ingestion_document")[0][0])

    def unindexed(self) -> int:
        """Return how many messages are in packs that were never indexed in whole."""
        query = """SELECT coalesce(sum(message_count), 0) FROM ingestion_pack
                    WHERE index_version = 0"""
        return int(self.ask(query)[0][0])

    # -- what PostgreSQL did -----------------------------------------------------------------------
    def count_statements(self) -> None:
        """Restart PostgreSQL with pg_stat_statements; the service goes on by itself."""
        self.ask("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        os.kill(self.supervised.children()["postgres"], signal.SIGINT)
        self.database.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                self.database = self._connect()
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        self.ask("CREATE EXTENSION pg_stat_statements")

    def forget_statements(self) -> None:
        self.ask("SELECT pg_stat_statements_reset()")

    def statements(self, limit: int) -> list[tuple[Any, ...]]:
        """Return (milliseconds, calls, rows, text) of the costliest since they were forgotten."""
        return self.ask(
            """SELECT total_exec_time, calls, rows, query FROM pg_stat_statements
                WHERE query NOT ILIKE '%%pg_stat_statements%%'
                ORDER BY total_exec_time DESC LIMIT %s""",
            [limit],
        )

    # -- inside ------------------------------------------------------------------------------------
    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        address = Local(self.directory).database()
        return psycopg.connect(
            host=address["HOST"], user="postgres", dbname=address["NAME"], autocommit=True
        )

    def get(self, path: str) -> dict[str, Any]:
        """Ask the API. Raises BenchError."""
        answer = self._api.get(path)
        if answer.is_error:
            raise BenchError(f"GET {path}: {answer.status_code} {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self._api.post(path, json=body or {})
        if answer.is_error:
            raise BenchError(f"POST {path}: {answer.status_code} {answer.text}")
        found: dict[str, Any] = answer.json()
        return found

    @staticmethod
    def _cpu(programs: Mapping[str, int]) -> dict[str, float]:
        """Return what each has used so far, all below it included: what packs is the worker's."""
        used = {name: processes.cpu_seconds(pid) for name, pid in programs.items()}
        tree = processes.tree(programs["worker"])
        packing = sum(processes.cpu_seconds(p) for pid in tree for p in packing_processes(pid))
        return {
            "worker": used.pop("worker") - packing,
            "packing process": packing,
            "PostgreSQL": used.pop("postgres"),
            "Redis": used.pop("redis"),
            "index": used.pop("index"),
            "others": sum(used.values()),
        }

    def _now(self) -> float:
        return float(self.ask("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    def _wait_for_runs(self, sources: tuple[Source, ...]) -> float:
        """Return when the last run was finished, by the database's clock."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        query = """SELECT status, message, extract(epoch FROM finished_at) FROM ingestion_run
                    WHERE id IN (SELECT DISTINCT ON (source_id) id FROM ingestion_run
                                  WHERE source_id = ANY(%s) ORDER BY source_id, started_at DESC)"""
        while True:
            found = self.ask(query, [[source.id for source in sources]])
            if all(finished for _, _, finished in found):
                break
            if time.monotonic() > deadline:
                raise BenchError(f"Not done after {_PATIENCE_SECONDS:.0f} s: {found}")
            time.sleep(0.1)
        for status, message, _ in found:
            if status != "completed":
                raise BenchError(f"A run is {status}: {message}")
        return max(float(finished) for _, _, finished in found)

    def _counters(self, sources: tuple[Source, ...]) -> tuple[int, int]:
        query = """SELECT count(*), coalesce(sum(m.size_bytes), 0) FROM ingestion_message m
                     JOIN ingestion_mailbox b ON b.id = m.mailbox_id WHERE b.source_id = ANY(%s)"""
        count, size = self.ask(query, [[source.id for source in sources]])[0]
        return int(count), int(size)

    def _check(self, sources: tuple[Source, ...], counted: tuple[int, int]) -> None:
        wanted = (
            sum(source.account.messages for source in sources),
            sum(source.account.size for source in sources),
        )
        if counted != wanted:
            raise BenchError(f"{counted} messages and bytes are archived, not {wanted}.")

    def ask(self, query: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        found = self.database.execute(query.encode(), parameters)
        return found.fetchall() if found.description else []
