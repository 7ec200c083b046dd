"""Puts mail into an account: the one place where an IMAP server is written to. Never a source's.

What is there already is known by its bytes: whoever has the same size is read and hashed, once. So
the same mail can be put twice, or again after a kill, and lies there once.
"""

import datetime as dt
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from imapclient import imap_utf7

from connectors.config import Environment
from connectors.errors import FolderRefused, Unavailable
from connectors.generic_imap import syntax
from connectors.generic_imap.client import Login, enable, login
from connectors.generic_imap.commands import CommandRefused, by_uid, of_all
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.describing import items_of, number
from connectors.generic_imap.folders import list_folders, name_of, remote_id
from connectors.generic_imap.opening import examine
from connectors.generic_imap.uids import Uids
from connectors.types import Body, RemoteFolder, SpooledBody

_BODY = re.compile(rb"BODY\[\] \{(\d{1,19})\}\r?\n\Z", re.IGNORECASE)
_SIZES = "UID RFC822.SIZE"
#: How often all are asked for again where some were expunged meanwhile: EXPUNGE does not say who.
_MORE_LOOKS = 2
_SYSTEM_FLAGS = frozenset({"\\Seen", "\\Answered", "\\Flagged", "\\Draft"})
_KEYWORD = re.compile(r"\$?[A-Za-z0-9_-]{1,60}")
_ROLES = frozenset({"inbox", "sent", "drafts", "junk", "trash", "archive"})


class Print:
    """The size and SHA-256 of a message: as it is, and with the line ends that servers give it."""

    def __init__(self, body: Body) -> None:
        self.has_nul, exact, mended = False, hashlib.sha256(), hashlib.sha256()
        self.sizes, held = [0, 0], b""
        for chunk in body.chunks() if isinstance(body, SpooledBody) else (body,):
            self.has_nul |= b"\0" in chunk
            exact.update(chunk)
            data = held + chunk
            held = b"\r" if data.endswith(b"\r") else b""
            lines = _crlf(data[: len(data) - len(held)])
            mended.update(lines)
            self.sizes[0] += len(chunk)
            self.sizes[1] += len(lines)
        mended.update(held)
        self.sizes[1] += len(held)
        self.hashes = {exact.digest(), mended.digest()}


def _crlf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


class Account:
    """An account that mail is put into. A context manager."""

    def __init__(self, config: ImapConfig, environment: Environment) -> None:
        """Log in. Raises what `client.login` does."""
        self._login: Login = login(config, environment)
        enable(self._login)
        self._folders: dict[tuple[tuple[str, ...], str], _Folder] = {}
        self._listed = list_folders(self._login)
        self._prefix, self._delimiter = self._namespace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._login.close()

    def folder(self, levels: Sequence[str], role: str) -> "_Folder":
        """Return a folder by its role, or by its path; make it where it is missing.

        Raises FolderRefused, also where not all that is there can be known.
        """
        key = (tuple(levels), role)
        if key not in self._folders:
            found = self._known(levels, role) or self._made(levels)
            same = [f for f in self._folders.values() if f.remote.remote_id == found.remote_id]
            self._folders[key] = same[0] if same else _Folder(self._login, found)
        if self._folders[key].refused:
            raise FolderRefused(self._folders[key].refused)
        return self._folders[key]

    def _known(self, levels: Sequence[str], role: str) -> RemoteFolder | None:
        if role in _ROLES:
            for folder in self._listed:
                if folder.role == role:
                    return folder
        name = remote_id(self._name(levels))
        return next((folder for folder in self._listed if folder.remote_id == name), None)

    def _name(self, levels: Sequence[str]) -> bytes:
        """Return a name as the server writes it: modified UTF-7 (RFC 3501 section 5.1.3)."""
        delimiter = self._delimiter.decode("latin-1")
        plain = [level.replace(delimiter, "_") if delimiter else level for level in levels]
        encoded: bytes = imap_utf7.encode((delimiter or "_").join(plain))
        return self._prefix + encoded

    def _made(self, levels: Sequence[str]) -> RemoteFolder:
        name = self._name(levels)
        wire = self._login.wire
        status, _ = wire.run(b"CREATE", syntax.string(name))
        if not status.upper().startswith(b"OK") and b"ALREADYEXISTS" not in status.upper():
            path = "/".join(levels)
            raise FolderRefused(f"The server does not make the folder {path}: {wire.words(status)}")
        wire.run(b"SUBSCRIBE", syntax.string(name))  # for people to see it; no matter where not
        # As of a listing, which tells the name where it is too long for an id.
        state = {"name": name.decode("latin-1")}
        made = RemoteFolder(remote_id=remote_id(name), path="/".join(levels), state=state)
        self._listed.append(made)
        return made

    def _namespace(self) -> tuple[bytes, bytes]:
        """Return what a person's folders begin with, and what is between levels (RFC 2342)."""
        if self._login.can("NAMESPACE"):
            for response in self._login.wire.run(b"NAMESPACE")[1]:
                values = syntax.parse(response)
                if values[:1] == [b"NAMESPACE"] and len(values) > 1 and values[1]:
                    prefix, delimiter = values[1][0][:2]
                    return prefix or b"", delimiter or b""
        for response in self._login.wire.run(b'LIST "" ""')[1]:
            values = syntax.parse(response)
            if values[:1] == [b"LIST"] and len(values) > 2:
                return b"", values[2] or b""
        return b"", b""


class _Folder:
    def __init__(self, login: Login, remote: RemoteFolder) -> None:
        self.remote = remote
        self._login = login
        self._known: set[bytes] = set()
        #: Of each size the messages that nobody has read yet.
        self._unread: dict[int, list[int]] = {}
        #: Why nothing may be put here; "" where it may.
        self.refused = self._look()

    def has(self, known: Print) -> bool:
        """Tell whether the message lies here."""
        unread = [uid for size in set(known.sizes) for uid in self._unread.get(size, ())]
        if unread:
            if self._login.opened is None or self._login.opened[0] != self.remote.remote_id:
                examine(self._login, self.remote)
            for page in Uids((uid, uid) for uid in unread).pages(self._login.message_limit):
                for part in page.commands():
                    self._known.update(self._hashes(str(part)))
            for size in known.sizes:  # not before: who was not read could be put twice
                self._unread.pop(size, None)
        return bool(known.hashes & self._known)

    def put(self, body: Body, known: Print, *, flags: Iterable[str], at: dt.datetime | None) -> str:
        """Append a message; return "", or why the server does not take it.

        Raises Unavailable where the connection is lost: it may be there then, or not.
        """
        if known.has_nul:
            return "It has NUL bytes, which IMAP can't carry."
        kept = [f for f in sorted(flags) if f in _SYSTEM_FLAGS or _KEYWORD.fullmatch(f)]
        head = b"(" + " ".join(kept).encode() + b")"
        if at is not None:
            head += f' "{_internal_date(at)}"'.encode()
        wire = self._login.wire
        status, _ = wire.upload(b"APPEND", syntax.string(name_of(self.remote)), head, body=body)
        if not status.upper().startswith(b"OK"):
            return wire.words(status)
        self._known |= known.hashes
        return ""

    def _look(self) -> str:
        """Learn the sizes of all messages; return why nothing may be put here, if so: what is there
        and not known would be put twice."""
        login, path = self._login, self.remote.path
        try:
            found, missing = self._sizes()
            for _ in range(_MORE_LOOKS):
                if missing and login.expunged > len(login.vanished):
                    found, missing = self._sizes()
        except CommandRefused as error:
            problem = f"The server does not tell which messages are in {path}. {error}"
        else:
            for uid, size in found.items():
                self._unread.setdefault(size, []).append(uid)
            if not missing:
                return ""
            counted = len(found) + missing
            problem = f"The server shows {len(found):,} of {counted:,} messages in {path}."
        return (
            f"{problem} Nothing is put there, for it could be there already. Export to it again"
            " later."
        )

    def _sizes(self) -> tuple[dict[int, int], int]:
        """Return the sizes of all messages by UID, and how many the server may not have told."""
        examine(self._login, self.remote)
        found: dict[int, int] = {}
        parts = of_all(self._login, _SIZES)  # by SEARCH, which some cap, nobody learns all
        while True:
            learned = _learn(parts, found)
            missing = self._login.lacking(Uids((uid, uid) for uid in found))
            if not learned or not missing:
                return found, missing
            parts = by_uid(self._login, _SIZES, max(found) + 1)  # who came meanwhile

    def _hashes(self, uids: str) -> Iterator[bytes]:
        wire = self._login.wire
        tag = wire.command(f"UID FETCH {uids} (UID BODY.PEEK[])".encode())
        while not (line := wire.readline()).startswith(tag + b" "):
            announced = _BODY.search(line)
            if announced is None:
                wire.complete(line)
                continue
            body = wire.body(int(announced[1]))
            digest = hashlib.sha256()
            for chunk in body.chunks() if isinstance(body, SpooledBody) else (body,):
                digest.update(chunk)
            if isinstance(body, SpooledBody):
                body.close()
            wire.readline()  # what ends the response
            yield digest.digest()
        if b" OK" not in line.upper()[:20]:
            raise Unavailable(f"The server does not give back what is there: {wire.words(line)}")


def _learn(parts: Iterable[list[list[bytes]]], found: dict[int, int]) -> bool:
    """Add the sizes that responses tell, by UID; tell whether there was a message among them that
    was not known."""
    before = len(found)
    for response in itertools.chain.from_iterable(parts):
        items = items_of(response)
        uid, size = number(items.get(b"UID")), number(items.get(b"RFC822.SIZE"))
        if uid is not None and size is not None:
            found[uid] = size
    return len(found) > before


_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def _internal_date(at: dt.datetime) -> str:
    """Write a time as IMAP does (RFC 9051 section 9, date-time)."""
    moment = at.astimezone(dt.UTC)
    return f"{moment:%d}-{_MONTHS[moment.month - 1]}-{moment:%Y %H:%M:%S} +0000"
