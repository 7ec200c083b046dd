"""Imports pure Python packages right from their wheels, without unpacking them.

Python's own import from zip files finds no package without an __init__.py, and msgraph-sdk has
thousands of those.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType


class _Wheels(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def __init__(self, wheels: Iterable[Path]) -> None:
        self._files: dict[str, tuple[zipfile.ZipFile, str]] = {}
        self._folders: set[str] = set()
        for wheel in wheels:
            archive = zipfile.ZipFile(wheel)
            for name in archive.namelist():
                if name.endswith(".py"):
                    self._files[name] = (archive, f"{wheel}/{name}")
                    parts = name.split("/")[:-1]
                    self._folders.update(
                        "/".join(parts[:depth]) for depth in range(1, len(parts) + 1)
                    )

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        place = fullname.replace(".", "/")
        if self._name(fullname) is None and place not in self._folders:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, is_package=place in self._folders, origin=place
        )

    def get_source(self, fullname: str) -> str:
        name = self._name(fullname)
        if name is None:
            return ""  # a folder of packages
        archive, _ = self._files[name]
        return archive.read(name).decode()

    def is_package(self, fullname: str) -> bool:
        return fullname.replace(".", "/") in self._folders

    def _name(self, fullname: str) -> str | None:
        place = fullname.replace(".", "/")
        candidates = (f"{place}/__init__.py", f"{place}.py")
        return next((name for name in candidates if name in self._files), None)


def install(folder: Path) -> None:
    """Have `import` find what is in the wheels of a folder."""
    wheels = sorted(folder.glob("*.whl"))
    sys.meta_path.insert(0, _Wheels(wheels))
    sys.path.extend(map(str, wheels))  # for importlib.metadata
