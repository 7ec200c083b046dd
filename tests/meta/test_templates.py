"""Templates of pages and mails."""

import re

from tests.servers.stack import ROOT

_BEGUN = re.compile(r"\{\{(?:(?!\}\}).)*$|\{%(?:(?!%\}).)*$", re.MULTILINE)


def test_no_tag_goes_on_in_the_next_line() -> None:
    """Django takes such a one for text, and shows it to people as it stands."""
    templates = [
        path for path in (ROOT / "templates").rglob("*") if path.suffix in (".html", ".txt")
    ]
    assert len(templates) > 50
    broken = {str(path): found for path in templates if (found := _BEGUN.findall(path.read_text()))}
    assert broken == {}
