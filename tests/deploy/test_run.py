"""Every command line of compose.yaml, Containerfile and the units runs as it stands, as the image's
user, on a machine that has nothing else and can't be written."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestion_project.embedded import _postgres_binaries
from tests.deploy.files import (
    DEPLOY,
    UNITS,
    compose,
    image_environ,
    image_health,
    procfile,
)
from tests.servers.clean_machine import Machine, machine
from tests.servers.stack import ROOT, wait_for

pytestmark = [
    pytest.mark.long(seconds=30),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make name spaces"),
]
#: Where programs are that another image has: PostgreSQL's, Redis's, SeaweedFS's.
POSTGRES = Path("/opt/ingestion/.venv") / _postgres_binaries().relative_to(sys.prefix)
OTHER_IMAGES = f"{POSTGRES}:/opt/ingestion/.venv/bin:/usr/bin:/bin"
#: Between two health checks; each is a program that starts, as `doctor` is.
_INTERVAL_SECONDS = 3.0
_POSTGRES = 65534  # it refuses root; nobody


class Containers:
    """The services of compose.yaml on one machine, each with its environment and command line."""

    def __init__(self, here: Machine, told: dict[str, Any]) -> None:
        self.machine, self.services = here, told["services"]

    def environ(self, name: str) -> dict[str, str]:
        service = self.services[name]
        image = image_environ() if service["image"] == "ingestion:local" else {"PATH": OTHER_IMAGES}
        return {"HOSTNAME": os.uname().nodename, **image, **service.get("environment", {})}

    def words(self, name: str) -> list[str]:
        service = self.services[name]
        return [*(service.get("entrypoint") or ()), *service["command"]]

    def start(self, name: str) -> None:
        self.machine.start(self.words(name), self.environ(name))

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        done = self.machine.run(words or self.words(name), self.environ(name))
        with self.machine.log.open("a") as log:
            log.write(f"{name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def healthy(self, name: str) -> bool:
        check = self.services[name].get("healthcheck", {"test": ["CMD", *image_health()]})["test"]
        words = ["sh", "-c", check[1]] if check[0] == "CMD-SHELL" else check[1:]
        return self.run(name, *words).returncode == 0

    def wait(self, *names: str) -> None:
        for name in names:
            healthy = functools.partial(self.healthy, name)
            wait_for(healthy, 400, every_seconds=_INTERVAL_SECONDS)

    def start_database(self) -> None:
        """What the image's own entry point does before it starts `postgres`."""
        about = self.environ("database")
        make = "initdb -D /var/lib/database -A scram-sha-256 --no-sync"
        make += f" -U {about['POSTGRES_USER']} --pwfile={about['POSTGRES_PASSWORD_FILE']}"
        base = f"echo 'CREATE DATABASE {about['POSTGRES_DB']}' | postgres --single -D /var/lib/database postgres"
        done = self.machine.run(["sh", "-ec", f"{make}; {base}"], about, user=_POSTGRES)
        assert done.returncode == 0, done.stdout + done.stderr
        options = ["-D", "/var/lib/database", "-k", "/tmp", "-c", "listen_addresses=*", "-F"]
        self.machine.start(["postgres", *options], about, user=_POSTGRES)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    root = tmp_path_factory.mktemp("machine")
    shutil.copytree(DEPLOY, root / "deploy", ignore=shutil.ignore_patterns("secrets*", "*.env"))
    subprocess.run(["sh", "deploy/make-secrets.sh"], cwd=root, check=True, capture_output=True)
    told = compose(root / "deploy/compose.yaml")
    with machine(root, list(told["services"])) as here:
        for name in told["secrets"]:
            here.write(f"/run/secrets/{name}", (root / "deploy/secrets" / name).read_text())
        yield Containers(here, told)


def test_the_whole_service_runs_as_compose_starts_it(containers: Containers) -> None:
    containers.start_database()
    for name in ("redis", "store"):
        containers.start(name)
    containers.wait("database", "redis", "store")
    for name in ("bucket", "bucket", "setup"):  # made once, and found at each start
        done = containers.run(name)
        assert done.returncode == 0, containers.machine.log.read_text()[-4_000:]
    for name in procfile():
        containers.start(name)
    containers.wait("web", "worker", "control")

    def nothing_is_wrong() -> bool:
        return all(one["state"] != "problem" for one in findings(containers))

    wait_for(nothing_is_wrong, 400, every_seconds=_INTERVAL_SECONDS)
    assert any("s3://archive" in one["message"] for one in findings(containers))
    # The image has what a backup needs, by the page's line.
    page = (ROOT / "docs" / "deployment.md").read_text()
    [line] = re.findall(
        r"run --rm --no-deps --volume \S+ web (.* backup /media/backup)$", page, re.MULTILINE
    )
    for more in ((), ("--verify",)):
        words = line.replace("/media/backup", "/var/lib/ingestion/backup").split()
        done = containers.run("web", *words, *more)
        assert done.returncode == 0, done.stdout + done.stderr


def findings(containers: Containers) -> list[dict[str, str]]:
    """What `doctor` says; `index` takes only the time that others leave, also to start."""
    said = containers.run("web", "python", "manage.py", "doctor", "--json").stdout
    found: list[dict[str, str]] = json.loads(said)["findings"]
    return found


def test_the_units_are_sound_and_closed(containers: Containers) -> None:
    """systemd-analyze finds the programs, as they are where the image has them."""
    units = sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".target"))
    environ = {
        "PATH": os.defpath + ":/usr/sbin",
        "SYSTEMD_UNIT_PATH": "/opt/ingestion/deploy/systemd:",
    }
    where = [f"/opt/ingestion/deploy/systemd/{name}" for name in units]
    verified = containers.machine.run(["systemd-analyze", "verify", "--man=no", *where], environ)
    assert (verified.returncode, verified.stderr) == (0, "")
    services = [path for path in where if path.endswith(".service")]
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", *services]
    closed = containers.machine.run(command, environ)
    assert closed.returncode == 0, closed.stdout
    assert closed.stdout.count("Overall exposure level") == len(services)
