"""docs/adding-a-provider.md shows the code that the tests run, and no other."""

import re
import textwrap

import pytest

from tests.servers.plugins import MAILDIR
from tests.servers.stack import ROOT

PAGE = (ROOT / "docs" / "adding-a-provider.md").read_text()
BLOCKS = re.findall(r"^```(?:python|toml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = [
    *MAILDIR.rglob("*.py"),
    MAILDIR / "pyproject.toml",
    ROOT / "tests" / "contract" / "test_maildir.py",
]


def test_it_shows_code() -> None:
    assert len(BLOCKS) > 8
    assert PAGE.count("```") == 2 * len(BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_what_it_shows_is_the_examples_code(block: str) -> None:
    wanted = textwrap.dedent(block).splitlines()
    for path in FILES:
        lines = path.read_text().splitlines()
        for start in range(len(lines) - len(wanted) + 1):
            part = "\n".join(lines[start : start + len(wanted)])
            if textwrap.dedent(part).splitlines() == wanted:
                return
    pytest.fail(f"No file of the example has this:\n{block}")
