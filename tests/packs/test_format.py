"""The pack store: exact, immutable, durable, readable by the standard tool."""

import hashlib
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.types import Body
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.format import encoded
from ingestion.packs.store import Extent, PackStore, PackWriter

SOURCE = uuid.UUID(int=1)


def append(writer: PackWriter, *records: tuple[dict[str, Any], Body]) -> list[Extent]:
    return writer.append([(encoded(header), body) for header, body in records])


def write(store: PackStore, *bodies: bytes) -> tuple[uuid.UUID, list[Extent]]:
    with store.writer(SOURCE) as writer:
        extents = append(
            writer,
            *[({"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)}, b) for b in bodies],
        )
        writer.commit()
    return writer.pack_id, extents


def read(store: PackStore, pack: uuid.UUID, extent: Extent, body: bytes) -> Body:
    return store.open(SOURCE, pack, extent, sha256=hashlib.sha256(body).digest(), size=len(body))


# A loaded machine may take long to think up the bodies.
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=20))
def test_what_goes_in_comes_out_and_a_scan_finds_it(bodies: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        store = DirectoryStore(Path(root))
        pack, extents = write(store, *bodies)
        assert [read(store, pack, e, b) for e, b in zip(extents, bodies, strict=True)] == bodies
        entries = list(store.scan(SOURCE, pack))
        assert [e.extent for e in entries] == extents
        assert [e.header["size"] for e in entries] == [len(b) for b in bodies]


def test_the_standard_tool_reads_a_pack(tmp_path: Path) -> None:
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("zstd is not installed; `make test` installs it when it can")
    store = DirectoryStore(tmp_path)
    pack, _ = write(store, b"first message\r\n", b"second message\r\n")
    [path] = tmp_path.rglob(f"{pack}.pack")
    plain = subprocess.run([tool, "-dc", str(path)], capture_output=True, check=True).stdout
    assert plain == b"first message\r\nsecond message\r\n"
