"""Reads a Maildir (cr.yp.to/proto/maildir.html) and its Maildir++ subfolders; writes nothing there.

A message is a file that never changes; its name up to ":" names it for ever, and the letters at the
end are its flags. The names of one folder are held in memory: about 200 bytes a message.
"""

import contextlib
import datetime as dt
import errno
import hashlib
import hmac
import os
import shutil
import stat
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from connectors.base import Connector, MailboxSession
from connectors.config import Environment
from connectors.errors import (
    CursorExpired,
    Fatal,
    FolderGone,
    FolderRefused,
    MessageGone,
    MessageRefused,
    NeedsReauth,
    Unavailable,
)
from connectors.types import (
    SPOOL_BYTES,
    Cursor,
    Identity,
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteMailbox,
    SpooledBody,
)
from ingestion_maildir.config import MaildirConfig

_PAGE = 20_000
_INBOX = "."
_ROLES = ("archive", "drafts", "junk", "sent", "trash")
_FLAGS = {
    "D": "\\Draft",
    "F": "\\Flagged",
    "P": "$Forwarded",
    "R": "\\Answered",
    "S": "\\Seen",
    "T": "\\Deleted",
}


class MaildirConnector(Connector):
    def __init__(self, config: MaildirConfig, environment: Environment) -> None:
        self._config, self._environment = config, environment

    def check(self) -> Identity:
        [mailbox] = self.mailboxes()
        with self.open(mailbox) as session:
            return Identity(mailbox.address, f"{len(session.folders())} folders")

    def mailboxes(self) -> Iterator[RemoteMailbox]:
        yield RemoteMailbox(self._config.directory, self._config.directory)

    def open(self, mailbox: RemoteMailbox) -> MailboxSession:
        root = os.environ.get("MAILDIR_ROOT")
        if not root:
            raise Fatal("MAILDIR_ROOT is not set: it names the directory that holds the Maildirs.")
        directory = Path(root, mailbox.remote_id).resolve()
        if not directory.is_relative_to(Path(root).resolve()):
            raise Fatal("The directory leads out of MAILDIR_ROOT. Name one that lies beneath it.")
        with _told("The Maildir"):
            if not (directory / "cur").is_dir():
                raise Unavailable("There is no such Maildir now. Is it mounted?")
            proof = directory / ".archive-token"
            token = proof.read_bytes().strip() if proof.is_file() else b""
        if not token or not hmac.compare_digest(token, self._config.token.encode()):
            raise NeedsReauth("The token is not the one in the Maildir's file .archive-token.")
        return MaildirSession(directory, self._environment.max_message_bytes)


class MaildirSession(MailboxSession):
    def __init__(self, directory: Path, max_message_bytes: int) -> None:
        self._directory, self._max_message_bytes = directory, max_message_bytes

    def folders(self) -> Sequence[RemoteFolder]:
        with _told("The Maildir"), os.scandir(self._directory) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        below = sorted(name for name in names if name.startswith("."))
        return [RemoteFolder(_INBOX, "INBOX", role="inbox"), *map(_subfolder, below)]

    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        place, files = self._place(folder), self._files(folder)
        if since is not None and since["place"] != place:
            raise CursorExpired("Another directory was put in the place of this one.")
        listing = hashlib.sha256(os.fsencode("\0".join(sorted(files.values())))).hexdigest()
        if since is not None and since["listing"] == listing:
            return
        refs = [MessageRef(name, labels=_labels(files[name])) for name in sorted(files)]
        for start in range(0, len(refs) or 1, _PAGE):
            last = start + _PAGE >= len(refs)
            yield Page(
                # Only after the last page is all of it listed; after another, all is listed again.
                {"place": place, "listing": listing if last else ""},
                added=refs[start : start + _PAGE],
                present=files.keys() if last else None,
            )

    def fetch(
        self, folder: RemoteFolder, refs: Sequence[MessageRef]
    ) -> Iterator[RawMessage | Missing]:
        files = self._files(folder) if refs else {}
        for ref in refs:
            while file := files.get(ref.remote_id):
                if answer := self._read(ref, self._path(folder) / file):
                    yield answer
                    break
                files = self._files(folder)  # one was renamed: its flags changed
            else:
                yield Missing(ref, MessageGone("The file was removed from the Maildir."))

    def _read(self, ref: MessageRef, path: Path) -> RawMessage | Missing | None:
        """Return the answer; None where there is no such file any more."""
        with _told("The message"), contextlib.ExitStack() as stack:
            try:
                descriptor = stack.enter_context(self._opened(path))
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.ELOOP):
                    raise
                return Missing(ref, MessageRefused(f"The file can't be read: {error.strerror}."))
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                return Missing(ref, MessageRefused("It is no regular file."))
            if about.st_size > self._max_message_bytes:
                text = f"{about.st_size:,} bytes are more than MAX_MESSAGE_BYTES allows."
                return Missing(ref, MessageRefused(text, code="too_large", of_item=True))
            received_at = dt.datetime.fromtimestamp(about.st_mtime, dt.UTC)
            ref = ref._replace(size_bytes=about.st_size, received_at=received_at)
            file = stack.enter_context(open(descriptor, "rb", closefd=False))
            if about.st_size <= SPOOL_BYTES:
                return RawMessage(ref, file.read())
            spool = SpooledBody.begin()  # the caller closes it
            try:
                shutil.copyfileobj(file, spool)
            except MessageRefused as no_room:
                spool.close()
                return Missing(ref, no_room)
            return RawMessage(ref, spool)

    def _files(self, folder: RemoteFolder) -> dict[str, str]:
        """Return each message's file, "cur/..." or "new/...", by the message's id."""
        found = {}
        with self._folder_told(folder):
            for place in ("new", "cur"):  # in this order: mail readers move from new to cur
                with self._opened(self._path(folder) / place) as descriptor:
                    names = os.listdir(descriptor)  # noqa: PTH208 - a path may be another now
                for name in names:
                    if not name.startswith("."):
                        found[_quoted(name.partition(":")[0])] = f"{place}/{name}"
        return found

    def _place(self, folder: RemoteFolder) -> int:
        with self._folder_told(folder):
            return self._path(folder).stat().st_ino

    def _path(self, folder: RemoteFolder) -> Path:
        return self._directory / urllib.parse.unquote(folder.remote_id, errors="surrogateescape")

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[int]:
        """Open what really lies in this Maildir, whatever its writers put there; wait for no pipe."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            place = Path("/proc/self/fd", str(descriptor)).readlink()
            if not place.is_relative_to(self._directory):
                raise PermissionError(errno.EACCES, "it leads out of the Maildir")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _folder_told(self, folder: RemoteFolder) -> Iterator[None]:
        with _told(f"The folder {folder.path}"):
            try:
                yield
            except FileNotFoundError:
                if folder.remote_id == _INBOX or not (self._directory / "cur").is_dir():
                    raise  # all of it is away, not only this folder
                raise FolderGone(f"There is no folder {folder.path} any more.") from None
            except PermissionError:
                raise FolderRefused(f"The folder {folder.path} can't be read.") from None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what the operating system says into Unavailable: the disk or its mount is in trouble."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{what} can't be read now: {error.strerror}.") from None


def _subfolder(name: str) -> RemoteFolder:
    """Return the folder of a Maildir++ directory: ".Sent.2024" is Sent/2024."""
    path = os.fsencode(name[1:]).decode(errors="replace").replace(".", "/")
    return RemoteFolder(_quoted(name), path, role=path.lower() if path.lower() in _ROLES else "")


def _quoted(name: str) -> str:
    """Return a file's name, which may hold any bytes, as plain text."""
    return urllib.parse.quote(os.fsencode(name), safe=",=")


def _labels(file: str) -> tuple[str, ...]:
    """Return the flags of "cur/<id>:2,<letters>"."""
    return tuple(sorted(_FLAGS[letter] for letter in file.partition(":2,")[2] if letter in _FLAGS))


CONNECTOR = MaildirConnector
