"""Every command line of compose.yaml, Containerfile and the units runs as it stands, as the image's
user, on a machine that has nothing else and can't be written.

With IMAGE_ROOT, where the files of the built image are, it is those that run (`make image-check`).
"""

import contextlib
import functools
import itertools
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

from ingestion_project.demo.imap_server import PASSWORD, USER
from ingestion_project.embedded import _postgres_binaries
from tests.deploy.files import (
    DEPLOY,
    UNITS,
    compose,
    copied,
    image_environ,
    image_health,
    procfile,
)
from tests.servers.clean_machine import Machine, machine, machine_of_image
from tests.servers.stack import ROOT, let_nobody_give_way, wait_for

pytestmark = [
    pytest.mark.long(seconds=50),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make name spaces"),
]
#: What the image has of this checkout; and the units, which lie beside it (docs/deployment.md).
FILES = [*sorted(copied()), ".venv", "deploy"]
IMAGE_ROOT = os.environ.get("IMAGE_ROOT")
#: Where programs are that another image has: PostgreSQL's, Redis's, SeaweedFS's.
POSTGRES = Path("/opt/ingestion/.venv") / _postgres_binaries().relative_to(sys.prefix)
OTHER_IMAGES = f"{POSTGRES}:/opt/ingestion/.venv/bin:/usr/bin:/bin"
#: Between two health checks; each is a program that starts, as `doctor` is.
_INTERVAL_SECONDS = 3.0
_POSTGRES = 65534  # it refuses root; nobody


class Containers:
    """The services of compose.yaml in one network, each with its environment and command line.

    `image` is the machine of those that are made of our own image.
    """

    def __init__(self, here: Machine, image: Machine, told: dict[str, Any]) -> None:
        self.machine, self.image, self.services = here, image, told["services"]

    def ours(self, name: str) -> bool:
        return bool(self.services[name]["image"] == "ingestion:local")

    def environ(self, name: str) -> dict[str, str]:
        image = image_environ() if self.ours(name) else {"PATH": OTHER_IMAGES}
        own = self.services[name].get("environment", {})
        return {"HOSTNAME": os.uname().nodename, **image, **own}

    def of(self, name: str) -> Machine:
        return self.image if self.ours(name) else self.machine

    def words(self, name: str) -> list[str]:
        service = self.services[name]
        return [*(service.get("entrypoint") or ()), *service["command"]]

    def start(self, name: str) -> None:
        self.of(name).start(self.words(name), self.environ(name))

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        done = self.of(name).run(words or self.words(name), self.environ(name))
        with self.machine.log.open("a") as log:
            log.write(f"{name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def healthy(self, name: str) -> bool:
        check = self.services[name].get("healthcheck", {"test": ["CMD", *image_health()]})["test"]
        words = ["sh", "-c", check[1]] if check[0] == "CMD-SHELL" else check[1:]
        return self.run(name, *words).returncode == 0

    def told(self, *words: str) -> dict[str, Any]:
        """Return what a command says, which may end with 1: that something is not well."""
        done = self.run("web", "python", "manage.py", *words, "--json")
        said: dict[str, Any] = json.loads(done.stdout)
        return said

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
    with contextlib.ExitStack() as made:
        here = made.enter_context(machine(root, list(told["services"]), FILES))
        image = here
        if IMAGE_ROOT:
            image = made.enter_context(machine_of_image(root, Path(IMAGE_ROOT), here))
        for name, one in itertools.product(told["secrets"], (here, image)):
            one.write(f"/run/secrets/{name}", (root / "deploy/secrets" / name).read_text())
        yield Containers(here, image, told)


@pytest.fixture(scope="module")
def service(containers: Containers) -> Containers:
    """All of compose.yaml, started in its order."""
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
    return containers


def test_the_whole_service_runs_as_compose_starts_it(service: Containers) -> None:
    def nothing_is_wrong() -> bool:
        let_nobody_give_way(os.getpid())
        return all(one["state"] != "problem" for one in findings(service))

    wait_for(nothing_is_wrong, 400, every_seconds=_INTERVAL_SECONDS)
    assert any("s3://archive" in one["message"] for one in findings(service))


def test_its_pages_come_with_all_that_belongs_to_them(service: Containers) -> None:
    """Style sheets, scripts and pictures; and what is made of docs/."""
    pages = (
        "/admin/login/",
        "/api/docs",
        "/api/docs/introduction",
        "/api/docs/errors",
        "/api/schema",
    )
    done = service.run("web", "python", "-c", _SEE, *pages)
    assert done.returncode == 0, done.stderr
    kinds = [line.split()[0] for line in done.stdout.splitlines()]
    assert kinds.count("text/html") == len(pages) - 1
    assert {"text/css", "text/javascript"} < set(kinds)


#: Prints the type and the address of each page and of what it names; ends with 1 where one fails.
_SEE = """
import re, sys, urllib.request
seen = set()
def see(path):
    seen.add(path)
    with urllib.request.urlopen('http://localhost:8000' + path) as answer:
        print(answer.headers.get_content_type(), path)
        return answer.read().decode(errors='replace')
for page in sys.argv[1:]:
    for path in re.findall('(?:href|src)="(/static/[^"]+)"', see(page)):
        path in seen or see(path)
"""


def test_it_copies_a_mailbox_and_finds_what_it_says(service: Containers) -> None:
    server = "exec python -m ingestion_project.demo.imap_server 60 >/run/port"
    service.machine.start(["sh", "-c", server], service.environ("redis"))
    see = functools.partial(service.machine.run, ["cat", "/run/port"], {"PATH": os.defpath})
    wait_for(lambda: see().stdout.endswith("\n"), 60, every_seconds=0.5)
    words = f"add_source Demo --host localhost --port {see().stdout.strip()} --no-secure"
    words += f" --username {USER} --password-env IMAP_PASSWORD --verify --auto-import"
    given = ["env", f"IMAP_PASSWORD={PASSWORD}"]
    done = service.run("web", *given, "python", "manage.py", *words.split())
    assert done.returncode == 0, done.stdout + done.stderr

    def indexed() -> bool:
        let_nobody_give_way(os.getpid())
        [source] = service.told("source_status")["sources"]
        return bool(source["status"] == "active" and source["index"]["unindexedMessages"] == 0)

    wait_for(indexed, 400, every_seconds=_INTERVAL_SECONDS)
    assert service.told("find", "has:attachment")["emails"]
    assert service.told("verify_archive")["messages"] > 50


def test_the_image_has_what_a_backup_and_a_restore_need(service: Containers) -> None:
    """By the page's lines. A restore wants an empty database and an empty archive."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    [line] = re.findall(
        r"run --rm --no-deps --volume \S+ web (.* backup /media/backup)$", page, re.MULTILINE
    )
    words = line.replace("/media/backup", "/var/lib/ingestion/backup").split()
    for more in ((), ("--verify",)):
        done = service.run("web", *words, *more)
        assert done.returncode == 0, done.stdout + done.stderr
    url = service.run("web", "cat", "/run/secrets/database_url").stdout.strip()
    make = f"import psycopg; psycopg.connect('{url}', autocommit=True).execute('CREATE DATABASE other')"
    other = f"{url.removesuffix('/ingestion')}/other"
    elsewhere = ["env", "--unset=DATABASE_URL_FILE", f"DATABASE_URL={other}"]
    elsewhere += ["ARCHIVE_URL=file:///tmp/other"]
    for restore in (
        ["python", "-c", make],
        [*elsewhere, *("restore" if word == "backup" else word for word in words)],
        [*elsewhere, "python", "manage.py", "verify_archive"],
    ):
        done = service.run("web", *restore)
        assert done.returncode == 0, done.stdout + done.stderr


def findings(containers: Containers) -> list[dict[str, str]]:
    """What `doctor` says; `index` takes only the time that others leave, also to start."""
    found: list[dict[str, str]] = containers.told("doctor")["findings"]
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
