"""What every store of packs does, a directory and a bucket alike: one suite for both."""

import collections
import datetime as dt
import hashlib
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from connectors.types import Body, SpooledBody
from ingestion.errors import ArchiveUnavailable, Corrupt
from ingestion.packs import s3
from ingestion.packs.base import PackStore, PackWriter
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.format import Extent, encoded
from ingestion.packs.location import Bucket
from ingestion.packs.s3 import ObjectStore
from ingestion_project.demo.object_store import ObjectStoreServer

SOURCE = uuid.UUID(int=1)
OTHER = uuid.UUID(int=2)


@pytest.fixture
def bucket(object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A place of the test's own."""
    for name, value in object_store.env.items():
        monkeypatch.setenv(name, value)
    return Bucket("archive", f"{uuid.uuid4()}/", object_store.endpoint, "us-east-1")


@pytest.fixture(params=["directory", "s3"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], PackStore]:
    """Open the same store, as another process would."""
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path / "archive")
    place: Bucket = request.getfixturevalue("bucket")
    return lambda: ObjectStore(place)


@pytest.fixture
def store(again: Callable[[], PackStore]) -> PackStore:
    return again()


def append(writer: PackWriter, *records: tuple[dict[str, Any], Body]) -> list[Extent]:
    return writer.append([(encoded(header), body) for header, body in records])


def write(
    store: PackStore, *bodies: bytes, source: uuid.UUID = SOURCE
) -> tuple[uuid.UUID, list[Extent]]:
    with store.writer(source) as writer:
        about = [{"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)} for b in bodies]
        extents = append(writer, *zip(about, bodies, strict=True))
        writer.commit()
    return writer.pack_id, extents


def read(store: PackStore, pack: uuid.UUID, extent: Extent, body: bytes) -> Body:
    return store.open(SOURCE, pack, extent, sha256=hashlib.sha256(body).digest(), size=len(body))


def replace(store: PackStore, pack: uuid.UUID, change: Callable[[bytes], bytes]) -> None:
    """Damage a pack where it lies, behind the store's back."""
    if isinstance(store, DirectoryStore):
        path, _ = store.paths(SOURCE, f"{pack}.pack")
        path.write_bytes(change(path.read_bytes()))
        return
    assert isinstance(store, ObjectStore)
    changed = change(b"".join(store.fresh().chunks(SOURCE, pack)))
    store._ask("put_object", Key=store._key(SOURCE, pack), Body=changed)


def test_what_goes_in_comes_out_and_a_scan_finds_it(again: Callable[[], PackStore]) -> None:
    bodies = [b"", b"x", os.urandom(3_000), b"a line\r\n" * 40_000, os.urandom(400_000)]
    pack, extents = write(again(), *bodies)
    found = again()
    assert [read(found, pack, e, b) for e, b in zip(extents, bodies, strict=True)] == bodies
    assert [entry.extent for entry in again().scan(SOURCE, pack)] == extents
    assert [entry.header["size"] for entry in found.scan(SOURCE, pack)] == [len(b) for b in bodies]


def test_a_large_body_is_spooled_both_ways(again: Callable[[], PackStore]) -> None:
    body = os.urandom(1_000_000) * 9
    with tempfile.TemporaryFile() as file:
        file.write(body)
        with again().writer(SOURCE) as writer:
            about = {"sha256": "", "size": len(body)}
            [extent] = append(writer, (about, SpooledBody(file, len(body))))
            writer.commit()
    found = read(again(), writer.pack_id, extent, body)
    assert isinstance(found, SpooledBody)
    assert b"".join(found.chunks()) == body
    found.close()


def test_without_commit_nothing_remains(store: PackStore) -> None:
    with pytest.raises(ZeroDivisionError), store.writer(SOURCE) as writer:
        append(writer, ({"n": 0}, b"x"))
        raise ZeroDivisionError
    assert list(store.packs()) == []
    assert not store.holds(SOURCE, writer.pack_id)


@pytest.mark.parametrize("committed", [True, False])
def test_a_pack_that_no_row_will_name_is_dropped(store: PackStore, committed: bool) -> None:
    writer = store.writer(SOURCE)
    if committed:
        writer.commit()
    writer.drop()
    assert list(store.packs()) == []


@pytest.mark.parametrize("more", [[], [b"after"]], ids=["and no more", "and more"])
def test_an_append_that_fails_leaves_nothing_in_the_pack(
    store: PackStore, more: list[bytes]
) -> None:
    """Its neighbours are committed all the same: other folders' messages share the pack."""
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


@pytest.mark.parametrize("where", [0.2, 0.9])
def test_one_flipped_bit_is_found_before_a_byte_is_handed_out(
    store: PackStore, where: float
) -> None:
    body = os.urandom(5000)
    pack, [extent] = write(store, body)
    at = extent.offset + int(extent.length * where)
    replace(store, pack, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(Corrupt):
        read(store, pack, extent, body)


def test_a_missing_cut_or_wrong_pack_is_corrupt(store: PackStore) -> None:
    store.write_mark("ours")
    pack, [one, two] = write(store, b"one" * 100, b"two" * 100)
    with pytest.raises(Corrupt, match="differs"):
        read(store, pack, one, b"two" * 100)
    with pytest.raises(Corrupt, match="missing"):
        read(store, uuid.uuid4(), one, b"one" * 100)
    with pytest.raises(Corrupt, match="missing"):
        list(store.scan(SOURCE, uuid.uuid4()))
    replace(store, pack, lambda data: data[:-5])
    with pytest.raises(Corrupt):
        read(store.fresh(), pack, two, b"two" * 100)
    with pytest.raises(Corrupt):
        list(store.fresh().scan(SOURCE, pack))


def test_where_no_archive_is_no_pack_is_missing(store: PackStore) -> None:
    """Beneath a mount point whose volume is away, nothing is known of any pack."""
    with pytest.raises(ArchiveUnavailable, match="is its volume mounted"):
        read(store, uuid.uuid4(), Extent(0, 1), b"")
    with pytest.raises(ArchiveUnavailable, match="is its volume mounted"):
        list(store.scan(SOURCE, uuid.uuid4()))


def test_who_wants_to_know_what_is_there_now_is_told_nothing_from_before(store: PackStore) -> None:
    pack, [extent] = write(store, b"one" * 100)
    assert read(store, pack, extent, b"one" * 100) == b"one" * 100
    replace(store, pack, lambda data: data[:-5])
    with pytest.raises(Corrupt):
        read(store.fresh(), pack, extent, b"one" * 100)


def test_a_pack_is_never_written_over(store: PackStore) -> None:
    pack, [extent] = write(store, b"first")
    with store.copier(SOURCE, pack) as other:
        other.file.write(b"something else")
        with pytest.raises(FileExistsError):
            other.commit()
    assert read(store.fresh(), pack, extent, b"first") == b"first"


def test_a_copy_has_the_same_bytes(store: PackStore, tmp_path: Path) -> None:
    elsewhere = DirectoryStore(tmp_path / "elsewhere")
    pack, _ = write(store, b"one", os.urandom(300_000))
    for here, there in ((store, elsewhere), (elsewhere, store)):
        if here is elsewhere:
            store.delete_source(SOURCE)
        with there.copier(SOURCE, pack) as copy:
            copy.file.write(b"".join(here.chunks(SOURCE, pack)))
            copy.commit()
        assert there.fresh().sha256(SOURCE, pack) == here.sha256(SOURCE, pack)


def test_a_listing_has_as_many_pages_as_there_are_packs_and_a_source_goes_as_a_whole(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAGE", 3)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=2)
    mine = {write(store, b"%d" % number)[0] for number in range(7)}
    theirs, _ = write(store, b"x", source=OTHER)
    assert set(store.sources()) == {SOURCE, OTHER}
    assert {found.pack_id for found in store.packs(SOURCE)} == mine
    assert {found.pack_id for found in store.packs()} == {*mine, theirs}
    assert all(found.modified_at > before for found in store.packs())
    gone = next(store.packs(SOURCE))
    store.delete(gone)
    store.delete(gone)
    assert not store.holds(SOURCE, gone.pack_id)
    assert len(list(store.packs(SOURCE))) == 6
    store.delete_source(SOURCE)
    store.delete_source(SOURCE)
    assert [found.pack_id for found in store.packs()] == [theirs]
    assert store.holds(OTHER, theirs)


def test_a_source_whose_deletion_is_to_end_goes_batch_by_batch(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAGE", 3)
    for number in range(7):
        write(store, b"%d" % number)
    batches = iter([True, False])
    assert not store.delete_source(SOURCE, may_go_on=lambda: next(batches))
    assert 4 <= len(list(store.packs(SOURCE))) < 7
    assert store.delete_source(SOURCE)
    assert list(store.packs()) == []


def test_a_mark_is_read_by_others_and_replaced(again: Callable[[], PackStore]) -> None:
    store = again()
    assert store.mark() is None
    store.write_mark("one")
    assert store.mark() == again().mark() == "one"
    store.write_mark("two")
    assert store.mark() == again().mark() == "two"
    assert list(store.packs()) == []


def test_it_is_tried_out_and_nothing_stays(store: PackStore) -> None:
    assert store.try_out() > 0
    assert list(store.packs()) == []
    assert store.mark() is None


def test_a_copy_that_was_killed_is_in_the_way_of_no_other(again: Callable[[], PackStore]) -> None:
    pack = uuid.uuid4()
    killed = again().copier(SOURCE, pack)
    killed.fill([b"half"])  # and nothing ends it
    with again().copier(SOURCE, pack) as copy:
        copy.fill([b"all of it"])
        copy.commit()
    assert b"".join(again().chunks(SOURCE, pack)) == b"all of it"
    killed.file.close()


def test_an_archive_of_before_there_were_directories_is_read_listed_and_emptied(
    tmp_path: Path,
) -> None:
    """So is a copy of a bucket, whose names are flat."""
    store = DirectoryStore(tmp_path)
    young, _ = write(store, b"young")
    pack, [extent] = write(store, b"old")
    path, of_before = store.paths(SOURCE, f"{pack}.pack")
    assert path.parent.parent == of_before.parent
    path.rename(of_before)
    half = of_before.with_name(f".{uuid.uuid4()}.partial")
    half.write_bytes(b"half")
    assert read(store, pack, extent, b"old") == b"old"
    assert store.holds(SOURCE, pack)
    assert {found.pack_id for found in store.packs() if not found.partial} == {young, pack}
    with store.copier(SOURCE, pack) as copy, pytest.raises(FileExistsError):
        copy.commit()
    for found in store.packs():
        if found.pack_id != young:
            store.delete(found)
    assert [found.pack_id for found in store.packs()] == [young]
    store.delete_source(SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_holds_a_small_part_of_a_sources_packs(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    packs = [uuid.uuid4() for _ in range(1_000)]
    numbers = collections.Counter(store.paths(SOURCE, f"{pack}.pack")[0].parent for pack in packs)
    assert len(numbers) <= 256
    assert max(numbers.values()) < 30
