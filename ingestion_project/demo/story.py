"""What happens in `make demo`, in order, and what must hold for it to have gone well.

It only uses what any user has: `make run`'s supervisor, the commands, the HTTP API and the
account's IMAP server, which it reads by the standard library's imaplib to check the archive.
"""

import argparse
import contextlib
import fcntl
import hashlib
import imaplib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from imapclient import imap_utf7

from ingestion_project.demo import imap_server, mail
from ingestion_project.demo.screen import Screen
from ingestion_project.run import address
from ingestion_project.supervisor import end_with_parent

BASE_DIR = Path(__file__).resolve().parents[2]
VAR_DIR = BASE_DIR / "var" / "demo"
MESSAGES = 3_000
ARRIVING = 10
_START_SECONDS = 300.0
#: Without any progress for so long, the demo gives up.
_PATIENCE_SECONDS = 60.0
_MEGABYTE = 1_000_000
_NEXT = "Now your own mail: make run, then add a source in its admin."
#: Requests under way at the same time, each on a connection that is kept: as many keep both of the
#: web processes busy, whose CPU time is what the comparison takes.
_DOWNLOADS = 8


#: Folder path, and UIDVALIDITY:UID.
Place = tuple[str, str]


class DemoError(Exception):
    """Something that must hold does not; the text says what."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM: end, and everything with it."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--exit", action="store_true", help="end once everything is checked")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="about how many")
    parser.add_argument("--s3", action="store_true", help="packs in an S3 server on loopback")
    parser.add_argument("--directory", type=Path, default=VAR_DIR, help="emptied at the start")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    screen = Screen()
    try:
        with contextlib.ExitStack() as stack:
            demo = Demo(screen, stack, options.messages, options.directory.resolve())
            demo.play(s3=options.s3)
            if not options.exit:
                demo.where_to_look()
                screen.console.print("\nServing until Ctrl-C.")
                signal.pause()
    except Interrupted:
        screen.console.print("\nEnded; nothing is left running.")
        return 130 if options.exit else 0
    except (DemoError, httpx.HTTPError, OSError, imaplib.IMAP4.error) as error:
        screen.console.print(f"\n[bold red]The demo failed:[/] {error}", soft_wrap=True)
        screen.console.print(
            f"What the service said: {options.directory / 'service.log'}", soft_wrap=True
        )
        return 1
    screen.console.print(f"\n[bold green]Every check held.[/] {_NEXT}", soft_wrap=True)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


class Demo:
    """The parts as they come up; `stack` takes them down again in reverse."""

    def __init__(
        self, screen: Screen, stack: contextlib.ExitStack, messages: int, var_dir: Path
    ) -> None:
        self.screen, self.stack = screen, stack
        self.messages, self.var_dir = messages, var_dir
        self.password = secrets.token_urlsafe(9)
        self.archive: dict[str, str] = {}

    def play(self, *, s3: bool) -> None:
        self.screen.title(
            "Email ingestion",
            f"About {self.messages:,} messages end up in the archive, and are compared "
            "byte for byte.",
        )
        self._prepare()
        self._start_imap_server()
        if s3:
            self._start_object_store()
        self._start_service()
        self._make_key()
        self._add_source()
        self._import()
        self._verify()
        self._deliver_and_sync()

    # -- coming up ---------------------------------------------------------------------------------
    def _prepare(self) -> None:
        """Start from nothing: the data of the last demo goes."""
        self.var_dir.parent.mkdir(parents=True, exist_ok=True)
        lock = self.stack.enter_context(self.var_dir.with_suffix(".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("Another demo runs in this directory. End it first.") from None
        shutil.rmtree(self.var_dir, ignore_errors=True)
        self.var_dir.mkdir()

    def _start_imap_server(self) -> None:
        with self.screen.step("Mail server") as step:
            server = self._spawn(
                "ingestion_project.demo.imap_server", str(self.messages), stdout=subprocess.PIPE
            )
            assert server.stdout is not None
            self.imap_port = int(server.stdout.readline())
            with self._imap() as imap:
                folders = _folder_names(imap)
            step.detail = f"IMAP on 127.0.0.1:{self.imap_port}, {len(folders)} folders"

    def _start_object_store(self) -> None:
        # Only here: it needs packages that the service does not.
        from ingestion_project.demo.object_store import ObjectStoreServer  # noqa: PLC0415 - see above

        with self.screen.step("Object store") as step:
            try:
                server = ObjectStoreServer(self.var_dir / "object-store")
                self.stack.enter_context(server)
            except RuntimeError as error:
                raise DemoError(str(error)) from None
            server.make_bucket("archive")
            self.archive = {**server.env, "ARCHIVE_URL": server.url("archive", "demo")}
            step.detail = f"S3 at {server.endpoint}, packs in s3://archive/demo"

    def _start_service(self) -> None:
        with self.screen.step("Service") as step:
            self.port = _free_port(int(os.environ.get("PORT", "8000")))
            self.url = address("127.0.0.1", self.port)
            self.environ = {
                **{k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")},
                "VAR_DIR": str(self.var_dir),
                "HOST": "127.0.0.1",
                "PORT": str(self.port),
                "ADMIN_PASSWORD": self.password,
                "API_REQUESTS_PER_MINUTE": "1000000",
                **self.archive,
            }
            log = self.stack.enter_context((self.var_dir / "service.log").open("wb"))
            service = self._spawn("ingestion_project.run", stdout=log, environ=self.environ)
            _wait(lambda: self._up(service), _START_SECONDS, "the service to answer")
            step.detail = f"PostgreSQL, Redis, web, workers and beat at {self.url}"

    def _up(self, service: "subprocess.Popen[bytes]") -> bool:
        if service.poll() is not None:
            said = (self.var_dir / "service.log").read_text(errors="replace").strip()
            raise DemoError(f"The service could not start.\n{said[-2000:]}")
        try:
            return httpx.get(f"{self.url}/admin/login/", trust_env=False).status_code < 500
        except httpx.TransportError:
            return False

    def _spawn(
        self, module: str, *arguments: str, stdout: Any, environ: dict[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start one of our modules as a process that ends with this one, whatever happens."""
        process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", module, *arguments],
            cwd=BASE_DIR,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if environ else None,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - only a prctl
        )
        self.stack.callback(_stop, process)
        return process

    # -- the source --------------------------------------------------------------------------------
    def _make_key(self) -> None:
        command = [
            sys.executable,
            "manage.py",
            "create_api_key",
            "--user",
            "admin",
            "--name",
            "demo",
        ]
        done = subprocess.run(  # noqa: S603 - our own command
            command, cwd=BASE_DIR, env=self.environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DemoError(f"create_api_key failed: {done.stderr.strip()}")
        self.key = done.stdout.strip()
        self.api = self.stack.enter_context(
            httpx.Client(
                base_url=f"{self.url}/api/v1",
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=30,
                trust_env=False,
            )
        )

    def _add_source(self) -> None:
        with self.screen.step("Source") as step:
            created = self._call(
                "POST",
                "/ingestion",
                name="Demo mailbox",
                provider="generic_imap",
                providerConfig={
                    "host": "127.0.0.1",
                    "port": self.imap_port,
                    "secure": False,
                    "username": imap_server.USER,
                    "password": imap_server.PASSWORD,
                },
            )
            self.path = f"/ingestion/{created['id']}"
            self.source_id = created["id"]
            _wait(lambda: self._status() != "pending_auth", 30, "the credentials to be checked")
            step.detail = "POST /api/v1/ingestion, and the credentials work"

    def _status(self) -> str:
        source = self._call("GET", self.path)
        if source["status"] == "error":
            raise DemoError(f"The source is in error: {source['lastSyncStatusMessage']}")
        return str(source["status"])

    def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = self.api.request(method, path, json=body or None)
        if answer.is_error:
            raise DemoError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    # -- importing ---------------------------------------------------------------------------------
    def _import(self) -> None:
        began = time.monotonic()
        self._call("POST", f"{self.path}/import")
        with self.screen.bar("Import") as bar:
            source = self._follow(lambda s: s["status"] == "active", bar.show)
        seconds = time.monotonic() - began
        count, size = source["messageCount"], source["archivedBytes"]
        self.screen.line(
            "Import",
            f"{count:,} messages, {size / _MEGABYTE:,.1f} MB, {count / seconds:,.0f} messages/s",
            ok=True,
            seconds=seconds,
        )
        if source["failedMessageCount"]:
            raise DemoError(f"{source['failedMessageCount']} messages failed.")

    def _follow(
        self, done: Callable[[dict[str, Any]], bool], show: Callable[[float, float, str], None]
    ) -> dict[str, Any]:
        """Watch the source until it is done. Raises DemoError when nothing moves any more."""
        last, moved_at = None, time.monotonic()
        source: dict[str, Any]
        while not done(source := self._call("GET", self.path)):
            if source["status"] == "error":
                raise DemoError(f"The source is in error: {source['lastSyncStatusMessage']}")
            run = source["currentRun"] or {}
            show(run.get("messagesDone", 0), run.get("messagesTotal", 0), _progress_text(run))
            stand = (source["status"], source["messageCount"], run.get("messagesDone"))
            if stand != last:
                last, moved_at = stand, time.monotonic()
            elif time.monotonic() - moved_at > _PATIENCE_SECONDS:
                raise DemoError(f"Nothing has moved for {_PATIENCE_SECONDS:.0f} s.")
            time.sleep(0.2)  # between two looks at the API
        return source

    def _deliver_and_sync(self) -> None:
        """Let mail arrive at the server, sync, and compare what the archive gained."""
        with self.screen.step("New mail") as step:
            names = ["INBOX", "Lists/🐘 postgres"]
            arrived = [one.body for one in mail.arriving(ARRIVING)]
            with self._imap() as imap:
                for number, body in enumerate(arrived):
                    _deliver(imap, names[number % len(names)], body)
            known = self._call("GET", self.path)["messageCount"]
            run = self._call("POST", f"{self.path}/sync")["run"]
            source = self._follow(
                lambda s: (s["currentRun"] or {}).get("id") != run["id"], lambda *_: None
            )
            newest = self._call("GET", f"/emails?source={self.source_id}&pageSize={ARRIVING}")
            archived = [self._raw(email) for email in newest["results"]]
            if source["messageCount"] != known + ARRIVING or sorted(archived) != sorted(arrived):
                raise DemoError(
                    f"{ARRIVING} messages arrived, and the sync archived "
                    f"{source['messageCount'] - known}, not all of them the same."
                )
            step.detail = f"{ARRIVING} messages arrived, the sync picked them up, byte for byte"

    # -- checking ----------------------------------------------------------------------------------
    def _verify(self) -> None:
        """Compare everything that the server serves with everything that the archive gives back."""
        began = time.monotonic()
        served = self._served()
        archived: dict[Place, bytes] = {}
        size = 0
        with self.screen.bar("Verify") as bar, ThreadPoolExecutor(_DOWNLOADS) as pool:
            emails = self._archived_emails()
            for email, raw in zip(emails, pool.map(self._raw, emails), strict=True):
                digest = hashlib.sha256(raw).digest()
                size += len(raw)
                for placement in email["placements"]:
                    archived[placement["folder"], placement["remoteId"]] = digest
                bar.show(
                    len(archived), len(served), f"{len(archived):,} of {len(served):,} compared"
                )
        different = sorted(p for p in served if archived.get(p) != served[p])
        if different or len(archived) != len(served) or len(emails) != len(set(served.values())):
            raise DemoError(
                f"{len(different)} of {len(served)} messages are missing or differ, and the "
                f"archive has {len(emails)} messages in {len(archived)} places for the server's "
                f"{len(set(served.values()))} in {len(served)}. The first: {different[:3]}"
            )
        self.screen.line(
            "Verify",
            f"{len(served):,} messages in their folders, {size / _MEGABYTE:,.1f} MB: "
            "every byte is the server's",
            ok=True,
            seconds=time.monotonic() - began,
        )

    def _served(self) -> dict[Place, bytes]:
        """Read every message over IMAP; return the SHA-256 of each by folder and UID."""
        served: dict[Place, bytes] = {}
        with self._imap() as imap:
            for name in _folder_names(imap):
                imap.select(name, readonly=True)
                validity = _told(imap, "UIDVALIDITY")
                path = imap_utf7.decode(_unquoted(name))
                _, answer = imap.uid("FETCH", "1:*", "(UID BODY.PEEK[])")
                for part in answer:
                    if isinstance(part, tuple):
                        uid = part[0].split(b"UID ")[1].split()[0].decode()
                        served[path, f"{validity}:{uid}"] = hashlib.sha256(part[1]).digest()
        return served

    def _archived_emails(self) -> list[dict[str, Any]]:
        emails: list[dict[str, Any]] = []
        query = {"source": self.source_id, "pageSize": "500"}
        while True:
            page = self._call("GET", f"/emails?{httpx.QueryParams(query)}")
            emails += page["results"]
            if not page["nextCursor"]:
                return emails
            query["cursor"] = page["nextCursor"]

    def _raw(self, email: dict[str, Any]) -> bytes:
        answer = self.api.get(f"/emails/{email['id']}/raw")
        answer.raise_for_status()
        return answer.content

    @contextlib.contextmanager
    def _imap(self) -> Iterator[imaplib.IMAP4]:
        imap = imaplib.IMAP4("127.0.0.1", self.imap_port, timeout=60)
        try:
            imap.login(imap_server.USER, imap_server.PASSWORD)
            yield imap
        finally:
            imap.logout()

    # -- the end -----------------------------------------------------------------------------------
    def where_to_look(self) -> None:
        self.screen.console.print()
        self.screen.table(
            "Where to look",
            [
                ("Admin", f"{self.url}/admin/"),
                ("Log in as", f"admin   {self.password}"),
                ("API docs", f"{self.url}/api/docs"),
                ("Logs", os.path.relpath(self.var_dir / "service.log")),
            ],
        )
        lines = [
            f"export KEY={self.key}",
            f"""curl -H "Authorization: Bearer $KEY" '{self.url}/api/v1/ingestion'""",
            f"""curl -H "Authorization: Bearer $KEY" '{self.url}/api/v1/emails?pageSize=2'""",
        ]
        for line in lines:
            self.screen.console.print(f"  {line}", soft_wrap=True, markup=False)
        self.screen.console.print(f"\n{_NEXT}")


def _progress_text(run: dict[str, Any]) -> str:
    """Say where a run stands: messages, MB, messages/s, time left."""
    if not run.get("messagesTotal"):
        return "listing"
    rate, left = run["messagesPerSecond"], run["etaSeconds"]
    parts = [
        f"{run['messagesDone']:,}/{run['messagesTotal']:,} messages",
        f"{run['bytesDone'] / _MEGABYTE:,.1f} MB",
        f"{rate:,.0f}/s" if rate else "",
        f"{left:,.0f} s left" if left is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def _folder_names(imap: imaplib.IMAP4) -> list[str]:
    """Return the names of the folders that can be opened, as IMAP writes and quotes them."""
    _, lines = imap.list()
    rows = [line.decode("ascii") for line in lines if isinstance(line, bytes)]
    return [row.split(' "/" ', 1)[1] for row in rows if "\\Noselect" not in row]


def _told(imap: imaplib.IMAP4, code: str) -> str:
    """Return what the server said in a response code, e.g. [UIDVALIDITY 7]."""
    _, values = imap.response(code)
    return values[-1].decode("ascii") if values and isinstance(values[-1], bytes) else ""


def _unquoted(name: str) -> bytes:
    return re.sub(r"\\(.)", r"\1", name.removeprefix('"').removesuffix('"')).encode()


def _deliver(imap: imaplib.IMAP4, folder: str, body: bytes) -> None:
    # imaplib "repairs" line ends in append(), so this says the command itself
    name = imap_utf7.encode(folder).decode("ascii")
    imap.literal = body  # type: ignore[assignment] # what append() sets after its repair
    imap._simple_command("APPEND", f'"{name}"')  # noqa: SLF001 - see above


def _wait(predicate: Callable[[], bool], timeout_seconds: float, for_what: str) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise DemoError(f"Waited {timeout_seconds:.0f} s for {for_what}, in vain.")
        time.sleep(0.1)  # between two looks


def _free_port(wanted: int) -> int:
    """Return the wanted port, or any free one when somebody listens there."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("This machine has no free port on 127.0.0.1.")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process; one that does not want to is killed."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
