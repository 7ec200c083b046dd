"""A PostgreSQL's directory whose database is migrated: to copy it costs a tenth of a second, to migrate
one seconds of a processor.

Where several processes run the tests, the one that hands them out makes it first; what the others
start with a database of its own begins with a copy. Who proves that a first start works makes none.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ingestion_project.embedded import Local
from tests.servers.stack import ROOT, Supervised

#: Where it is, for the processes that run tests.
_VARIABLE = "MIGRATED_DATABASE_OF_THE_TESTS"


@contextlib.contextmanager
def made() -> Iterator[None]:
    """Make it, for all processes that are started meanwhile."""
    with tempfile.TemporaryDirectory(prefix="migrated-", dir="/tmp") as name:  # short: sockets
        var_dir = Path(name)
        env = {**os.environ, "VAR_DIR": name, "REDIS_URL": "unix:///nowhere"}
        running = Supervised.start(
            "--only-services", "--no-fsync", env=env, log=var_dir / "services.log"
        )
        try:
            running.wait_for_line("are ready")
            command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
            subprocess.run(command, cwd=ROOT, env=env, check=True)
        finally:
            running.stop()
        os.environ[_VARIABLE] = str(Local(var_dir).data_dir)
        try:
            yield
        finally:
            del os.environ[_VARIABLE]


def is_there() -> bool:
    return _VARIABLE in os.environ


def copy_to(var_dir: Path) -> None:
    """Have the service of this VAR_DIR begin with it, if it is there."""
    if is_there():
        var_dir.mkdir(mode=0o700, exist_ok=True)
        # As it is: it belongs to the user that PostgreSQL runs as.
        subprocess.run(["cp", "-a", os.environ[_VARIABLE], Local(var_dir).data_dir], check=True)
