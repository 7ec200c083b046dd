"""Draws docs/architecture.svg: the rooms of the code, and which imports which.

    .venv/bin/python docs/draw_architecture.py

Where a room stands and what it is for is said here; the arrows are the code's own imports. Left out
are those that follow from others (api -> models, since api -> services -> models).
"""

import dataclasses
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

_WIDTH, _HEIGHT = 1116, 928
Edge = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Room:
    """A box. `modules`: what is in it, with all beneath; the longest name that fits a module wins.
    `house`: the room around it, at whose wall arrows from and to elsewhere begin and end."""

    name: str
    about: str
    place: tuple[int, int, int, int]
    modules: str
    kind: str = ""
    house: str = ""

    @property
    def across(self) -> tuple[int, int]:
        """From where to where it reaches."""
        return self.place[0], self.place[0] + self.place[2]

    @property
    def down(self) -> tuple[int, int]:
        return self.place[1], self.place[1] + self.place[3]


#: Places are x, y, width and height. A line of `about` ends at |.
ROOMS = {
    room.name: room
    for room in (
        Room("ingestion_project", "wiring: settings, Celery, processes, make run, make demo",
             (24, 24, 696, 56), "ingestion_project", "face"),
        Room("api", "REST, OpenAPI, events", (24, 128, 216, 60), "ingestion.api", "face"),
        Room("admin", "the operators' pages", (264, 128, 216, 60),
             "ingestion.admin ingestion.templatetags", "face"),
        Room("management", "the command line", (504, 128, 216, 60), "ingestion.management", "face"),
        Room("tasks", "due work, handed out and done", (24, 236, 360, 56),
             "ingestion.dispatching ingestion.tasks"),
        Room("signin", "who it is", (408, 236, 156, 56), "ingestion.signin"),
        Room("apps", "checks, middleware", (588, 236, 132, 56),
             "ingestion.apps ingestion.checks ingestion.middleware ingestion.uploads"),
        Room("services", "verbs, audited: the only code that writes", (24, 340, 696, 244),
             "ingestion.services", "house"),
        Room("sources", "configured, proven, started, paused, deleted", (48, 396, 308, 60),
             "ingestion.services.sources", "verb", "services"),
        Room("engine", "due work, leases, folders, capture, commit", (388, 396, 308, 60),
             "ingestion.services.engine", "verb", "services"),
        Room("operations", "doctor, keys, people, alerts", (48, 500, 308, 60),
             "ingestion.services.operations", "verb", "services"),
        Room("archive", "verified, compared, rebuilt, fetched again", (388, 500, 308, 60),
             "ingestion.services.archive", "verb", "services"),
        Room("packs", "the archive's files", (24, 632, 216, 60),
             "ingestion.packs ingestion.rows ingestion.memory"),
        Room("search", "what is found: query language, words, pages; the feed", (264, 632, 456, 60),
             "ingestion.search ingestion.feed"),
        Room("mail", "bytes to what people read", (24, 740, 216, 60), "ingestion.mail"),
        Room("queries", "what several pages show", (264, 740, 216, 60),
             "ingestion.queries ingestion.freshness ingestion.explaining ingestion.pace"
             " ingestion.index_health ingestion.downloads ingestion.places"
             " ingestion.expiry"),
        Room("models", "the tables; secrets are encrypted", (504, 740, 216, 60),
             "ingestion.models ingestion.migrations ingestion.crypto ingestion.moments"),
        Room("states", "words: states and their moves, refusals", (24, 848, 696, 56),
             "ingestion.states ingestion.errors ingestion.addresses ingestion.amounts"),
        Room("connectors", "the interface,|and what all share:|types, errors,|configuration,|"
             "registry, network,|tokens, throttle", (776, 340, 144, 564), "connectors", "mail"),
        Room("google", "Workspace, Gmail", (960, 340, 132, 72), "connectors.google", "mail"),
        Room("microsoft", "Microsoft 365", (960, 504, 132, 72), "connectors.microsoft", "mail"),
        Room("generic_imap", "any IMAP server", (960, 668, 132, 72),
             "connectors.generic_imap", "mail"),
        Room("a plug-in", "of your own", (960, 832, 132, 72), "ingestion_maildir", "mail plugin"),
    )
}  # fmt: skip
_LEGEND = (
    ("face", "how people and programs come in"),
    ("verb", "what is done"),
    ("mail", "where mail comes from"),
    ("", "imports, and may import what is further on"),
)
#: Not left out, though `states` leads there too: who drives the connectors is worth an arrow.
_SHOWN = {("services", "connectors")}


# -- the arrows --------------------------------------------------------------------------------


def arrows() -> list[Edge]:
    """Return which room imports which. Raises LookupError where a module has no room."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "ingestion-maildir")]
    graph = grimp.build_graph(
        *("connectors", "ingestion", "ingestion_project", "ingestion_maildir"),
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    found = {
        _between(_room_of(module), _room_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return _without_what_follows(edge for edge in found if edge[0] != edge[1])


def _room_of(module: str) -> Room:
    fitting = [
        (len(name), room.name)
        for room in ROOMS.values()
        for name in room.modules.split()
        if f"{module}.".startswith(f"{name}.")
    ]
    if not fitting:
        raise LookupError(f"{module} has no room: give it one in docs/draw_architecture.py.")
    return ROOMS[max(fitting)[1]]


def _between(one: Room, other: Room) -> Edge:
    if one.house == other.house:
        return one.name, other.name
    return one.house or one.name, other.house or other.name


def _without_what_follows(edges: Iterable[Edge]) -> list[Edge]:
    """Rooms that import each other keep their arrows."""
    found = set(edges)
    one_way = {edge for edge in found if edge[::-1] not in found}
    implied = {edge for edge in one_way if _leads(*edge, one_way - {edge})} - _SHOWN
    return sorted(found - implied)


def _leads(one: str, other: str, edges: Collection[Edge]) -> bool:
    reached = {one}
    while further := {b for a, b in edges if a in reached} - reached:
        reached |= further
    return other in reached


# -- the picture -------------------------------------------------------------------------------

_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #59636e; text-anchor: middle; }
  .name { font: 600 14px ui-monospace, monospace; fill: #1f2328; }
  .legend { text-anchor: start; }
  .back { fill: #ffffff; stroke: none; }
  rect { fill: #f6f8fa; stroke: #d1d9e0; }
  .face { fill: #ddf4ff; stroke: #80ccff; }
  .verb { fill: #dafbe1; stroke: #6fdd8b; }
  .mail { fill: #fbefff; stroke: #d8b9ff; }
  .house { fill: none; stroke: #8c959f; }
  .plugin { stroke-dasharray: 5 4; }
  path { fill: none; stroke: #6e7781; stroke-width: 1.5; }
  marker path { fill: #6e7781; stroke: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1; } .name { fill: #f0f6fc; } .back { fill: #0d1117; }
    rect { fill: #161b22; stroke: #3d444d; } .face { fill: #0c2d6b; stroke: #1f6feb; }
    .verb { fill: #0f3d20; stroke: #238636; } .mail { fill: #31184f; stroke: #8957e5; }
    .house { fill: none; stroke: #656c76; }
    path { stroke: #9198a1; } marker path { fill: #9198a1; }
  }
"""
_HEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="9" markerHeight="9" '
    'markerUnits="userSpaceOnUse" orient="auto-start-reverse"><path d="M0 .5L8 4L0 7.5z"/></marker>'
)


def draw(edges: Sequence[Edge]) -> str:
    """Return the SVG."""
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    about = "The rooms of the code, and which imports which"
    parts = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{about}">',
        f"<style>{_STYLE}</style>",
        _HEAD,
        f'<rect class="back" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>',
        *map(_box, ROOMS.values()),
        *_lines(edges),
        *_legend(776, 30),
        "</svg>",
    )
    return "\n".join(parts) + "\n"


def _box(room: Room) -> str:
    x, y, width, height = room.place
    lines = room.about.split("|")
    middle = x + width / 2
    top = y + 22 if room.kind == "house" else y + height / 2 - 9 * len(lines) + 5
    texts = [f'<text class="name" x="{middle:g}" y="{top:g}">{escape(room.name)}</text>']
    texts += [
        f'<text x="{middle:g}" y="{top + 19 + 17 * number:g}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    ]
    box = f'<rect class="{room.kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
    return box + "".join(texts)


def _legend(x: int, y: int) -> Iterator[str]:
    for number, (kind, about) in enumerate(_LEGEND):
        top = y + 26 * number
        if kind:
            yield f'<rect class="{kind}" x="{x}" y="{top}" width="26" height="16" rx="4"/>'
        else:
            yield f'<path d="M{x} {top + 8}L{x + 26} {top + 8}" marker-end="url(#head)"/>'
        yield f'<text class="legend" x="{x + 38}" y="{top + 12}">{about}</text>'


def _lines(edges: Sequence[Edge]) -> Iterator[str]:
    for one, other in edges:
        both = (other, one) in edges
        if both and other < one:
            continue  # drawn once, with two heads
        start = ' marker-start="url(#head)"' if both else ""
        curve = _curve(ROOMS[one], ROOMS[other])
        title = f"<title>{one} {'↔' if both else '→'} {other}</title>"
        yield f'<path d="{curve}"{start} marker-end="url(#head)">{title}</path>'


def _curve(one: Room, other: Room) -> str:
    """Return the way from wall to wall: straight where the rooms face each other."""
    (left, right), (top, bottom) = (
        _overlap(one.across, other.across),
        _overlap(one.down, other.down),
    )
    if left < right:
        x = (left + right) / 2
        y1, y2 = _facing(one.down, other.down)
        return f"M{x:g} {y1}L{x:g} {y2}"
    if top < bottom:
        y = (top + bottom) / 2
        x1, x2 = _facing(one.across, other.across)
        return f"M{x1} {y:g}L{x2} {y:g}"
    (x1, x2), (y1, y2) = _facing(one.across, other.across), _facing(one.down, other.down)
    inset = 28 if x1 < x2 else -28
    return f"M{x1 - inset} {y1}L{x2 + inset} {y2}"


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return max(one[0], other[0]), min(one[1], other[1])


def _facing(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Return the ends of two stretches that are next to each other."""
    return (one[1], other[0]) if one[1] <= other[0] else (one[0], other[1])


if __name__ == "__main__":
    PICTURE.write_text(draw(arrows()))
