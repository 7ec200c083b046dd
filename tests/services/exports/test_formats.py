"""The files of an export, read back by Python, mutt and notmuch: bytes, names, and going on."""

import datetime as dt
import hashlib
import io
import json
import mailbox
import os
import random
import re
import subprocess
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.types import Body, SpooledBody
from ingestion.services.archive.exports import mbox, names
from ingestion.services.archive.exports.formats import FORMATS, Writer
from ingestion.services.archive.exports.items import Item, Place
from ingestion.services.archive.exports.zips import Zip

NOW = dt.datetime(2024, 5, 31, 12, 0, 1, tzinfo=dt.UTC)
BODIES = [
    b"Subject: plain\r\n\r\nBody\r\n",
    b"Subject: unix\n\nFrom here\n>From there\n>>>From everywhere\nFrom\n>Fro\n",
    b"Subject: no newline at the end\r\n\r\nFrom ",
    b"From nobody@example.com\r\nSubject: begins so\r\n\r\n\r\n",
    b"Subject: ends with two\n\nx\n\n",
    b"",
    b"\n",
    b"Subject: \xff\x00\x1a bytes\r\n\r\n" + bytes(range(256)),
    b"Subject: bare returns\r\rFrom x\r\n\r\nFrom y\n",
]
HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "", "CON", "nul.txt", "COM1", "a/b\\c", "a:b", "a\0b",
    "line\nfeed", "tab\t", "trailing. ", "-rf", "~root", "\u202eexe.txt", "x" * 500, "ü" * 200, "\ud800", "a" * 300 + "/" + "b" * 300,
]  # fmt: skip


def an_item(number: int, body: bytes, *places: Place, **known: Any) -> Item:
    about = {
        "id": uuid.UUID(int=number),
        "sha256": hashlib.sha256(body).hexdigest(),
        "size": len(body),
        "mailbox": "ada@example.com",
        "subject": f"Subject {number}",
        "received_at": NOW,
        "sent_at": None,
        "archived_at": NOW,
        "places": places or (place("INBOX", "inbox"),),
    }
    return Item(**{**about, **known})


def place(path: str, role: str = "", *labels: str, removed: bool = False) -> Place:
    return Place(path, role, labels, NOW, NOW if removed else None, "generic_imap")


def spooled(body: bytes) -> SpooledBody:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - freed with the body
    file.write(body)
    return SpooledBody(file, len(body))


def written(kind: str, items: list[tuple[Item, Body]]) -> bytes:
    writer = FORMATS[kind](io.BytesIO(), io.BytesIO(), io.BytesIO(), NOW)
    return b"".join(_all(writer, items))


def _all(writer: Writer, items: list[tuple[Item, Body]]) -> Iterator[bytes]:
    yield from writer.begin()
    for item, body in items:
        yield from writer.message(item, body)
    yield from writer.end()


def unpacked(kind: str, data: bytes, to: Path) -> Path:
    if FORMATS[kind].extension.endswith("zip"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            archive.extractall(to)
    else:
        to.mkdir(exist_ok=True)
        untar = ["tar", "--extract", "--directory", str(to)]
        done = subprocess.run(untar, input=data, capture_output=True, check=True)
        assert not done.stderr, "it tells of names that lead elsewhere"
    return to


def manifest(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "manifest.jsonl").read_bytes().splitlines()]


def bytes_of(root: Path, entry: dict[str, Any]) -> bytes:
    """Read a message as README.txt says."""
    data: bytes = (root / entry["path"]).read_bytes()
    if "offset" in entry:
        data = data[entry["offset"] :][: entry["length"]]
        return re.sub(rb"(?m)^>(>*From )", rb"\1", data)
    return data


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("make", [bytes, spooled])
def test_every_byte_comes_back_and_the_sums_are_right(kind: str, make: Any, tmp_path: Path) -> None:
    items = [(an_item(n, body), make(body)) for n, body in enumerate(BODIES)]

    root = unpacked(kind, written(kind, items), tmp_path)

    for _, body in items:
        if isinstance(body, SpooledBody):
            body.close()
    found = manifest(root)
    assert [entry["id"] for entry in found] == [str(item.id) for item, _ in items]
    assert [bytes_of(root, entry) for entry in found] == BODIES
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "9 of 9 messages" in (root / "README.txt").read_text()


def test_lines_that_begin_with_from_are_quoted_wherever_pieces_end() -> None:
    chance = random.Random(3)
    pieces = [b"From ", b"Fro", b"m ", b">", b">>", b"\n", b"x", b"\r\n", b"From x\n>>From "]
    for _ in range(2_000):
        chunks = [b"".join(chance.choices(pieces, k=3)) for _ in range(chance.randrange(5))]
        whole = b"".join(chunks)
        quoted = b"".join(mbox.quoted(iter(chunks)))
        assert quoted == re.sub(rb"(?m)^(>*From )", rb">\1", whole)
        assert re.sub(rb"(?m)^>(>*From )", rb"\1", quoted) == whole


@pytest.mark.parametrize("kind", FORMATS)
def test_names_of_strangers_lead_nowhere_and_do_not_meet(kind: str, tmp_path: Path) -> None:
    items: list[tuple[Item, Body]] = []
    for n, name in enumerate(HOSTILE):
        body = b"Subject: %d\n\n" % n
        items.append((an_item(n, body, place(name), mailbox=name, subject=name), body))

    root = unpacked(kind, written(kind, items), tmp_path / "in")

    assert list(tmp_path.iterdir()) == [root]
    assert [bytes_of(root, entry) for entry in manifest(root)] == [body for _, body in items]
    paths = [str(path.relative_to(root)) for path in root.rglob("*")]
    assert all(part.isprintable() for part in paths)
    if kind == "eml":
        forbidden = re.compile(r'[<>:"\\|?*]|(^|/)(con|nul|com1)(\.|/|$)|[. ](/|$)', re.IGNORECASE)
        assert not [path for path in paths if forbidden.search(path)]


def test_names_that_had_to_be_mended_stay_different() -> None:
    assert len({names.safe(text) for text in HOSTILE}) == len(HOSTILE)
    assert names.safe("Entwürfe 2024") == "Entwürfe 2024"
    assert names.safe("a:b") != names.safe("a?b") != names.safe("a_b")
    assert all(len(names.safe(text).encode()) <= 100 for text in HOSTILE)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_that_goes_on_after_a_kill_has_the_same_bytes(kind: str) -> None:
    paths = ["INBOX", "Archive/2024", "Archive/2024.x"]
    items = [(an_item(n, b, place(paths[n % 3])), b) for n, b in enumerate(BODIES * 4)]
    at = NOW

    def run(killed_after: set[int]) -> bytes:
        files = [io.BytesIO() for _ in range(3)]
        out, entries, directory = files
        writer = FORMATS[kind](entries, directory, io.BytesIO(), at)
        out.writelines(writer.begin())
        for n, (item, body) in enumerate(items):
            if n == 7:
                writer.left_out(item, "damaged")
                continue
            out.writelines(writer.message(item, body))
            if n % 5 == 4:
                out.writelines(writer.pause())
                lengths, state = [file.tell() for file in files], json.dumps(writer.state())
                if n in killed_after:
                    out.write(b"half of a messa")
                    entries.write(b'{"id": "hal')
                    directory.write(b"PK")
                    for file, length in zip(files, lengths, strict=True):
                        file.truncate(length)
                    writer = FORMATS[kind](entries, directory, io.BytesIO(), at)
                    writer.go_on(json.loads(state), out)
                    out.seek(lengths[0])
        out.writelines(writer.end())
        return out.getvalue()

    whole = run(set())
    assert run({4, 14, 19, 34}) == whole


def test_a_maildir_has_folders_and_flags_and_one_copy_of_each_message(tmp_path: Path) -> None:
    body = b"Subject: x\r\n\r\n"
    inbox = place("INBOX", "inbox", "\\Seen", "\\Answered", "$Forwarded", "\\Flagged")
    places = (inbox, place("Kunden/Größe.x", ""), place("Old", removed=True))
    data = written("maildir", [(an_item(1, body, *places), body)])

    root = unpacked("maildir", data, tmp_path) / "ada@example.com"

    [entry] = manifest(tmp_path)
    assert entry["path"].endswith(".archive:2,FPRS")
    assert [folder["path"] for folder in entry["folders"]] == ["INBOX", "Kunden/Größe.x", "Old"]
    there = mailbox.Maildir(root)
    assert sorted(there.list_folders()) == ["Kunden.Gr&APYA3w-e_x"]
    [message] = list(there)
    assert message.get_flags() == "FPRS"
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) == [
        "cur",
        "new",
        "tmp",
    ]
    linked = root / ".Kunden.Gr&APYA3w-e_x" / "cur"
    assert [path.stat().st_nlink for path in linked.iterdir()] == [2]


def test_what_gmail_has_in_all_mail_is_filed_by_its_labels() -> None:
    labels = ("INBOX", "UNREAD", "CATEGORY_SOCIAL", "Work/2024", "STARRED", "IMPORTANT")
    gmail = place("All Mail", "all", *labels)._replace(provider="google")
    by_imap = place("[Gmail]/All Mail", "all", "\\Inbox", "\\Seen", "Work/2024", "\\Important")

    filed = an_item(1, b"", gmail).filed
    assert [(f.path, f.role, set(f.flags)) for f in filed] == [
        ("INBOX", "inbox", {"\\Flagged"}),
        ("Work/2024", "", {"\\Flagged"}),
    ]
    filed = an_item(1, b"", by_imap).filed
    assert [(f.path, f.role, set(f.flags)) for f in filed] == [
        ("INBOX", "inbox", {"\\Seen"}),
        ("Work/2024", "", {"\\Seen"}),
    ]
    gone = an_item(1, b"", place("A", removed=True))
    assert [f.path for f in gone.filed] == ["A"]


def test_a_zip_beyond_four_gigabytes_and_65535_files_is_read_by_others(tmp_path: Path) -> None:
    file = tmp_path / "large.zip"
    with tempfile.TemporaryFile() as directory, file.open("wb") as out:
        archive = Zip(directory)
        archive.go_on({"offset": 5_000_000_000, "count": 0, "growing": None})
        out.truncate(5_000_000_000)
        out.seek(5_000_000_000)
        for number in range(70_000):
            out.writelines(archive.file(f"{number}.eml", b"%d" % number, NOW))
        out.writelines(archive.finish())

    with zipfile.ZipFile(file) as found:
        assert len(found.namelist()) == 70_000
        assert found.read("69999.eml") == b"69999"
        assert found.infolist()[-1].header_offset > 5_000_000_000


def test_mutt_and_notmuch_read_it(tmp_path: Path) -> None:
    bodies = [
        b"From: a@example.com\r\nMessage-ID: <%d@example.com>\r\nSubject: S%d\r\n\r\nFrom me\r\n\r\n"
        % (n, n)
        for n in range(30)
    ]
    items: list[tuple[Item, Body]] = [(an_item(n, body), body) for n, body in enumerate(bodies)]
    maildir = unpacked("maildir", written("maildir", items), tmp_path / "maildir")
    box = unpacked("mbox", written("mbox", items), tmp_path / "mbox")

    for read in (maildir / "ada@example.com", box / "mail.mbox"):
        shown = _shown_by_mutt(read, tmp_path)
        assert "Msgs:30" in shown
        assert all(f"<S{n}>" in shown for n in range(20))
    (tmp_path / "notmuch").write_text(
        f"[database]\npath={maildir}/ada@example.com\n[new]\n[user]\nname=x\nprimary_email=x@example.com\n"
    )
    notmuch = ["notmuch", f"--config={tmp_path}/notmuch"]
    subprocess.run([*notmuch, "new", "--quiet"], check=True, capture_output=True)
    found = subprocess.run(
        [*notmuch, "search", "--output=files", "*"], check=True, capture_output=True
    )
    files = [Path(line.decode()) for line in found.stdout.splitlines()]
    assert sorted(path.read_bytes() for path in files) == sorted(bodies)


def _shown_by_mutt(read: Path, tmp_path: Path) -> str:
    """Return mutt's index: how many messages it sees, and the first of them."""
    (tmp_path / "muttrc").write_text(
        f"set folder={tmp_path}\nset quit=yes\nset index_format='<%s>'\npush '<exit>'\n"
    )
    mutt = f"mutt -n -R -F {tmp_path}/muttrc -f {read}"
    return subprocess.run(
        ["script", "-qec", mutt, "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=60,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "TERM": "xterm"},
    ).stdout
