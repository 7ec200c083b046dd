"""docs/architecture.md against the code: what it names is there, and its picture is up to date."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.stack import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def named() -> Iterator[tuple[str, str]]:
    """Yield each path that the page names, with "" and with each name that follows it on its line."""
    for line in PAGE.splitlines():
        path = ""
        for word in re.findall(r"`([\w./]+)`", line):
            if "/" in word:
                path = word
                yield path, ""
            elif path:
                yield path, word


def defined(path: Path) -> set[str]:
    """Return the functions and classes of a module, those in classes as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{function.name}" for function in inner}
    return found


@pytest.mark.parametrize(("path", "name"), sorted(set(named())))
def test_every_file_and_function_that_it_names_is_there(path: str, name: str) -> None:
    assert (ROOT / path).exists()
    assert not name or name in defined(ROOT / path)


def test_it_follows_a_message_through_all_of_it() -> None:
    packages = {path.rpartition("/")[0] for path, _ in named()}
    assert {
        "connectors",
        "ingestion/services/engine",
        "ingestion/packs",
        "ingestion/api",
    } <= packages


def test_the_picture_is_what_the_imports_draw() -> None:
    spec: Any = importlib.util.spec_from_file_location("draw", ROOT / "docs/draw_architecture.py")
    drawing: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    told = "Run .venv/bin/python docs/draw_architecture.py, and look at what it drew."
    assert drawing.PICTURE.read_text() == drawing.draw(drawing.arrows()), told
