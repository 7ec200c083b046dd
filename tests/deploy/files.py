"""What the files of deploy/ say, as the tools that read them understand it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from honcho.environ import parse_procfile

from tests.servers.stack import ROOT

DEPLOY = ROOT / "deploy"
UNITS = DEPLOY / "systemd"
IN_IMAGE = "/opt/ingestion/.venv/bin/"


def program(name: str) -> str:
    """Return where one of the development packages has its program."""
    return str(Path(sys.executable).with_name(name))


def procfile() -> dict[str, list[str]]:
    lines = parse_procfile((ROOT / "Procfile").read_text()).processes
    return {name: shlex.split(line) for name, line in lines.items()}


def containerfile() -> Iterator[tuple[str, str]]:
    """Yield each instruction of the Containerfile, with what stands behind it on one line."""
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        yield instruction, rest.strip()


def copied() -> set[str]:
    """Return what of this checkout the image has."""
    return {
        word.rstrip("/")
        for instruction, rest in containerfile()
        if instruction == "COPY" and not rest.startswith("--from")
        for word in rest.split()[:-1]
    }


def image_environ() -> dict[str, str]:
    [line] = [rest for instruction, rest in containerfile() if instruction == "ENV"]
    return dict(word.split("=", 1) for word in shlex.split(line))


def image_command() -> list[str]:
    [line] = [rest for instruction, rest in containerfile() if instruction == "CMD"]
    words: list[str] = json.loads(line)
    return words


def image_health() -> list[str]:
    [line] = [rest for instruction, rest in containerfile() if instruction == "HEALTHCHECK"]
    words: list[str] = json.loads(line[line.index("CMD") + 3 :])
    return words


def compose(path: Path = DEPLOY / "compose.yaml") -> dict[str, Any]:
    """Return the file as Compose itself reads it."""
    command = [program("docker-compose"), "--file", str(path), "config", "--format", "json"]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    found: dict[str, Any] = json.loads(said.replace(b"$$", b"$"))
    return found


def unit(path: Path) -> dict[str, str]:
    """Return a unit's settings; of one that is given twice, the last."""
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
