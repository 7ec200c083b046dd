"""The source itself: what each file must have, and what none may hold."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from honcho.environ import parse_procfile
from packaging.requirements import Requirement

from ingestion_project import run
from tests.servers.stack import ROOT

#: Settings files, code and text; no pictures.
_TEXT = re.compile(r"\.(py|md|toml|txt|cfg|html|js|css|sh|svg)$|(^|/)(Makefile|Procfile|run)$")

_REASON = re.compile(
    r"noqa: [A-Z]+\d+(, ?[A-Z]+\d+)* - \S|type: ignore\[[a-z-]+(, [a-z-]+)*\] # \S"
)
_ADDRESS = re.compile(r"https?://[^\s\"'<>)`]+")
#: Where packages come from is the business of the machine that installs them.
_REGISTRY = re.compile(
    r"pypi\.|pythonhosted|npmjs|deb\.debian|docker\.io|ghcr\.io|quay\.io|index-url|find-links"
)
#: A directory of somebody's machine. /tmp, /proc and /usr/sbin are everybody's; /opt/ingestion is where
#: the image and the units have the service.
_MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?!opt/ingestion\b)(work|home|root|opt|Users|mnt|srv)/\w")


def files(pattern: str = "") -> list[Path]:
    """Return the files of the project: tracked ones and those to come, none that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [ROOT / name for name in listed.splitlines() if re.search(pattern, name)]
    return [path for path in found if path.exists()]


def python_files() -> list[Path]:
    found = files(r"\.py$")
    assert len(found) > 100, "git lists too few files: the tests here would prove nothing."
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def comments(path: Path) -> Iterator[tuple[int, str]]:
    readline = io.StringIO(path.read_text()).readline
    for token in tokenize.generate_tokens(readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_every_module_says_what_it_owns() -> None:
    silent = [
        name(path)
        for path in python_files()
        if "/migrations/" not in name(path)
        and (tree := ast.parse(path.read_text())).body
        and not ast.get_docstring(tree)
    ]
    assert silent == []


def test_every_exception_to_a_rule_has_its_reason_beside_it() -> None:
    bare = [
        f"{name(path)}:{line}: {comment}"
        for path in python_files()
        for line, comment in comments(path)
        if re.search(r"noqa|type: ?ignore|pragma:", comment) and not _REASON.search(comment)
    ]
    assert bare == []


def test_no_file_names_a_package_registry_or_a_directory_of_some_machine() -> None:
    found = []
    for path in files():
        if not _TEXT.search(name(path)) or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if _REGISTRY.search(line) or _MACHINE_PATH.search(line):
                found.append(f"{name(path)}:{number}: {line.strip()[:120]}")
    assert found == []


def locked(requirements: str) -> dict[str, tuple[str, int]]:
    """Return each package's pin, and how many files of it may be installed."""
    pins: dict[str, tuple[str, int]] = {}
    for entry in (ROOT / requirements).read_text().replace("\\\n", " ").splitlines():
        if entry.startswith("#"):
            continue
        words, *hashes = entry.split("--hash=sha256:")
        pin = Requirement(words)
        name = re.sub(r"[-_.]+", "-", pin.name).lower()
        assert name not in pins, f"{name} is pinned twice"
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest.strip()) for digest in hashes)
        pins[name] = str(pin.specifier), len(hashes)
    return pins


@pytest.mark.parametrize("name", ["requirements", "requirements-dev", "requirements-msgraph"])
def test_requirements_are_pinned_exactly_and_by_hash(name: str) -> None:
    pins = locked(f"{name}.txt")
    loose = [pin for pin in pins.items() if not re.fullmatch(r"==[\w.]+", pin[1][0])]
    assert loose == []
    assert [package for package, (_, hashes) in pins.items() if not hashes] == []
    lines = (ROOT / f"{name}.in").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    assert asked
    for pin in asked:  # else `make lock` was forgotten
        assert pins[re.sub(r"[-_.]+", "-", pin.name).lower()][0] == str(pin.specifier)


def test_the_tests_run_with_what_the_service_runs_with() -> None:
    assert locked("requirements.txt").items() <= locked("requirements-dev.txt").items()


def test_the_programs_of_the_procfile_are_those_that_the_supervisor_runs() -> None:
    programs = dict(parse_procfile((ROOT / "Procfile").read_text()).processes)
    assert run._procfile(ROOT) == programs
    assert set(programs) == {"web", "worker", "control", "index", "beat"}
