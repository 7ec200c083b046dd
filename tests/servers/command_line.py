"""`manage.py` as an operator runs it: a process of its own, on the test's database and archive."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management import CommandError, call_command

from tests.servers.stack import ROOT


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """Parse stdout, which must hold one JSON document and nothing else."""
        return json.loads(self.stdout)


class CommandLine:
    """Call it with a command's name and arguments."""

    def __init__(self, archive_dir: Path, env: Mapping[str, str] | None = None) -> None:
        own = {"ARCHIVE_DIR": str(archive_dir), "PYTHONWARNINGS": "error::ResourceWarning"}
        self.env = {**(os.environ if env is None else env), **own}

    def __call__(self, *arguments: str, stdin: str = "", **env: str) -> Result:
        done = subprocess.run(
            self._words(arguments),
            cwd=ROOT,
            env=self.env | env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,  # what takes a second may take a minute and a half on a busy machine
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def here(self, name: str, *arguments: str) -> Result:
        """Run it in this process, which takes a tenth of the time: no stdin, no environment."""
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            call_command(name, *arguments, stdout=stdout, stderr=stderr)
        except SystemExit as end:
            return Result(int(str(end.code)), stdout.getvalue(), stderr.getvalue())
        except CommandError as error:  # argparse's, which ends a process with 2
            return Result(2, stdout.getvalue(), f"{stderr.getvalue()}{error}")
        return Result(0, stdout.getvalue(), stderr.getvalue())

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it and return the process, for tests that interrupt it."""
        return subprocess.Popen(
            self._words(arguments),
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - only sets a handler
        )

    @staticmethod
    def _words(arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, str(ROOT / "manage.py"), *arguments]
