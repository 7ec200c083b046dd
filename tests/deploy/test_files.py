"""The files of deploy/ say the same as the Procfile and the Makefile, and nothing is left open."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import (
    DEPLOY,
    IN_IMAGE,
    UNITS,
    compose,
    containerfile,
    copied,
    image_command,
    procfile,
    program,
    unit,
)
from tests.meta.test_documentation import settings_told
from tests.servers.stack import ROOT

PROCESSES = sorted(procfile())


@pytest.mark.parametrize(
    "command",
    [
        "hadolint deploy/Containerfile",
        "docker-compose --file deploy/compose.yaml config --quiet",
        "compose-lint check --no-env --fail-on low deploy/compose.yaml",
        "caddy validate --adapter caddyfile --config deploy/Caddyfile",
        "caddy fmt --diff deploy/Caddyfile",
    ],
)
def test_the_linters_have_nothing_to_say(command: str, tmp_path: Path) -> None:
    name, *words = command.split()
    done = subprocess.run(
        [program(name), *words], cwd=ROOT, env={"PATH": os.defpath, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_of_the_procfile_is_started_by_the_same_words_everywhere(name: str) -> None:
    words = procfile()[name]
    assert compose()["services"][name]["command"] == words
    line = unit(UNITS / f"ingestion-{name}.service")["ExecStart"]
    assert line.replace("%%", "%").removeprefix(IN_IMAGE).split() == words


def test_nothing_is_started_that_is_not_in_the_procfile() -> None:
    assert {p.stem.removeprefix("ingestion-") for p in UNITS.glob("*.service")} == {
        *PROCESSES,
        "setup",
    }
    services = compose()["services"]
    assert services.keys() == {*PROCESSES, "setup", "database", "redis", "store", "bucket"}
    assert image_command() == procfile()["web"]
    setup = unit(UNITS / "ingestion-setup.service")["ExecStart"]
    assert services["setup"]["command"] == setup.removeprefix(IN_IMAGE).split()


def test_no_container_may_more_than_it_needs() -> None:
    told = compose()
    for name, service in told["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["DAC_OVERRIDE"] if name == "store" else [])
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name
        assert [port["host_ip"] for port in service.get("ports", [])] == (
            ["127.0.0.1"] if name == "web" else []
        )
        if "ingestion:local" not in service["image"]:
            assert service["networks"].keys() == {"inside"}, name
    assert told["networks"]["inside"]["internal"]
    assert ("USER", "10001:10001") in list(containerfile())


def test_every_container_ends_when_it_is_told_to() -> None:
    """Docker kills who has not ended after 10 s, or who is told before it listens for that."""
    services = compose()["services"]
    for name, service in services.items():
        if service["image"] == "ingestion:local":
            assert (service["init"], service["stop_grace_period"]) == (True, "30s"), name
    assert services["store"]["stop_grace_period"] == "1m0s"
    assert "-volume.preStopSeconds=0" in services["store"]["command"]


def test_all_wait_for_what_is_done_once() -> None:
    services = compose()["services"]
    for name in PROCESSES:
        [(before, how)] = services[name]["depends_on"].items()
        assert (before, how["condition"]) == ("setup", "service_completed_successfully")
        assert unit(UNITS / f"ingestion-{name}.service")["Requires"] == "ingestion-setup.service"
        assert unit(UNITS / f"ingestion-{name}.service")["After"] == "ingestion-setup.service"
    waits = {name: how["condition"] for name, how in services["setup"]["depends_on"].items()}
    assert waits == {
        "database": "service_healthy",
        "redis": "service_healthy",
        "store": "service_healthy",
        "bucket": "service_completed_successfully",
    }


def test_the_image_is_made_of_what_is_there_and_as_by_the_makefile() -> None:
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied()
    assert [name for name in copied() if not (ROOT / name).exists()] == []
    runs = [rest for instruction, rest in containerfile() if instruction == "RUN"]
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/runtime"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    theirs = " ".join(dry.stdout.split())
    for words in (
        "--prefer-binary --require-hashes -r requirements.txt",
        "--no-deps --no-index --no-build-isolation --editable .",
    ):
        assert words in theirs
        assert (
            len(
                [
                    line
                    for line in runs
                    if f"pip install --disable-pip-version-check {words}" in line
                ]
            )
            == 1
        )
    compiled = (
        "python -m compileall -q connectors ingestion ingestion_project"  # else at each start
    )
    assert compiled in theirs
    assert any(compiled in line for line in runs)
    page = (ROOT / "docs" / "monitoring.md").read_text()
    [more] = re.findall(r"`(\S+pip install \S+ -r requirements-telemetry.txt)`", page)
    [argument] = re.findall(r"`docker compose .* build --build-arg (\w+)=1`", page)
    assert f'test -z "${argument}" || {more}' in runs
    assert ("ARG", f"{argument}=") in list(containerfile())
    without = "import sys; sys.modules['sentry_sdk'] = None; import ingestion_project.settings"
    environ = {**os.environ, "SENTRY_DSN": "http://key@localhost/1"}
    refused = subprocess.run(
        [sys.executable, "-c", without],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"{more}, or in a container an image that is built with --build-arg {argument}=1" in (
        refused.stderr
    )


def test_an_upgrade_of_the_image_installs_packages_only_where_their_pins_changed() -> None:
    """A layer is made anew where what was copied before it has changed."""
    before = list(
        itertools.takewhile(lambda one: one[0] != "COPY" or "--from" not in one[1], containerfile())
    )
    assert [rest for instruction, rest in before if instruction == "COPY"] == [
        "requirements.txt ./",
        "requirements-telemetry.txt ./",
    ]
    assert len([rest for _, rest in before if " -r requirements" in rest]) == 2
    assert [rest for instruction, rest in containerfile() if "--from" in rest] == [
        "--from=packages /opt/ingestion/.venv ./.venv"
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a user")
def test_the_image_runs_as_the_user_and_the_group_that_it_makes(tmp_path: Path) -> None:
    runs = " && ".join(rest for instruction, rest in containerfile() if instruction == "RUN")
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).touch()
    for command in runs.split(" && "):
        name, *words = command.split()
        if name in ("groupadd", "useradd"):
            subprocess.run([f"/usr/sbin/{name}", "--prefix", str(tmp_path), *words], check=True)
    _name, _, user, group, *_rest = (tmp_path / "etc/passwd").read_text().split(":")
    assert ("USER", f"{user}:{group}") in list(containerfile())


def test_the_example_of_an_environment_names_settings_that_there_are() -> None:
    assert unit(UNITS / "environment.example").keys() <= settings_told().keys()


def test_secrets_are_made_once_and_closed(tmp_path: Path) -> None:
    made = tmp_path / "secrets"
    command = ["sh", str(DEPLOY / "make-secrets.sh"), str(made)]
    subprocess.run(command, check=True, capture_output=True)
    assert made.stat().st_mode & 0o777 == 0o700
    before = {path.name: path.read_text() for path in made.iterdir()}
    assert before.keys() == compose()["secrets"].keys()
    assert len({before["secret_key"], before["encryption_keys"]}) == 2
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    assert {path.name: path.read_text() for path in made.iterdir()} == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a user")
def test_the_page_installs_and_upgrades_all_units_as_they_are(tmp_path: Path) -> None:
    """By the lines of docs/deployment.md, into a directory in place of a machine."""
    text = (ROOT / "docs" / "deployment.md").read_text().partition("## With systemd")[2]
    install, archive, command, upgrade = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)[:4]
    for path in ("etc/passwd", "etc/group", "usr/lib/systemd/system/multi-user.target"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    _run(install, tmp_path)
    assert "ingestion:" in (tmp_path / "etc/passwd").read_text()
    assert (tmp_path / "etc/ingestion/environment").stat().st_mode & 0o777 == 0o600
    for unit_file in UNITS.rglob("*.*"):
        if unit_file.is_file() and unit_file.name != "environment.example":
            installed = units / unit_file.relative_to(UNITS)
            assert installed.read_bytes() == unit_file.read_bytes()
    wanted = {path.name for path in (units / "ingestion.target.wants").iterdir()}
    assert wanted == {f"ingestion-{name}.service" for name in PROCESSES}
    assert (units / "multi-user.target.wants/ingestion.target").is_symlink()
    beside = re.search(r"^    # /etc/systemd/system/(\S+)/archive.conf$", archive, re.MULTILINE)
    assert beside
    own = units / beside[1] / "archive.conf"
    own.write_text(archive)

    (units / beside[1] / "common.conf").write_text("# of the version before\n")
    migrate = command.replace("/opt/ingestion", "/opt/ingestion-2").replace("doctor", "migrate")
    assert _run(upgrade, tmp_path).split("\n") == [
        f"ingestion-1: {migrate.strip()}",
        "ingestion-1: systemctl daemon-reload",
        "ingestion-2: systemctl restart ingestion.target",
    ]
    assert own.read_text() == archive
    assert "NoNewPrivileges" in (units / beside[1] / "common.conf").read_text()


def _run(lines: str, root: Path) -> str:
    """Run them with `root` in place of a machine. Return what systemd is told, each line behind the
    version that is installed meanwhile."""
    elsewhere = f"""
useradd() {{ command useradd --prefix {root} "$@"; }}
systemctl() {{ [ "$1" != enable ] && told systemctl "$@" || command systemctl --root={root} "${{@/--now/--quiet}}"; }}
systemd-run() {{ told systemd-run "$@"; }}
told() {{ echo "$(readlink {root}/opt/ingestion): $*"; }}
git() {{ mkdir -p "${{@: -1}}" && cp -r {DEPLOY} "${{@: -1}}"; }}
make() {{ :; }}
"""
    here = re.sub(r"([ =])/(etc|opt)/", rf"\1{root}/\2/", lines)
    done = subprocess.run(
        ["bash", "-euc", elsewhere + here], cwd=root, env={"PATH": f"{os.defpath}:/usr/sbin:/sbin"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.replace(str(root), "").strip()
