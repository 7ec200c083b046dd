"""Which Python the Makefile takes, of those that a machine has."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.servers.stack import ROOT

_SOUND, _WITHOUT_VENV = "exit 0", "exit 1"  # what is asked of it: whether it has `ensurepip`


def python(path: Path, script: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def make(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("make")), "--no-print-directory", *words],
        cwd=ROOT,
        env={"PATH": f"{path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def chosen(*words: str, path: Path) -> str:
    return make("--eval=chosen: ; @echo $(PYTHON)", "chosen", *words, path=path).stdout.strip()


def test_the_distributions_python_is_taken_first_if_it_has_venv(tmp_path: Path) -> None:
    own, path = tmp_path / "distribution", tmp_path / "path"
    where = f"DISTRIBUTION={own}"
    last = python(path / "python3.12", _SOUND)
    python(path / "python3.11", _WITHOUT_VENV)
    assert chosen(where, path=path) == last
    first = python(path / "python3.11", _SOUND)
    assert chosen(where, path=path) == first
    python(own / "python3.11", _WITHOUT_VENV)
    assert chosen(where, path=path) == first
    newer = python(own / "python3.12", _SOUND)
    assert chosen(where, path=path) == newer
    oldest = python(own / "python3.11", _SOUND)
    assert chosen(where, path=path) == oldest
    assert chosen(where, f"PYTHON={first}", path=path) == first


@pytest.mark.parametrize("rule", ["runtime", "development"])
def test_without_any_it_says_what_to_install(tmp_path: Path, rule: str) -> None:
    venv = tmp_path / "venv"
    done = make(f"VENV={venv}", "PYTHON=", f"{venv}/{rule}", path=tmp_path)
    assert done.returncode == 2
    assert "apt-get install python3 python3-venv" in done.stdout
    assert not venv.exists()
