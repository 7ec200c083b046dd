"""Opening a folder, and what the server tells of it then. Read-only: EXAMINE, never SELECT."""

import dataclasses
import re

from connectors.errors import FolderGone, FolderRefused, RateLimited
from connectors.generic_imap import syntax
from connectors.generic_imap.client import Login
from connectors.generic_imap.folders import MAX_DIGITS, name_of
from connectors.generic_imap.refusals import refusal
from connectors.generic_imap.uids import Uids
from connectors.types import RemoteFolder

_CLOSED = re.compile(rb"OK +\[CLOSED\]", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What EXAMINE told."""

    validity: int
    next_uid: int | None
    #: None where it did not tell.
    count: int | None
    #: None where it did not tell, or does not answer by it.
    modseq: int | None
    #: Whether UIDs may be given to other messages yet: of servers that tell no UIDNEXT here.
    provisional: bool


def examine(login: Login, folder: RemoteFolder) -> Opened:
    """Open a folder read-only.

    Raises FolderGone where the server says that it does not exist, RateLimited, and FolderRefused
    for whatever else it says: the folder is there, and nobody can tell what is in it.
    """
    login.opened = None
    line, untagged = login.wire.run(b"EXAMINE", syntax.string(name_of(folder)))
    if not line.upper().startswith(b"OK"):
        raise refusal(
            login.wire.words(line), otherwise=FolderRefused, allowed=(FolderGone, RateLimited)
        )
    said = [response[0] for response in untagged]
    # What comes before is still about the folder that was open (RFC 7162 section 3.2.11).
    closed = [at for at, text in enumerate(said) if _CLOSED.match(text)]
    text = b"\n".join(said[closed[-1] :] if closed else said)
    validity = _number(rb"\[UIDVALIDITY (\d+)\]", text)
    if validity is None:
        raise FolderRefused("The server gives this folder no UIDVALIDITY.", code="no_uidvalidity")
    login.opened = (folder.remote_id, validity)
    login.exists = _number(rb"(?m)^ *(\d+) +EXISTS\b", text)
    login.expunged, login.vanished = 0, Uids([])
    next_uid = told = _number(rb"\[UIDNEXT (\d+)\]", text)
    if not next_uid and folder.state.get("uidvalidity") == validity:
        next_uid = folder.state.get("uidnext")  # some tell it in STATUS alone
    modseq = (_number(rb"\[HIGHESTMODSEQ (\d+)\]", text) or None) if login.has_condstore else None
    return Opened(validity, next_uid or None, login.exists, modseq, provisional=not told)


def opened(login: Login, folder: RemoteFolder) -> int:
    """Have a folder open on a connection, whatever was read meanwhile; return its UIDVALIDITY."""
    if login.opened is None or login.opened[0] != folder.remote_id:
        return examine(login, folder).validity
    return login.opened[1]


def _number(pattern: bytes, text: bytes) -> int | None:
    """Return the number that was told last; None where it was not, or is none of IMAP's."""
    found = re.findall(pattern, text, re.IGNORECASE)
    return int(found[-1]) if found and len(found[-1]) <= MAX_DIGITS else None
