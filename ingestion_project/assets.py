"""The version of what pages are made of, which their addresses begin with."""

import hashlib
from importlib.metadata import version as installed
from pathlib import Path

#: Packages whose files are served beside our own.
_PACKAGES = ("Django", "django-unfold", "drf-spectacular-sidecar")


def version(*directories: Path) -> str:
    """Return a name for the content of these directories and the packages' releases."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        digest.update(f"{package} {installed(package)}\n".encode())
    for directory in directories:
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(directory)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
