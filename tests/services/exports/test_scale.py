"""Exports of many messages: memory does not grow with them, and others read all of them back.

EXPORT_MESSAGES=50000 makes it as large as one likes.
"""

import hashlib
import json
import mailbox
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ingestion.models import Folder, IngestionSource, Mailbox, Message, Pack, Placement
from ingestion.packs.store import store
from ingestion.services.archive import storage
from tests.servers.command_line import CommandLine
from tests.services.exports.test_formats import manifest

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = int(os.environ.get("EXPORT_MESSAGES", "1000"))
_OF_A_PACK = 2_500
_MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


@pytest.fixture
def many(source: IngestionSource) -> set[str]:
    """Archive COUNT messages of 2 to 8 kB, by COPY's speed; return their SHA-256."""
    storage.require()
    box = Mailbox.objects.create(source=source, remote_id="ada", address="ada@example.com")
    folder = Folder.objects.create(mailbox=box, remote_id="INBOX", path="INBOX", role="inbox")
    hashes: set[str] = set()
    for start in range(0, COUNT, _OF_A_PACK):
        bodies = [_mail(number) for number in range(start, min(start + _OF_A_PACK, COUNT))]
        with store().writer(source.pk) as writer:
            extents = writer.append([("{}", body) for body in bodies])
            size = writer.commit()
        pack = Pack.objects.create(
            id=writer.pack_id, source=source, size_bytes=size, message_count=len(bodies)
        )
        messages = [
            Message(
                mailbox=box, pack=pack, sha256=hashlib.sha256(body).digest(), size_bytes=len(body),
                pack_offset=extent.offset, pack_length=extent.length, subject=f"S{start + n}",
            )
            for n, (body, extent) in enumerate(zip(bodies, extents, strict=True))
        ]  # fmt: skip
        Message.objects.bulk_create(messages)
        Placement.objects.bulk_create(
            Placement(mailbox=box, folder=folder, message=m, remote_id=f"1:{start + n}")
            for n, m in enumerate(messages)
        )
        hashes |= {message.sha256_hex for message in messages}
    return hashes


def _mail(number: int) -> bytes:
    line = b"From the office, number %d: nothing new here, as always.\r\n" % number
    head = b"From: a@example.com\r\nMessage-ID: <%d@example.com>\r\nSubject: S%d\r\n\r\n"
    return head % (number, number) + line * (30 + number % 100)


def exported(manage: CommandLine, kind: str, to: Path, *more: str) -> int:
    """Export by a process; return the most memory it had, in MB."""
    command = manage._words(("export", "--format", kind, "--to", str(to), *more))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command],
        cwd=Path(__file__).parents[3], env=manage.env, capture_output=True, check=True,
    )  # fmt: skip
    return int(done.stdout) // 1024


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_memory_does_not_grow_and_python_and_notmuch_read_all_of_it(
    many: set[str], manage: CommandLine, tmp_path: Path
) -> None:
    few = exported(manage, "eml", tmp_path / "few", f"--query=source:{'0' * 32}")
    peaks = {kind: exported(manage, kind, tmp_path / kind) for kind in ("mbox", "eml", "maildir")}
    print(f"{COUNT:,} messages: {peaks} MB, nothing: {few} MB")
    assert len(many) == COUNT
    # A batch of rows, and what reading the first message loads.
    assert max(peaks.values()) < few + 60

    with zipfile.ZipFile(tmp_path / "eml") as archive:
        mails = (name for name in archive.namelist() if name.endswith(".eml"))
        assert {sha256(archive.read(name)) for name in mails} == many

    (tmp_path / "out").mkdir()
    untar = ["tar", "--extract", f"--file={tmp_path}/maildir", f"--directory={tmp_path}/out"]
    subprocess.run(untar, check=True)
    config = tmp_path / "notmuch"
    user = "[user]\nname=x\nprimary_email=x@example.com\n"
    config.write_text(f"[database]\npath={tmp_path}/out/ada@example.com\n[new]\n{user}")
    notmuch = ["notmuch", f"--config={config}"]
    subprocess.run([*notmuch, "new", "--quiet"], check=True, capture_output=True)
    search = [*notmuch, "search", "--output=files", "*"]
    files = subprocess.run(search, check=True, capture_output=True, text=True).stdout.split()
    assert {sha256(Path(file).read_bytes()) for file in files} == many
    assert {entry["sha256"] for entry in manifest(tmp_path / "out")} == many

    with zipfile.ZipFile(tmp_path / "mbox") as archive:
        archive.extractall(tmp_path / "mbox.out")
        entries = archive.read("manifest.jsonl").splitlines()
    # Python's own reader: what is between two "From " lines, without the line between messages.
    box = mailbox.mbox(tmp_path / "mbox.out" / "mail.mbox", create=False)
    read = (box.get_bytes(key).replace(b"\n>From ", b"\nFrom ") for key in box.iterkeys())
    assert {sha256(data) for data in read} == many
    assert {json.loads(entry)["sha256"] for entry in entries} == many
    box.close()
