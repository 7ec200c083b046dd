"""Draws the results: the import's rates as bars, and how far each target was passed or missed.

A small SVG writer of its own. The drawing follows the reader's dark or light mode.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from bench.results import Row

_WIDTH, _LEFT, _RIGHT = 960, 350, 170
_LINE = 30
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 15px; }
  .quiet, .axis text { fill: #59636e; font-size: 12px; }
  .bar { fill: #8c959f; } .ours { fill: #0969da; }
  .good { fill: #1a7f37; } .bad { fill: none; stroke: #cf222e; stroke-width: 3; }
  line { stroke: #d1d9e0; } .target { stroke: #1f2328; stroke-width: 1.5; }
  .back { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .quiet, .axis text { fill: #9198a1; }
    .bar { fill: #656c76; } .ours { fill: #4493f8; }
    .good { fill: #3fb950; } .bad { stroke: #f85149; }
    line { stroke: #3d444d; } .target { stroke: #f0f6fc; }
    .back { fill: #0d1117; }
  }
"""
#: The axis of margins, in times of the target.
_LEAST, _MOST = 1 / 8, 8


def save(rows: Sequence[Row], path: Path) -> None:
    path.write_text(draw(rows))


def draw(rows: Sequence[Row]) -> str:
    """Return the SVG. Rows without what a part shows are left out of that part."""
    first = [row for row in rows if row.scenario == rows[0].scenario] if rows else []
    rates = [(r.contender, rate) for r in first if (rate := r.median("messages_per_second"))]
    margins = [
        (f"{row.scenario}: {check.label}", check.text.partition(": ")[2], check.margin)
        for row in rows
        for check in row.checks
        if check.margin is not None
    ]
    parts: list[str] = []
    y = 34
    if rates:
        y = _bars(parts, y, f"Messages per second ({first[0].scenario})", rates)
    if margins:
        y = _dots(parts, y + 34, margins)
    height = y + 10
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="Results of make bench">\n'
        f"<style>{_STYLE}</style>\n"
        f'<rect class="back" width="{_WIDTH}" height="{height}" rx="8"/>\n{body}\n</svg>\n'
    )


def _bars(parts: list[str], y: int, title: str, rates: Sequence[tuple[str, float]]) -> int:
    parts.append(_text(20, y, title, "title"))
    most = max(rate for _, rate in rates)
    for name, rate in rates:
        y += _LINE
        width = max(1.0, (_WIDTH - _LEFT - _RIGHT) * rate / most)
        kind = "bar ours" if name == "ours" else "bar"
        place = f'x="{_LEFT}" y="{y - 15}" width="{width:.1f}" height="20"'
        parts.append(_text(_LEFT - 12, y, name, anchor="end"))
        parts.append(f'<rect class="{kind}" {place} rx="3"/>')
        parts.append(_text(_LEFT + width + 8, y, f"{rate:,.0f}"))
    return y + 12


def _dots(parts: list[str], y: int, margins: Sequence[tuple[str, str, float]]) -> int:
    parts.append(
        _text(20, y, "Targets: filled and right of the line is better than asked for", "title")
    )
    top, bottom = y + 16, y + 20 + _LINE * len(margins)
    for times in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8):
        x = _x(times)
        kind = "target" if times == 1 else ""
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        label = f"×{times:g}" if times >= 1 else f"×1/{1 / times:g}"
        parts.append(_text(x, bottom + 18, label, "quiet", anchor="middle"))
    for name, figure, margin in margins:
        y += _LINE
        x = _x(min(max(margin, _LEAST), _MOST))
        kind = "good" if margin >= 1 else "bad"
        parts.append(_text(_LEFT - 12, y + 4, name, "quiet", anchor="end"))
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="6"/>')
        parts.append(_text(_WIDTH - _RIGHT + 16, y + 4, figure, "quiet"))
    return bottom + 28


def _x(times: float) -> float:
    share = math.log(times / _LEAST) / math.log(_MOST / _LEAST)
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
