"""What we are compared with, each started afresh into an empty directory on the same disk.

mbsync        isync, into a Maildir, with `FSync yes` (durable, as ours is) and `FSync no`
offlineimap   offlineimap3, into a Maildir, fsync as by default (on)
floor         reads everything over one connection and discards it
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from bench import processes
from bench.results import BenchError, Sample
from bench.service import Account


class Peers:
    """Runs the peers against one server."""

    def __init__(self, directory: Path, *, floor: Path, server_pid: int) -> None:
        self._directory, self._floor, self._server_pid = directory, floor, server_pid

    @staticmethod
    def version(program: str) -> str | None:
        """Return the version of mbsync or offlineimap, None where it is not installed."""
        if shutil.which(program) is None:
            return None
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
        return found[0] if found else "unknown version"

    def floor(self, account: Account, *, port: int) -> Sample:
        words = [str(self._floor), "127.0.0.1", str(port), account.user, account.password]
        sample, said = self._run(words, account)
        messages, size = (int(word) for word in said.split())
        if (messages, size) != (account.messages, account.size):
            raise BenchError(f"The floor read {messages} messages, {size} bytes.")
        return sample

    def mbsync(self, account: Account, *, port: int, fsync: bool) -> Sample:
        target = self._fresh("mbsync")
        major, minor = (int(n) for n in (self.version("mbsync") or "0.0").split(".")[:2])
        tls = "TLSType" if (major, minor) >= (1, 5) else "SSLType"
        config = target / "mbsyncrc"
        config.write_text(
            f"FSync {'yes' if fsync else 'no'}\n\n"
            "IMAPAccount bench\nHost 127.0.0.1\n"
            f"Port {port}\nUser {account.user}\nPass {account.password}\n"
            f"{tls} None\nAuthMechs LOGIN\n\n"
            "IMAPStore far\nAccount bench\n\n"
            f"MaildirStore near\nPath {target}/mail/\nInbox {target}/mail/INBOX\n\n"
            "Channel bench\nFar :far:\nNear :near:\nPatterns INBOX\n"
            "Create Near\nSync Pull\nSyncState *\n"
        )
        (target / "mail").mkdir()
        words = ["mbsync", "--quiet", "--config", str(config), "bench"]
        sample, _ = self._run(words, account)
        self._check(target / "mail" / "INBOX", account, "mbsync")
        return sample

    def offlineimap(self, account: Account, *, port: int) -> Sample:
        target = self._fresh("offlineimap")
        config = target / "offlineimaprc"
        config.write_text(
            f"[general]\naccounts = bench\nmetadata = {target}/meta\nui = quiet\n\n"
            "[Account bench]\nlocalrepository = near\nremoterepository = far\n\n"
            f"[Repository near]\ntype = Maildir\nlocalfolders = {target}/mail\n\n"
            "[Repository far]\ntype = IMAP\nremotehost = 127.0.0.1\n"
            f"remoteport = {port}\nremoteuser = {account.user}\nremotepass = {account.password}\n"
            "ssl = no\nstarttls = no\nauth_mechanisms = LOGIN\nreadonly = True\n"
            "folderfilter = lambda folder: folder == 'INBOX'\n"
        )
        (target / "mail").mkdir()
        sample, _ = self._run(["offlineimap", "-o", "-c", str(config)], account)
        self._check(target / "mail" / "INBOX", account, "offlineimap")
        return sample

    def _fresh(self, name: str) -> Path:
        target = self._directory / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        return target

    def _run(
        self, words: list[str], account: Account, env: Mapping[str, str] = os.environ
    ) -> tuple[Sample, str]:
        """Run a program to its end; return what it took and what it said."""
        server = processes.cpu_seconds(self._server_pid)
        started = time.monotonic()
        with subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running:
            assert running.stdout is not None
            said = running.stdout.read()
            _, status, used = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        if running.returncode:
            raise BenchError(f"{words[0]} ended with {running.returncode}: {said[-2000:]}")
        sample = Sample(
            seconds=seconds,
            messages=account.messages,
            size=account.size,
            cpu_seconds=used.ru_utime + used.ru_stime,
            server_cpu_seconds=processes.cpu_seconds(self._server_pid) - server,
        )
        return sample, said

    @staticmethod
    def _check(maildir: Path, account: Account, name: str) -> None:
        found = sum(1 for sub in ("cur", "new") for _ in (maildir / sub).iterdir())
        if found != account.messages:
            raise BenchError(f"{name} has {found} messages, not {account.messages}.")
