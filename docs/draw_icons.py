"""Makes the admin's font of icons from unfold's: of 4,000 icons, those that a page can show.

    .venv/bin/python docs/draw_icons.py

An icon is drawn where its name stands, by a ligature, and so the page's text is what is looked
through: each word of our templates and of the admin's code, and what unfold's templates and styles
name. A word that is an icon by chance is in the font, for nothing: 60 bytes.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import unfold
from fontTools import subset
from fontTools.ttLib import TTFont

ROOT = Path(__file__).parents[1]
_UNFOLD = Path(unfold.__file__).parent
_THEIRS = _UNFOLD / "static/unfold/fonts/material-symbols"
FONT = ROOT / "static/unfold/fonts/material-symbols/Material-Symbols-Outlined.woff2"


def icons(font: TTFont) -> dict[str, str]:
    """Return the glyph of each icon by its name."""
    letters = {glyph: chr(code) for code, glyph in font.getBestCmap().items()}
    found = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            ligatures: dict[str, list[Any]] = getattr(table, "ligatures", {})
            for first, several in ligatures.items():
                for ligature in several:
                    parts = [first, *ligature.Component]
                    if all(part in letters for part in parts):
                        found["".join(letters[part] for part in parts)] = ligature.LigGlyph
    return found


def words() -> set[str]:
    """Return what might name an icon."""
    return {word for text in _texts() for word in re.findall(r"[a-z0-9_]+", text)}


def _texts() -> Iterator[str]:
    for folder, pattern in (
        (ROOT / "templates", "*.html"),
        (ROOT / "ingestion/admin", "*.py"),
    ):
        for path in folder.rglob(pattern):
            yield path.read_text()
    for path in _UNFOLD.rglob("*.html"):
        yield from re.findall(r">\s*([a-z0-9_]+)\s*<", path.read_text())
    for path in (_UNFOLD / "static").rglob("*.css"):
        yield from re.findall(r'content:\s*"([a-z0-9_]+)"', path.read_text())


def main() -> int:
    font = TTFont(_THEIRS / FONT.name, recalcTimestamp=False)  # the same icons, the same bytes
    known = icons(font)
    names = sorted(words() & known.keys())
    options = subset.Options()
    options.layout_closure = False  # else each icon whose letters are there
    options.layout_features = ["*"]
    options.flavor = "woff2"
    made = subset.Subsetter(options)
    letters = {ord(letter) for name in names for letter in name}
    made.populate(glyphs=[known[name] for name in names], unicodes=letters)
    made.subset(font)
    FONT.parent.mkdir(parents=True, exist_ok=True)
    subset.save_font(font, str(FONT), options)
    shutil.copy(_THEIRS / "LICENSE", FONT.parent)
    print(f"{len(names)} icons, {FONT.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
