"""Installs providers of other packages as pip leaves them: a package and its dist-info on sys.path.

The tests run with the example of docs/adding-a-provider.md installed, in this process and in those
that it starts, so that every page, form, document and command has a provider more than our own.
"""

import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

_GROUP = "ingestion.connectors"
MAILDIR = Path(__file__).parents[1] / "ingestion-maildir"


def install(site: Path, *, maildir_root: Path) -> None:
    """Install the example into a new directory `site`. Before anything imports the registry."""
    project = tomllib.loads((MAILDIR / "pyproject.toml").read_text())["project"]
    write_metadata(site, project["name"], project["entry-points"][_GROUP])
    (site / "ingestion_maildir").symlink_to(MAILDIR / "ingestion_maildir")
    maildir_root.mkdir()
    sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = str(site)
    os.environ["MAILDIR_ROOT"] = str(maildir_root)


def write_metadata(site: Path, name: str, entry_points: Mapping[str, str]) -> None:
    """Make a distribution of that name, which has these providers."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{slug} = {package}" for slug, package in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{_GROUP}]", *lines]) + "\n")
