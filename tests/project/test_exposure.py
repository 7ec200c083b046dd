"""What strangers can't have: mail through the file system, code through Redis, metadata services."""

import os
import pickle
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.core.cache import cache

from connectors import net
from connectors.errors import ConnectorError, Fatal
from tests.servers.command_line import CommandLine
from tests.servers.stack import ROOT, Supervised


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that every user of the machine may enter, as /srv and /opt are."""
    with tempfile.TemporaryDirectory(prefix="open-", dir="/tmp") as name:  # short: sockets
        Path(name).chmod(0o755)
        yield Path(name)


def open_to_others(root: Path) -> list[str]:
    """What others could read or enter below `root`, which they reach."""
    found = []
    for path in (root, *root.rglob("*")):
        mode = path.lstat().st_mode
        closed_above = any(not parent.stat().st_mode & 0o011 for parent in path.parents)
        if mode & 0o077 and not stat.S_ISLNK(mode) and not closed_above:
            found.append(f"{path} {stat.filemode(mode)}")
    return found


def test_nothing_is_open_to_other_users_whatever_the_umask(open_dir: Path) -> None:
    var_dir = open_dir / "var"
    started = Supervised.start(
        *("--only-services", "--no-fsync"),
        env={**os.environ, "VAR_DIR": str(var_dir)},
        log=open_dir / "log",
    )
    try:
        started.wait_for_line("are ready")
        assert (var_dir / "postgres/PG_VERSION").exists()
        assert open_to_others(var_dir) == []
    finally:
        started.stop()


def test_packs_are_their_owners_alone_in_an_open_directory(open_dir: Path) -> None:
    program = """
import os, uuid
os.umask(0o022)  # the usual one
import django
django.setup()
from ingestion.packs.store import store
with store().writer(uuid.uuid4()) as writer:
    writer.commit()
"""
    environ = {
        **os.environ,
        "ARCHIVE_DIR": str(open_dir / "archive"),
        "DJANGO_SETTINGS_MODULE": "ingestion_project.settings",
    }
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, check=True, timeout=60)
    assert list(open_dir.rglob("*.pack"))
    assert open_to_others(open_dir / "archive") == []


def exposure(manage: CommandLine) -> dict[str, Any]:
    found = manage.here("doctor", "--json").json()
    return next(one for one in found["findings"] if one["name"] == "exposure")


def test_doctor_tells_of_an_archive_that_others_may_read(
    db: None, manage: CommandLine, settings: Any, open_dir: Path
) -> None:
    assert exposure(manage)["state"] == "ok"
    settings.ARCHIVE_DIR = open_dir / "archive"
    settings.ARCHIVE_DIR.mkdir()
    settings.ARCHIVE_DIR.chmod(0o755)
    told = exposure(manage)
    assert told["state"] == "problem"
    assert told["advice"] == f"chmod 700 {settings.ARCHIVE_DIR}"


def test_doctor_tells_where_strangers_reach_private_addresses(
    owner: User, other_user: User, manage: CommandLine, settings: Any
) -> None:
    told = exposure(manage)
    assert told["state"] == "warning"
    assert "FORBID_PRIVATE_ADDRESSES=1" in told["advice"]
    settings.FORBID_PRIVATE_ADDRESSES = True
    assert exposure(manage)["state"] == "ok"
    settings.DEBUG, settings.ALLOWED_HOSTS = True, ["*"]
    assert exposure(manage)["state"] == "problem"


def test_what_somebody_put_into_redis_is_never_run(settings: Any, tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
            return os.system, (f"touch {trace}",)

    with redis.Redis.from_url(settings.REDIS_URL) as client:
        client.set(cache.make_key("consent:bomb"), pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"JSON|utf-8"):
        cache.get("consent:bomb")
    assert not trace.exists()
    cache.set("mine", {"user": 1, "scopes": ["read"], "at": 2.5, "gone": None})
    assert cache.get("mine") == {"user": 1, "scopes": ["read"], "at": 2.5, "gone": None}


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "100.100.100.200",
     "168.63.129.16", "192.0.0.192", "64:ff9b::a9fe:a9fe"],
)  # fmt: skip
def test_a_clouds_metadata_is_never_connected_to(address: str) -> None:
    with pytest.raises(Fatal) as refused:
        net.connect(address, 80, timeout_seconds=5, forbid_private_addresses=False)
    assert refused.value.code == "forbidden_address"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_of_ones_own_is_connected_to(address: str) -> None:
    with pytest.raises(ConnectorError) as refused:
        net.connect(address, 1, timeout_seconds=5, forbid_private_addresses=False)
    assert refused.value.code == "unavailable"  # tried, and nobody listens
