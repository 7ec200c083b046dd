"""The formats of an export: one file of messages, with what is told of each and how to check it.

    mbox      a zip of mail.mbox (`mbox`)
    maildir   a tar: a Maildir++ for each mailbox, "<address>/.<Folder>.<Sub>/cur/<name>:2,<flags>"
    eml       a zip: "<address>/<folder>/<sub>/<date> <subject> <id>.eml"

and in each of them manifest.jsonl, SHA256SUMS and README.txt, at the end. Knows no database. Memory
depends on the number of folders, and on nothing else.
"""

import datetime as dt
import hashlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, Any, ClassVar

from imapclient import imap_utf7

from connectors.types import CHUNK_BYTES, Body, SpooledBody
from ingestion.services.archive.exports import mbox, names
from ingestion.services.archive.exports.items import Filed, Item, Place
from ingestion.services.archive.exports.tars import Tar
from ingestion.services.archive.exports.zips import Zip
from ingestion.states import FolderRole

_README = """\
Mail taken out of an archive: {done:,} of {total:,} messages.{unreadable}{note}

{layout}
manifest.jsonl has one JSON object for each message, in this order: its id in the archive, SHA-256
and size in bytes, mailbox, folders with labels (removedAt: no longer there at the provider), dates,
and its position here{position}. One that could not be read has the reason, "error", instead.

SHA256SUMS is for "sha256sum --check SHA256SUMS", after everything was unpacked.
"""


class Writer(ABC):
    """Makes the file. Each method yields what is to be written next.

    `manifest`, `directory` and `sums` are three empty files of its own, which hold what comes at
    the end. `state`, at any `pause`, is where it is: another writer may `go_on` from there, with
    the first two and the export cut to their lengths of then, and writes the same bytes as this one
    would.
    """

    extension: ClassVar[str]
    content_type: ClassVar[str]
    _layout: ClassVar[str]
    _position: ClassVar[str] = ""

    def __init__(
        self, manifest: IO[bytes], directory: IO[bytes], sums: IO[bytes], at: dt.datetime
    ) -> None:
        self._manifest, self._checksums, self._at = manifest, sums, at
        self._zip = Zip(directory)
        self.done = self.unreadable = 0

    def begin(self) -> Iterator[bytes]:
        """Write what comes before the first message."""
        yield from ()

    @abstractmethod
    def message(self, item: Item, body: Body) -> Iterator[bytes]:
        """Add a message."""

    def left_out(self, item: Item, reason: str) -> None:
        """Note a message that can't be read."""
        self.unreadable += 1
        self._write({**_told(item), "error": reason})

    def pause(self) -> Iterator[bytes]:
        """Have everything written that was added."""
        yield from ()

    def state(self) -> dict[str, Any]:
        return {"done": self.done, "unreadable": self.unreadable, "zip": self._zip.state()}

    def go_on(self, state: dict[str, Any], export: IO[bytes]) -> None:
        """Be where the writer of `state` was; `export` is what it wrote until then."""
        del export
        self.done, self.unreadable = state["done"], state["unreadable"]
        self._zip.go_on(state["zip"])
        self._manifest.seek(0, os.SEEK_END)

    def end(self, note: str = "") -> Iterator[bytes]:
        """Write what comes after the last message. `note`: more that README.txt says."""
        text = _README.format(
            done=self.done,
            total=self.done + self.unreadable,
            unreadable=f" {self.unreadable:,} could not be read." if self.unreadable else "",
            note=note,
            layout=self._layout,
            position=self._position,
        )
        yield from self._sums(self._checksums)
        size = self._manifest.seek(0, os.SEEK_END)
        # Not closed here: they are the caller's.
        about = (
            ("README.txt", text.encode()),
            ("manifest.jsonl", SpooledBody(self._manifest, size)),
            ("SHA256SUMS", SpooledBody(self._checksums, self._checksums.tell())),
        )
        for name, body in about:
            yield from self._file(name, body, self._at)
        yield from self._finish()

    def _file(self, name: str, body: Body, at: dt.datetime) -> Iterator[bytes]:
        return self._zip.file(name, body, at)

    def _finish(self) -> Iterator[bytes]:
        return self._zip.finish()

    def _sums(self, sums: IO[bytes]) -> Iterator[bytes]:
        """Write the SHA-256 of each file, as sha256sum does. Yields b"", often: who writes may
        break off."""
        for number, entry in enumerate(_entries(self._manifest)):
            if number % 1_000 == 0:
                yield b""
            for path in [entry["path"], *entry.get("links", ())] if "path" in entry else ():
                sums.write(f"{entry['sha256']}  {path}\n".encode())

    def _noted(self, item: Item, position: dict[str, Any]) -> None:
        self.done += 1
        self._write({**_told(item), **position})

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        self._manifest.write(line.encode("utf-8", "replace") + b"\n")


class Mbox(Writer):
    extension, content_type = "mbox.zip", "application/zip"
    _layout = (
        'mail.mbox is an mbox in the variant "mboxrd": a line of a message that begins with\n'
        '"From ", after any number of ">", has one ">" more than it had.\n'
    )
    _position = (
        ': "offset" and "length", in\nbytes of mail.mbox, are those of the message alone. Take one'
        ' ">" away from each line that begins\nwith ">From ", after any number of ">", and it is'
        " the message as it was archived, bit for bit.\n"
        'Where "newlineAdded" is true it did not end with a newline, and one stands behind it'
    )
    _name = "mail.mbox"

    def __init__(
        self, manifest: IO[bytes], directory: IO[bytes], sums: IO[bytes], at: dt.datetime
    ) -> None:
        super().__init__(manifest, directory, sums, at)
        self._hash = hashlib.sha256()
        self._begun_at = 0
        self._unhashed: IO[bytes] | None = None

    def begin(self) -> Iterator[bytes]:
        for chunk in self._zip.begin(self._name, self._at):
            self._begun_at += len(chunk)
            yield chunk

    def message(self, item: Item, body: Body) -> Iterator[bytes]:
        yield from self._grow(mbox.from_line(item.id, item.at))
        offset, last = self._zip.grown, b""
        for chunk in mbox.quoted(body.chunks() if isinstance(body, SpooledBody) else (body,)):
            last = chunk[-1:] or last
            yield from self._grow(chunk)
        length, added = self._zip.grown - offset, last != b"\n"
        yield from self._grow(b"\n\n" if added else b"\n")
        position = {"path": self._name, "offset": offset, "length": length}
        self._noted(item, {**position, "newlineAdded": added})

    def pause(self) -> Iterator[bytes]:
        return self._zip.flush()

    def go_on(self, state: dict[str, Any], export: IO[bytes]) -> None:
        for header in self.begin():
            del header  # it is there
        super().go_on(state, export)
        self._unhashed = export  # once, at the end: there are as many slices as mail is long

    def end(self, note: str = "") -> Iterator[bytes]:
        yield from self._zip.end()
        if self._unhashed:
            yield from self._hashed(self._unhashed)
        yield from super().end(note)

    def _grow(self, chunk: bytes) -> Iterator[bytes]:
        if self._unhashed is None:
            self._hash.update(chunk)
        return self._zip.grow(chunk)

    def _hashed(self, export: IO[bytes]) -> Iterator[bytes]:
        """Hash the file that was written. Yields b"", often: who writes may break off."""
        export.seek(self._begun_at)
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        while not inflating.eof and (chunk := export.read(CHUNK_BYTES)):
            yield b""
            while chunk:  # whatever expands a thousandfold, a piece at a time
                self._hash.update(inflating.decompress(chunk, CHUNK_BYTES))
                chunk = inflating.unconsumed_tail
        export.seek(0, os.SEEK_END)

    def _sums(self, sums: IO[bytes]) -> Iterator[bytes]:
        yield b""
        sums.write(f"{self._hash.hexdigest()}  {self._name}\n".encode())


class Eml(Writer):
    extension, content_type = "eml.zip", "application/zip"
    _layout = "Each .eml file is a message as it was archived, bit for bit.\n"
    _position = ' ("path")'

    def message(self, item: Item, body: Body) -> Iterator[bytes]:
        folder = item.filed[0].path.split("/")
        where = names.safe(item.mailbox)
        path = names.safe_path(level for level in folder if level)
        about = names.words(item.subject, max_bytes=60)
        name = " ".join(filter(None, (f"{item.at:%Y-%m-%d}", about, str(item.id))))
        full = "/".join(filter(None, (where, path, f"{name}.eml")))
        yield from self._zip.file(full, body, item.at)
        self._noted(item, {"path": full})


class Maildir(Writer):
    extension, content_type = "maildir.tar", "application/x-tar"
    _layout = (
        "Each folder with the name of a mailbox is a Maildir, with subfolders as Maildir++ has\n"
        "them. Each file in a folder cur is a message as it was archived, bit for bit. One that\n"
        "lies in several folders is there by hard links.\n"
    )
    _position = ' ("path", and "links" in other folders)'

    #: cr.yp.to/proto/maildir.html: in the order of ASCII.
    _FLAGS: ClassVar[dict[str, str]] = {
        "\\Draft": "D",
        "\\Flagged": "F",
        "$Forwarded": "P",
        "\\Answered": "R",
        "\\Seen": "S",
        "\\Deleted": "T",
    }

    def __init__(
        self, manifest: IO[bytes], directory: IO[bytes], sums: IO[bytes], at: dt.datetime
    ) -> None:
        super().__init__(manifest, directory, sums, at)
        self._tar = Tar()
        self._made: set[str] = set()

    def message(self, item: Item, body: Body) -> Iterator[bytes]:
        paths: list[str] = []
        for filed in item.filed:
            folder = self._folder(item.mailbox, filed)
            yield from self._make(folder)
            flags = "".join(letter for flag, letter in self._FLAGS.items() if flag in filed.flags)
            path = f"{folder}cur/{int(item.at.timestamp())}.{item.id.hex}.archive:2,{flags}"
            if not paths:
                yield from self._tar.file(path, body, item.at)
            elif path not in paths:
                yield from self._tar.link(path, paths[0], item.at)
            if path not in paths:
                paths.append(path)
        links = {"links": paths[1:]} if len(paths) > 1 else {}
        self._noted(item, {"path": paths[0], **links})

    def go_on(self, state: dict[str, Any], export: IO[bytes]) -> None:
        super().go_on(state, export)
        for entry in _entries(self._manifest):
            for path in [entry["path"], *entry.get("links", ())] if "path" in entry else ():
                self._have_made(path.rpartition("cur/")[0])
        self._manifest.seek(0, os.SEEK_END)

    def _file(self, name: str, body: Body, at: dt.datetime) -> Iterator[bytes]:
        return self._tar.file(name, body, at)

    def _finish(self) -> Iterator[bytes]:
        return self._tar.finish()

    @staticmethod
    def _folder(mailbox: str, filed: Filed) -> str:
        """Return where a folder is: a Maildir++ of dots between the levels, in modified UTF-7."""
        root = names.safe(mailbox)
        if filed.role == FolderRole.INBOX or not filed.path:
            return f"{root}/"
        levels = [names.safe(level.replace(".", "_")) for level in filed.path.split("/") if level]
        path = "".join(f".{imap_utf7.encode(level).decode('ascii')}" for level in levels)
        if len(path) > 200:  # a name of a file system has 255 bytes
            path = f".{names.safe(filed.path.replace('/', '_').replace('.', '_'), max_bytes=80)}"
            path = imap_utf7.encode(path).decode("ascii")
        return f"{root}/{path}/"

    def _make(self, folder: str) -> Iterator[bytes]:
        """Make a Maildir with its three parts, and the one that it is in."""
        for one in (folder[: folder.index("/") + 1], folder):
            if one not in self._made:
                for part in ("", "cur/", "new/", "tmp/"):
                    yield from self._tar.directory(f"{one}{part}", self._at)
                self._have_made(one)

    def _have_made(self, folder: str) -> None:
        self._made |= {folder[: folder.index("/") + 1], folder}


FORMATS: dict[str, type[Writer]] = {"mbox": Mbox, "maildir": Maildir, "eml": Eml}


def _entries(manifest: IO[bytes]) -> Iterator[dict[str, Any]]:
    manifest.flush()
    manifest.seek(0)
    for line in manifest:
        yield json.loads(line)


def _told(item: Item) -> dict[str, Any]:
    return {
        "id": str(item.id),
        "sha256": item.sha256,
        "size": item.size,
        "mailbox": item.mailbox,
        "folders": [_folder(place) for place in item.places],
        "receivedAt": _time(item.received_at),
        "sentAt": _time(item.sent_at),
        "archivedAt": _time(item.archived_at),
    }


def _folder(place: Place) -> dict[str, Any]:
    return {
        "path": place.path,
        "labels": list(place.labels),
        "firstSeenAt": _time(place.first_seen_at),
        "removedAt": _time(place.removed_at),
    }


def _time(at: dt.datetime | None) -> str | None:
    return at.astimezone(dt.UTC).isoformat().replace("+00:00", "Z") if at else None
