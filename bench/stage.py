"""What every scenario stands on: one Dovecot, one pool of messages, the service, the peers.

Made when first asked for, and all of it on one disk: the service's data, the peers' Maildirs.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from bench import native
from bench.mail import File, Pool
from bench.peers import Peers
from bench.results import BenchError
from bench.service import Account, Service
from tests.servers.dovecot import Dovecot


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. `rounds`: how often the contenders take turns; `corpus`: how many
    messages the archive has in which is searched; `accounts`: how many mailboxes are followed;
    `scale`: how many rows an archive of rows alone has."""

    messages: int = 20_000
    rounds: int = 3
    subset: int = 4_000
    corpus: int = 1_000_000
    scale: int = 10_000_000
    accounts: int = 2_000
    quick: bool = False


QUICK = Plan(messages=3_000, corpus=5_000, accounts=200, quick=True)


class Stage:
    """A context manager; leaving it stops everything and removes the directory's contents."""

    def __init__(self, directory: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self.directory, self.plan, self.say = directory, plan, say
        self._stack = contextlib.ExitStack()
        self._services = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @cached_property
    def dovecot(self) -> Dovecot:
        if shutil.which("dovecot", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            raise BenchError("Dovecot is not installed. As root: apt-get install dovecot-imapd")
        return self._stack.enter_context(Dovecot())

    @cached_property
    def pool(self) -> Pool:
        mail = self.dovecot.root / "mail"
        status = mail.stat()
        return Pool(mail / "pool", owner=(status.st_uid, status.st_gid))

    @cached_property
    def service(self) -> Service:
        """The service as it is by default: as many workers as there are cores."""
        return self._stack.enter_context(self.another_service())

    def another_service(self, **env: str) -> Service:
        """Return one with settings of its own; enter it to start it."""
        self._services += 1
        self.say("Starting the service")
        directory = self.directory / f"service-{self._services}"
        return Service(directory, server_pid=self.dovecot.pid, env=env)

    @cached_property
    def peers(self) -> Peers:
        floor = native.build("floor", self.directory)
        return Peers(self.directory / "peers", floor=floor, server_pid=self.dovecot.pid)

    @cached_property
    def _proxy(self) -> Path:
        return native.build("proxy", self.directory)

    def proxy(
        self,
        *,
        each_way_seconds: float = 0.0,
        bytes_per_second: int = 0,
        log: Path | None = None,
    ) -> contextlib.AbstractContextManager[int]:
        """A proxy before the server's plain port; entering yields its own port."""
        return native.proxy(
            self._proxy,
            self.dovecot.port,
            each_way_seconds=each_way_seconds,
            bytes_per_second=bytes_per_second,
            log=log,
        )

    def account(self, files: Iterable[File], *, first_uid: int = 0) -> Account:
        """Make an account whose INBOX has these messages."""
        user, password = self.dovecot.user()
        self.say("Writing mail")
        count, size = self.pool.fill(self.dovecot.maildir(user), files, first_uid=first_uid)
        return Account(user, password, count, size)

    @cached_property
    def main(self) -> Account:
        """The account with the messages of about 8 kB, read once so that it is in memory."""
        return self.warm(self.account(self.pool.messages(self.plan.messages)))

    def warm(self, account: Account) -> Account:
        """Let the server build its indexes, and the machine read the files, before anybody is
        measured."""
        self.peers.floor(account, port=self.dovecot.port)
        return account
