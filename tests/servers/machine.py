"""Another machine that imports into a service's archive: a worker, and a disk that it has to itself.

All it shares with the others is the database, the broker and the object store. Its end is that of a
machine: everything on it stops at once, and its disk is gone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from honcho.environ import parse_procfile

from ingestion_project.supervisor import end_with_parent
from tests.servers.stack import ROOT, descendants


class Machine:
    """A context manager. `shared` is the environment that all machines have (`OwnStack.shared`)."""

    def __init__(self, directory: Path, shared: Mapping[str, str]) -> None:
        self.directory = directory
        line = parse_procfile((ROOT / "Procfile").read_text()).processes["worker"]
        # As on a machine with a name of its own.
        self._command = line.replace("@%h", f"@{directory.name}") + " --concurrency 1"
        self._environ = {
            **shared,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VAR_DIR": str(directory / "var"),
            "TMPDIR": str(directory / "tmp"),
        }

    def start(self) -> None:
        """Begin with an empty disk."""
        for name in ("var", "tmp"):
            (self.directory / name).mkdir(parents=True)
        with (self.directory.parent / f"{self.directory.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec {self._command}"],
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGKILL),  # noqa: PLW1509 - only a prctl
            )

    def processes(self) -> list[int]:
        return [self._process.pid, *descendants(self._process.pid)]

    def kill(self, *pids: int) -> None:
        """Kill -9 some of its processes."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # went with its parent
                os.kill(pid, signal.SIGKILL)

    def lose(self) -> None:
        """End all of it, and its disk."""
        self.kill(*self.processes())
        self._process.wait()
        shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.lose()
