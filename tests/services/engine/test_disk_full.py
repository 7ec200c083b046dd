"""A disk that fills while a pack is written: nothing half-written is visible or stays, the run says
so in words, and the import goes on when there is room."""

import contextlib
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from connectors.types import MessageRef, RawMessage
from ingestion.errors import LeaseLost
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Run
from ingestion.packs.store import store
from ingestion.services.engine.capture import Capture
from ingestion.services.engine.lease import Lease
from tests.servers import imap_source
from tests.servers.disk import file_sizes_limited
from tests.servers.imap_script import ImapScript
from tests.servers.imap_source import archived, held_by, stray_files

pytestmark = pytest.mark.django_db(transaction=True)

#: Leaves the archive's disk so many bytes for the length of a `with`.
Full = Callable[[Path, int], "contextlib.AbstractContextManager[str]"]


@contextlib.contextmanager
def a_small_tmpfs(root: Path, room_bytes: int) -> Iterator[str]:
    """A real ENOSPC, from a file system of its own that grows when the `with` ends."""
    subprocess.run(["mount", "-o", f"remount,size={room_bytes}", str(root)], check=True)
    yield "No space left on device"
    subprocess.run(["mount", "-o", "remount,size=1g", str(root)], check=True)


@contextlib.contextmanager
def a_limit_of_file_sizes(root: Path, room_bytes: int) -> Iterator[str]:
    """Not a full disk, but the same moment: write(2) itself fails, with EFBIG."""
    with file_sizes_limited(room_bytes):
        yield "File too large"


def _ways() -> list[Full]:
    """Only root may mount, and not in every container."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if os.geteuid() == 0:
            subprocess.run(
                ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
                check=True,
                capture_output=True,
            )
            return [a_small_tmpfs, a_limit_of_file_sizes]
    return [a_limit_of_file_sizes]


@pytest.fixture
def root(settings: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    path = tmp_path / "archive"
    path.mkdir()
    settings.ARCHIVE_DIR = path
    if request.node.callspec.params["full"] is not a_small_tmpfs:
        yield path
        return
    subprocess.run(["mount", "-t", "tmpfs", "none", str(path)], check=True)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        yield script


@pytest.mark.parametrize("full", _ways(), ids=lambda full: full.__name__)
@pytest.mark.parametrize(
    ("count", "size", "room"),
    [(60, 200_000, 3_000_000), (16, 200_000, 3_000_000), (2, 6_000_000, 9_000_000)],
    ids=["while a batch is packed", "when the pack is closed", "in one large message"],
)
def test_a_disk_that_fills_while_a_pack_is_written(
    server: ImapScript, root: Path, full: Full, count: int, size: int, room: int
) -> None:
    chance = random.Random(count)
    for number in range(count):
        server.inbox.deliver(b"Subject: %d\r\n\r\n" % number + chance.randbytes(size))
    source = imap_source.create(server)
    imap_source.start(source)
    with full(root, room) as words:
        for _ in range(2):
            mailbox = imap_source.work(source)
            assert mailbox.last_error_code == "storage"
            _assert_nothing_is_half_written(source)
            for said in (mailbox.last_error, Run.objects.get().warning):
                assert words in said
                assert "Free space" in said
        source.refresh_from_db()
        assert source.status == "importing"  # it waits, nobody has to press a button
    assert imap_source.finish(source).message == f"{count} archived."
    assert archived(source) == held_by(server)
    assert Message.objects.count() == count
    _assert_nothing_is_half_written(source)


def _assert_nothing_is_half_written(source: IngestionSource) -> None:
    assert not stray_files(source)
    for pack in Pack.objects.all():
        assert len(list(store().scan(source.pk, pack.pk))) == pack.message_count
    for message in Message.objects.select_related("pack"):
        assert imap_source.read(message)


def test_a_full_disk_costs_no_thread(settings: Any, tmp_path: Path) -> None:
    """Also where a pack can't even be begun."""
    settings.ARCHIVE_DIR = tmp_path
    mailbox = Mailbox(source=IngestionSource(), address="a@example.com")
    capture = Capture(
        Lease(mailbox.pk, 1, 0, timezone.now()),
        store=store(),
        run=Run(source=mailbox.source),
        mailbox=mailbox,
    )
    with capture.batch(Folder()) as empty:
        empty.commit()
    with pytest.raises(LeaseLost):
        capture.wait()  # there is no such mailbox; but the thread is there now
    with (
        file_sizes_limited(10),
        pytest.raises(OSError, match="File too large"),
        capture,
        capture.batch(Folder()) as batch,
    ):
        batch.add(RawMessage(MessageRef("1:1"), b"1"))
        batch.commit()
    assert not [t for t in threading.enumerate() if t.name.startswith("commit")]
    assert list(store().packs()) == []
