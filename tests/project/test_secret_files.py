"""Secrets that are handed over as files."""

import os
import re
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from ingestion_project import secret_files
from tests.meta.test_documentation import README, settings_told


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METRICS_TOKEN", "to be restored")
    monkeypatch.delenv("METRICS_TOKEN")
    monkeypatch.setenv("METRICS_TOKEN_FILE", str(tmp_path / "token"))
    return tmp_path / "token"


def test_a_file_gives_the_setting_its_value_without_the_line_end(path: Path) -> None:
    path.write_text(" a token \n")
    for _ in range(2):  # whoever reads first
        secret_files.read()
    assert os.environ["METRICS_TOKEN"] == " a token "


def test_a_file_that_is_not_there_is_told_without_what_it_might_hold(path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"METRICS_TOKEN_FILE .* No such file"):
        secret_files.read()
    path.write_bytes(b"\xff\xfe")
    os.environ["METRICS_TOKEN_FILE"] = str(path)
    with pytest.raises(ImproperlyConfigured, match="it is no text"):
        secret_files.read()


def test_a_setting_is_given_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICS_TOKEN", "another")
    with pytest.raises(ImproperlyConfigured, match="not both"):
        secret_files.read()


def test_readme_names_those_that_there_are() -> None:
    assert set(secret_files.NAMES) <= settings_told().keys()
    [sentence] = re.findall(r"A secret may be given as a file.*?\n\n", README, re.DOTALL)
    assert set(re.findall(r"`([A-Z_]+)`", sentence)) == set(secret_files.NAMES)
