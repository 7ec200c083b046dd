"""What one damaged place costs a pack: a message, and no record that is not true."""

import errno
import hashlib
import io
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from ingestion.errors import Corrupt
from ingestion.packs.directory import DirectoryStore
from ingestion.packs.format import (
    Damaged,
    Entry,
    Extent,
    HashingReader,
    append,
    begin,
    compressor,
    scan,
)
from ingestion.packs.record import Origin, RecordHeader

PACK, OTHER = uuid.UUID(int=7), uuid.UUID(int=8)
ORIGIN = Origin("me", "ada@example.com", "INBOX", "Inbox", "2026-01-02T03:04:05+00:00")
OLD_PACK = Path(__file__).parents[1] / "data" / "pack_v1.pack"


def header(number: int, body: bytes) -> RecordHeader:
    return RecordHeader(
        sha256=hashlib.sha256(body).digest(),
        size=len(body),
        origin=ORIGIN,
        remote_id=f"1:{number}",
        stable_id=f"E{number}",
        thread_id=f"T{number}",
        received_at=None,
        labels=("\\Seen", "grün"),
    )


def packed(*bodies: bytes, pack: uuid.UUID = PACK) -> tuple[bytes, list[Extent]]:
    file = io.BytesIO()
    begin(file, pack, {"source": "one"})
    records = [(header(number, body).dumps(), body) for number, body in enumerate(bodies)]
    extents = append(file, pack.hex, records, compressor())
    return file.getvalue(), extents


def scanned(data: bytes) -> tuple[list[Entry], list[Damaged]]:
    damage: list[Damaged] = []
    return list(scan(io.BytesIO(data), PACK, on_damage=damage.append)), damage


def headers(entries: list[Entry]) -> list[RecordHeader]:
    return [RecordHeader.parse(entry.header) for entry in entries]


def readable(data: bytes, entry: Entry) -> bool:
    reader = HashingReader(io.BytesIO(data), entry.extent)
    try:
        for _ in reader.chunks():
            pass
    except Damaged:
        return False
    return reader.digest() == RecordHeader.parse(entry.header).sha256


def test_a_header_comes_back_as_it_was() -> None:
    body = b"Subject: one\r\n\r\n1"
    data, extents = packed(body)
    entries, damage = scanned(data)
    assert headers(entries) == [header(0, body)]
    assert [entry.extent for entry in entries] == extents
    assert not damage


def test_any_flipped_bit_is_found_and_costs_one_message_at_most() -> None:
    bodies = [b"Subject: %d\r\n\r\n%d" % (n, n) * 9 for n in range(4)]
    data, extents = packed(*bodies)
    whole = headers(scanned(data)[0])
    in_bodies = {n for extent in extents for n in range(extent.offset, sum(extent))}
    for place in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        damaged = bytes(flipped)
        entries, damage = scanned(damaged)
        good = [entry for entry in entries if readable(damaged, entry)]
        assert set(headers(entries)) <= set(whole), f"bit {place} makes a record say what is not so"
        assert len(good) >= 3, f"bit {place} costs more than one message"
        assert damage or place // 8 in in_bodies, f"bit {place} is not noticed"


def test_a_lost_place_costs_what_lay_there() -> None:
    bodies = [os.urandom(3000) for _ in range(12)]
    data, extents = packed(*bodies)
    gap = slice(extents[3].offset + 10, extents[5].offset + 10)
    damaged = data[: gap.start] + bytes(gap.stop - gap.start) + data[gap.stop :]
    good = [entry.extent for entry in scanned(damaged)[0] if readable(damaged, entry)]
    assert good == extents[:3] + extents[6:]
    # What follows a gap may also lie elsewhere than it did.
    moved = data[: gap.start] + data[gap.stop :]
    entries = [entry for entry in scanned(moved)[0] if readable(moved, entry)]
    assert [h.remote_id for h in headers(entries)] == [f"1:{n}" for n in (0, 1, 2, *range(6, 12))]


def test_a_record_of_another_pack_is_none_of_this_one() -> None:
    data, [first, _] = packed(b"one", b"two")
    strange, [extent] = packed(b"planted", pack=OTHER)
    record = strange[strange.index(b'{"v":2', 20) - 8 : extent.offset + extent.length]
    damaged = data[: first.offset] + record + data[first.offset + first.length :]
    found = [one.sha256 for one in headers(scanned(damaged)[0])]
    assert hashlib.sha256(b"two").digest() in found
    assert hashlib.sha256(b"planted").digest() not in found


def test_a_pack_under_another_name_is_read() -> None:
    data, extents = packed(b"one", b"two", pack=OTHER)
    assert [entry.extent for entry in scanned(data)[0]] == extents


class _Disk(io.BytesIO):
    """A file that counts what is read of it, and has a sector that can't be."""

    bad = range(0)
    errno = errno.EIO
    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = super().read(size)
        if start < self.bad.stop and start + len(data) > self.bad.start:
            raise OSError(self.errno, os.strerror(self.errno))
        self.read_bytes += len(data)
        return data


def test_a_sector_that_the_disk_cannot_read_costs_what_lay_there() -> None:
    bodies = [os.urandom(9000) for _ in range(60)]
    data, extents = packed(*bodies)
    disk = _Disk(data)
    damage: list[Damaged] = []
    disk.bad = range(extents[20].offset - 100, extents[20].offset + 4000)
    entries = list(scan(disk, PACK, on_damage=damage.append))
    assert [entry.extent for entry in entries] == extents[:20] + extents[21:]
    assert "Input/output error" in str(damage[0])


class _Sectors(io.RawIOBase):
    """A file as the kernel gives it: a read ends short of a page that can't be read, and the next
    one, which begins in it, fails."""

    def __init__(self, data: bytes, bad: set[int]) -> None:
        super().__init__()
        self._data, self._bad, self._at = data, bad, 0
        self.failed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        stop = min(self._at + len(buffer), len(self._data))
        for page in range(self._at // 4096, -(-stop // 4096)):
            if page in self._bad:
                stop = page * 4096
                break
        if stop <= self._at < len(self._data):
            self.failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        count = max(0, stop - self._at)
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        return count


@pytest.mark.parametrize("size", [1_500, 9_000])
@pytest.mark.parametrize("headers_in_bad_sectors", [[10], [10, 25], [10, 12, 25, 40, 41]])
def test_what_lies_between_sectors_that_cannot_be_read_is_found(
    size: int, headers_in_bad_sectors: list[int]
) -> None:
    data, extents = packed(*[os.urandom(size) for _ in range(60)])
    bad = {(extents[number].offset - 100) // 4096 for number in headers_in_bad_sectors}
    begins = [0, *[extent.offset + extent.length for extent in extents]]
    whole = [
        extent
        for begin, extent in zip(begins, extents, strict=False)
        if bad.isdisjoint(range(begin // 4096, (sum(extent) - 1) // 4096 + 1))
    ]
    disk = _Sectors(data, bad)
    entries = list(scan(io.BufferedReader(disk), PACK, on_damage=lambda _: None))
    assert {entry.extent for entry in entries} >= set(whole)
    assert disk.failed <= 6 * len(bad), "a disk takes seconds for each of these"


def test_a_message_in_such_a_sector_is_damaged_and_no_other() -> None:
    data, extents = packed(*[os.urandom(9000) for _ in range(3)])
    disk = _Disk(data)
    disk.bad = range(extents[1].offset + 4000, extents[1].offset + 4512)
    with pytest.raises(Damaged, match="can't be read: Input/output error"):
        list(HashingReader(disk, extents[1]).chunks())
    for extent in (extents[0], extents[2]):
        assert sum(map(len, HashingReader(disk, extent).chunks())) == 9000


@pytest.mark.parametrize("first_bad_record", [False, True])
def test_a_disk_that_goes_away_says_nothing_of_what_lies_there(first_bad_record: bool) -> None:
    """Neither of the record that is read then, nor of what is looked for behind a damaged one."""
    data, extents = packed(*[os.urandom(300_000) for _ in range(3)])
    damaged = bytearray(data)
    damaged[30] ^= first_bad_record
    disk = _Disk(damaged)
    disk.bad, disk.errno = range(extents[0].offset, len(data)), errno.ESTALE
    with pytest.raises(OSError, match="Stale file handle"):
        list(scan(disk, PACK, on_damage=lambda _: None))


def test_a_message_that_compresses_well_is_never_in_memory_as_a_whole() -> None:
    data, [extent] = packed(bytes(20_000_000))
    assert extent.length < 2_000
    reader = HashingReader(io.BytesIO(data), extent)
    assert max(map(len, reader.chunks())) <= 1 << 18
    assert (reader.size, reader.digest()) == (
        20_000_000,
        hashlib.sha256(bytes(20_000_000)).digest(),
    )


def test_a_pack_that_the_disk_does_not_find_again_is_damaged(tmp_path: Path) -> None:
    class Disk(DirectoryStore):
        def _file(self, *_: object) -> io.RawIOBase:
            raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN))

    archive, damage = Disk(tmp_path), list[Corrupt]()
    with pytest.raises(Corrupt, match="can't be read: Structure needs cleaning"):
        archive.open(PACK, PACK, Extent(0, 9), sha256=bytes(32), size=9)
    assert list(archive.scan(PACK, PACK, on_damage=damage.append)) == []
    assert "can't be read: Structure needs cleaning" in str(damage[0])


def test_the_next_record_is_looked_for_in_one_pass_whatever_the_mail_holds() -> None:
    """A mail of nothing but beginnings of long headers must not be read once for each of them."""
    false = b"\x50\x2a\x4d\x18\x00\x09\x3d\x00" + b'{"v":2,"pack":"%s",' % OTHER.hex.encode()
    hostile = b"".join(os.urandom(20) + false for _ in range(60_000))
    data, extents = packed(b"before", hostile, b"after")
    # As it would lie there if it could not be compressed, and the record is damaged.
    start = extents[1].offset
    disk = _Disk(data[:start] + hostile + data[extents[2].offset - 500 :])
    entries = list(scan(disk, PACK, on_damage=lambda _: None))
    assert [RecordHeader.parse(e.header).remote_id for e in entries] == ["1:0", "1:2"]
    assert disk.read_bytes < 2 * len(disk.getvalue())


def test_a_pack_of_the_first_format_is_read_up_to_its_first_bad_byte() -> None:
    data = OLD_PACK.read_bytes()
    entries, damage = scanned(data)
    found = headers(entries)
    assert [one.remote_id for one in found] == [f"1:{n}" for n in range(1, 9)]
    assert found[0].labels == ("\\Seen", "grün")
    assert (found[0].thread_id, found[0].origin.archived_at) == ("", "")
    assert all(readable(data, entry) for entry in entries)
    assert not damage
    cut = bytearray(data)
    cut[entries[4].extent.offset] ^= 1
    entries, damage = scanned(bytes(cut))
    assert len(entries) == 4
    assert len(damage) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"sha256": "00"}, "SHA-256"),
        ({"size": "x"}, "ValueError"),
        ({"remote_id": []}, "remote_id"),
    ],
)
def test_a_header_that_lacks_something_is_of_no_use(given: dict[str, Any], why: str) -> None:
    data, _ = packed(b"one")
    fields = {**scanned(data)[0][0].header, **given}
    with pytest.raises(ValueError, match=why):
        RecordHeader.parse({key: value for key, value in fields.items() if value != []})
