"""A whole service of a test's own, PostgreSQL and Redis included, whose every part may be killed.

Owns starting it and looking at it from outside: over HTTP, in its tables, in its packs. Its Python
processes know a code page, cp666, that kills whoever decodes it, as a crash in C would.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import psycopg.rows

from ingestion.packs.store import Extent, PackStore, at
from ingestion_project.embedded import Local
from tests.servers import migrated
from tests.servers.imap_script import Client
from tests.servers.imap_source import Account, Contents, config, content
from tests.servers.stack import ROOT, Supervised, client, descendants, free_port, wait_for

_DEADLY = """
import codecs, os, signal

def kill(name):
    if name == "cp666":
        with open(os.environ["DEATHS"], "a") as deaths:
            print(os.getpid(), file=deaths)
        os.kill(os.getpid(), signal.SIGKILL)

codecs.register(kill)
"""


@dataclasses.dataclass
class OwnStack:
    """The running service. `deaths` is how often the deadly code page killed so far."""

    root: Path
    running: Supervised
    api: httpx.Client
    archive: PackStore
    #: What another machine needs to take part.
    shared: dict[str, str]

    @classmethod
    @contextlib.contextmanager
    def started(cls, environ: Mapping[str, str]) -> Iterator["OwnStack"]:
        with tempfile.TemporaryDirectory(prefix="own-", dir="/tmp") as name:  # short: sockets
            root = Path(name)
            (root / "python").mkdir()
            (root / "python/sitecustomize.py").write_text(_DEADLY)
            (root / "deaths").touch()
            own = {
                "VAR_DIR": str(root / "var"), "PORT": str(free_port()), "WORKER_CONCURRENCY": "2",
                "ADMIN_PASSWORD": "the-admin-of-the-tests", "PYTHONPATH": str(root / "python"),
                "DEATHS": str(root / "deaths"),
            }  # fmt: skip
            migrated.copy_to(root / "var")
            running = Supervised.start("--no-fsync", env={**environ, **own}, log=root / "log")
            try:
                running.wait_for_line("Ready: ")
                key = subprocess.run(
                    [sys.executable, "manage.py", "create_api_key", "--user=admin", "--name=t"],
                    cwd=ROOT,
                    env={**environ, **own},
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()[-1]
                url = f"http://127.0.0.1:{own['PORT']}/api/v1"
                headers = {"Authorization": f"Bearer {key}"}
                with client(url, headers=headers) as api:
                    archive = environ.get("ARCHIVE_URL", f"file://{root}/var/archive")
                    yield cls(root, running, api, at(archive), _shared(root, environ))
            finally:
                running.stop()

    # -- what is asked of it -----------------------------------------------------------------------

    def import_from(self, server: Account) -> str:
        """Create a source that imports at once; return its id."""
        body = {
            "name": "Own", "provider": "generic_imap", "autoImport": True,
            "providerConfig": config(server),
        }  # fmt: skip
        answer = self.api.post("/ingestion", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def wait_until_active(self, source: str, timeout_seconds: float = 300) -> dict[str, Any]:
        """Wait for the end of the import; return its run's row."""

        def ended() -> list[dict[str, Any]]:
            return self.rows(
                "SELECT r.* FROM ingestion_run r JOIN ingestion_ingestionsource s ON s.id = source_id"
                " WHERE s.id = %s AND s.status = 'active' AND r.finished_at IS NOT NULL",
                source,
            )

        return wait_for(ended, timeout_seconds)[0]

    # -- what it has -------------------------------------------------------------------------------

    def connect(self) -> "psycopg.Connection[dict[str, Any]]":
        return psycopg.connect(
            host=str(self.root / "var/run"), user="postgres", dbname="ingestion",
            row_factory=psycopg.rows.dict_row, autocommit=True,
        )  # fmt: skip

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Ask its database; nothing while that is down."""
        try:
            with self.connect() as connection:
                return connection.execute(query, parameters).fetchall()
        except psycopg.OperationalError:
            return []

    def placed(self, source: str, remote_id: str) -> dict[str, Any]:
        """Return the row of the message that is placed under this id."""
        [message] = self.rows(
            "SELECT m.* FROM ingestion_message m JOIN ingestion_placement p ON p.message_id = m.id"
            " JOIN ingestion_mailbox b ON b.id = m.mailbox_id"
            " WHERE b.source_id = %s AND p.remote_id = %s",
            source,
            remote_id,
        )
        return message

    def archived(self, source: str) -> Contents:
        """Read back what is placed: (folder, remote id) -> bytes, each checked by its SHA-256."""
        found = {}
        for row in self.rows(
            "SELECT f.remote_id AS folder, p.remote_id, m.*, k.source_id FROM ingestion_placement p"
            " JOIN ingestion_folder f ON f.id = p.folder_id JOIN ingestion_message m"
            " ON m.id = p.message_id JOIN ingestion_pack k ON k.id = m.pack_id"
            " WHERE p.removed_at IS NULL AND k.source_id = %s",
            source,
        ):
            body = self.archive.open(
                row["source_id"],
                row["pack_id"],
                Extent(row["pack_offset"], row["pack_length"]),
                sha256=bytes(row["sha256"]),
                size=row["size_bytes"],
            )
            found[(row["folder"], row["remote_id"])] = content(body)
        return found

    def message_count(self, source: str) -> int:
        [row] = self.rows(
            "SELECT count(*) AS n FROM ingestion_message m JOIN ingestion_mailbox b"
            " ON b.id = m.mailbox_id WHERE b.source_id = %s",
            source,
        )
        return int(row["n"])

    @property
    def deaths(self) -> int:
        return len((self.root / "deaths").read_text().splitlines())

    # -- what is done to it ------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Kill -9 one of its programs, and wait until the supervisor runs it again."""
        old = wait_for(lambda: self.running.children().get(name))
        assert old is not None
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: self.running.children().get(name, old) != old)

    def process_of(self, client: Client) -> int:
        """Return which of its processes is at the other end of a connection."""
        port = client.socket.getpeername()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if int(words[1].rpartition(":")[2], 16) == port:
                inode = f"socket:[{words[9]}]"
                for pid in descendants(self.running.process.pid):
                    if inode in _open_files(pid):
                        return pid
        raise AssertionError(f"Nobody has port {port} open.")


def _shared(root: Path, environ: Mapping[str, str]) -> dict[str, str]:
    local = Local(root / "var")
    keys = local.secrets()
    return {
        **environ,
        "DATABASE_URL": f"postgres://postgres@/{local.socket_dir}/{local.database()['NAME']}",
        "REDIS_URL": local.redis_url,
        "SECRET_KEY": keys["SECRET_KEY"],
        "ENCRYPTION_KEYS": ",".join(keys["ENCRYPTION_KEYS"]),
    }


def _open_files(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()))
    return found
