"""The pack store: exact, immutable, durable, readable by the standard tool."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.types import Body, SpooledBody
from ingestion.errors import Corrupt
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


def test_a_large_body_is_spooled_both_ways(tmp_path: Path) -> None:
    body = os.urandom(1_000_000) * 9
    store = DirectoryStore(tmp_path)
    with tempfile.TemporaryFile() as file:
        file.write(body)
        with store.writer(SOURCE) as writer:
            about = {"sha256": "", "size": len(body)}
            [extent] = append(writer, (about, SpooledBody(file, len(body))))
            writer.commit()
    found = read(store, writer.pack_id, extent, body)
    assert isinstance(found, SpooledBody)
    assert b"".join(found.chunks()) == body
    found.close()
    assert [e.extent for e in store.scan(SOURCE, writer.pack_id)] == [extent]


def test_without_commit_nothing_remains(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(ZeroDivisionError), store.writer(SOURCE) as writer:
        append(writer, ({"n": 0}, b"x"))
        raise ZeroDivisionError
    assert list(store.packs()) == []
    assert not list(tmp_path.rglob("*.p*"))


@pytest.mark.parametrize("more", [[], [b"after"]], ids=["and no more", "and more"])
def test_an_append_that_fails_leaves_nothing_in_the_pack(tmp_path: Path, more: list[bytes]) -> None:
    """Its neighbours are committed all the same: other folders' messages share the pack."""
    store = DirectoryStore(tmp_path)
    with store.writer(SOURCE) as writer, tempfile.TemporaryFile() as file:
        file.write(os.urandom(3_000_000))
        short = SpooledBody(file, 3_500_000)  # fails at its end, when all of it is written
        extents = append(writer, ({"n": 0}, b"before"))
        with pytest.raises(zstandard.ZstdError):
            append(writer, ({"n": 1}, b"with it"), ({"n": 2}, short))
        extents += append(writer, *[({"n": 3}, body) for body in more])
        size = writer.commit()
    assert [entry.extent for entry in store.scan(SOURCE, writer.pack_id)] == extents
    assert next(store.packs(SOURCE)).size_bytes == size
    for extent, body in zip(extents, [b"before", *more], strict=True):
        assert read(store, writer.pack_id, extent, body) == body


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9])
def test_one_flipped_bit_is_found_before_a_byte_is_handed_out(tmp_path: Path, where: float) -> None:
    store = DirectoryStore(tmp_path)
    body = os.urandom(5000)
    pack, [extent] = write(store, body)
    path = tmp_path / str(SOURCE) / f"{pack}.pack"
    damaged = bytearray(path.read_bytes())
    damaged[extent.offset + int(extent.length * where)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(Corrupt):
        read(store, pack, extent, body)


def test_a_missing_cut_or_wrong_pack_is_corrupt(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    pack, [one, two] = write(store, b"one" * 100, b"two" * 100)
    with pytest.raises(Corrupt, match="differs"):
        read(store, pack, one, b"two" * 100)
    with pytest.raises(Corrupt, match="missing"):
        read(store, uuid.uuid4(), one, b"one" * 100)
    path = tmp_path / str(SOURCE) / f"{pack}.pack"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Corrupt):
        read(store, pack, two, b"two" * 100)
    with pytest.raises(Corrupt):
        list(store.scan(SOURCE, pack))


def test_the_standard_tool_reads_a_pack(tmp_path: Path) -> None:
    tool = shutil.which("zstd")
    if tool is None:
        pytest.skip("zstd is not installed; `make test` installs it when it can")
    store = DirectoryStore(tmp_path)
    pack, _ = write(store, b"first message\r\n", b"second message\r\n")
    path = tmp_path / str(SOURCE) / f"{pack}.pack"
    plain = subprocess.run([tool, "-dc", str(path)], capture_output=True, check=True).stdout
    assert plain == b"first message\r\nsecond message\r\n"


def test_deleting_a_source_is_deleting_a_prefix(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    pack, _ = write(store, b"x")
    assert [p.pack_id for p in store.packs(SOURCE)] == [pack]
    store.delete_source(SOURCE)
    store.delete_source(SOURCE)
    assert list(store.packs()) == []
