"""What must reach the disk before a pack counts: its bytes, then its name, then its directory."""

import os
import uuid
from pathlib import Path

import pytest

from ingestion.packs.directory import DirectoryStore


def test_a_pack_has_its_bytes_on_disk_before_its_name_and_its_name_before_commit_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source_id = DirectoryStore(tmp_path / "archive"), uuid.uuid4()
    with store.writer(source_id) as writer:
        record = ('{"sha256":""}', b"a message")
        writer.append([record])
        done: list[tuple[str, str]] = []
        fsync, rename = os.fsync, os.rename

        def note_fsync(fd: int) -> None:
            fsync(fd)
            done.append(("fsync", Path(f"/proc/self/fd/{fd}").readlink().suffix))

        def note_rename(old: Path, new: Path) -> None:
            assert Path(old).stat().st_size > 50, "something is still in the buffer"
            rename(old, new)
            done.append(("rename", Path(new).suffix))

        # The system's calls, still made: only the order is noted.
        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "rename", note_rename)
        writer.commit()
    assert done == [("fsync", ".partial"), ("rename", ".pack"), ("fsync", "")]


def test_a_new_directory_is_on_disk_before_a_pack_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[str] = set()
    fsync = os.fsync

    def note(fd: int) -> None:
        fsync(fd)
        synced.add(str(Path(f"/proc/self/fd/{fd}").readlink()))

    monkeypatch.setattr(os, "fsync", note)
    with DirectoryStore(tmp_path / "archive").writer(uuid.uuid4()):
        assert {str(tmp_path / "archive"), str(tmp_path)} <= synced


def test_a_directory_that_is_made_anew_is_not_taken_for_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source_id = DirectoryStore(tmp_path / "archive"), uuid.uuid4()
    with store.writer(source_id):
        pass
    store.delete_source(source_id)
    made: list[Path] = []
    synced: set[str] = set()
    fsync, mkdir = os.fsync, os.mkdir

    def note(fd: int) -> None:
        fsync(fd)
        synced.add(str(Path(f"/proc/self/fd/{fd}").readlink()))

    def another_comes(path: Path, mode: int = 0o777) -> None:
        mkdir(path, mode)
        made.append(path)
        if len(made) == 1:
            with store.writer(source_id):  # as another thread may, in this very instant
                assert str(store.root) in synced

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "mkdir", another_comes)
    with store.writer(source_id):
        assert made[0] == store.root / str(source_id)
