"""Names of files and folders that are safe on every system, made of what strangers wrote. Pure."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

#: What Windows takes in no name (learn.microsoft.com/windows/win32/fileio/naming-a-file); controls,
#: and what turns the direction of writing, are not printable.
_FORBIDDEN = frozenset('<>:"/\\|?*')
_RESERVED = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE
)
_MAX_BYTES = 100
#: Of a folder with all its levels: Windows takes 260 characters for the whole of a path.
_MAX_PATH_BYTES = 120


def safe(text: str, *, max_bytes: int = _MAX_BYTES) -> str:
    """Return a name for one file or folder: `text` itself where it is safe. Else it is mended, and
    ends with a piece of its hash, so that two texts do not become one name."""
    plain = unicodedata.normalize("NFC", text)
    clean = "".join("_" if c in _FORBIDDEN or not c.isprintable() else c for c in plain)
    if clean.startswith((".", "-", "~", " ")) or _RESERVED.fullmatch(clean):
        clean = f"_{clean}"
    clean = _cut(clean, max_bytes).rstrip(" .")
    if clean and clean == text:
        return clean
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{_cut(clean, max_bytes - 9).rstrip(' .') or '_'}~{digest}"


def safe_path(levels: Iterable[str]) -> str:
    """Return a relative path of safe names, one for each level; of one level where it is long."""
    given = list(levels)
    path = "/".join(map(safe, given))
    return path if len(path.encode()) <= _MAX_PATH_BYTES else safe(" ".join(given))


def words(text: str, *, max_bytes: int) -> str:
    """Return what a name may have of a text for people, where something else makes it unique."""
    clean = "".join(" " if c in _FORBIDDEN or not c.isprintable() else c for c in text)
    shown = " ".join(unicodedata.normalize("NFC", clean).split())
    return _cut(shown, max_bytes).strip(" .")


def _cut(text: str, max_bytes: int) -> str:
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")
