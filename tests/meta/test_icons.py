"""The font of icons, which is a part of unfold's, has those that stand in our pages."""

import importlib.util
import re
from typing import Any

from fontTools.ttLib import TTFont

from tests.servers.stack import ROOT

_NAMED = re.compile(
    r"""material-symbols-outlined[^>]*>([a-z0-9_]+)<|\bicon(?:"?:|=|:\ str\ =)\ ?"([a-z0-9_]+)\"""",
    re.VERBOSE,
)


def test_every_icon_that_is_named_is_in_the_font() -> None:
    spec: Any = importlib.util.spec_from_file_location("draw", ROOT / "docs/draw_icons.py")
    drawing: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    sources = [*(ROOT / "templates").rglob("*.html"), *(ROOT / "ingestion/admin").rglob("*.py")]
    named = {one or other for path in sources for one, other in _NAMED.findall(path.read_text())}
    assert {"dashboard", "search", "stacked_email", "send"} <= named
    assert named - drawing.icons(TTFont(drawing.FONT)).keys() == set(), (
        "Run .venv/bin/python docs/draw_icons.py"
    )
