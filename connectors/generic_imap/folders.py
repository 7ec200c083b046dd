"""Listing the folders of an account: one or two round trips for any number."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imapclient import imap_utf7

from connectors.errors import FolderRefused, NeedsReauth, Retryable, Unavailable
from connectors.generic_imap import syntax
from connectors.generic_imap.client import Login
from connectors.generic_imap.refusals import must_wait, refusal
from connectors.types import RemoteFolder

#: RFC 6154 section 2, and Gmail's \\Important which is a view and no folder of its own.
_ROLES = {
    b"\\ALL": "all",
    b"\\ARCHIVE": "archive",
    b"\\DRAFTS": "drafts",
    b"\\FLAGGED": "flagged",
    b"\\JUNK": "junk",
    b"\\SENT": "sent",
    b"\\TRASH": "trash",
}
#: A UIDVALIDITY that a server takes from its clock, as nearly all do (1973, in Unix time). Others
#: count folders, or give all of them the same.
_MADE_OF_TIME = 100_000_000
#: Usual names, for servers that mark no special use at all.
_NAMES = {
    "drafts": "drafts",
    "draft": "drafts",
    "junk": "junk",
    "spam": "junk",
    "junk e-mail": "junk",
    "junk email": "junk",
    "bulk mail": "junk",
    "sent": "sent",
    "sent items": "sent",
    "sent messages": "sent",
    "trash": "trash",
    "deleted items": "trash",
    "deleted messages": "trash",
    "entwürfe": "drafts",
    "gesendet": "sent",
    "gesendete elemente": "sent",
    "gesendete objekte": "sent",
    "papierkorb": "trash",
    "gelöschte elemente": "trash",
    "gelöschte objekte": "trash",
    "brouillons": "drafts",
    "courrier indésirable": "junk",
    "indésirables": "junk",
    "envoyés": "sent",
    "éléments envoyés": "sent",
    "corbeille": "trash",
    "éléments supprimés": "trash",
    "borradores": "drafts",
    "correo no deseado": "junk",
    "enviados": "sent",
    "papelera": "trash",
    "bozze": "drafts",
    "posta indesiderata": "junk",
    "posta inviata": "sent",
    "cestino": "trash",
}
#: Of 2**63 - 1, the largest number of IMAP (RFC 7162 section 7).
MAX_DIGITS = 19
_LISTED = re.compile(rb'LIST \([^)]*\) (?:"\\?."|\S+) +(.+?)\r?\n\Z', re.IGNORECASE)
_UNREADABLE = {b"\\NOSELECT", b"\\NONEXISTENT"}
_STATUS_BATCH = 100
_CONTROLS = {code: 0xE000 + code for code in (*range(32), *range(127, 160))}
_CONTROLS_BACK = {private: code for code, private in _CONTROLS.items()}
#: No index takes an id of more than 2,700 bytes: that of a longer name is its beginning
#: and a digest, between them a character that no other id has. The path is for people.
_LONGEST_ID, _LONGEST_PATH = 1_000, 1_000
_CUT = "\u2026"


def list_folders(login: Login) -> list[RemoteFolder]:
    """Return all folders that can hold mail, with their STATUS in `state`."""
    if login.opened is not None:
        login.wire.run(b"NOOP")  # STATUS of an open folder shows it as of its last update
    items = _status_items(login)
    with_status = login.can("LIST-STATUS")
    untagged, with_status = _list(login, items)
    listed, states = _read(untagged)
    if not listed:
        raise Unavailable(
            "The server listed no folder at all. It is asked again.", code="no_folders"
        )
    if not any(name == b"INBOX" for _, _, name in listed) and _has_inbox(login):
        listed.insert(0, (set(), None, b"INBOX"))
        with_status = False
    listed = [entry for entry in listed if not entry[0] & _UNREADABLE]
    if not with_status:
        states |= _ask_status(login, [name for _, _, name in listed], items)
    return _without_views(login, [_folder(entry, states) for entry in _with_roles(listed)])


def _list(login: Login, items: str) -> tuple[list[list[bytes]], bool]:
    """Return the responses to LIST, and whether it was asked for STATUS too. Some servers announce
    what they then refuse: they are asked for less."""
    roles = ["SPECIAL-USE"] if login.can("SPECIAL-USE") and login.can("LIST-EXTENDED") else []
    ways = [(roles, False), ([], False)] if roles else [([], False)]
    if login.can("LIST-STATUS"):
        ways.insert(0, ([*roles, f"STATUS ({items})"], True))
    while True:
        returns, with_status = ways.pop(0)
        tail = f" RETURN ({' '.join(returns)})" if returns else ""
        line, untagged = login.wire.run(b'LIST "" "*"' + tail.encode())
        if line.upper().startswith(b"OK"):
            return untagged, with_status
        error = refusal(
            login.wire.words(line), otherwise=Unavailable, allowed=(NeedsReauth, Retryable)
        )
        if not ways or must_wait(error):
            raise error


def _has_inbox(login: Login) -> bool:
    """Ask whether there is an INBOX that was not listed. Nearly each account has one (RFC 9051
    section 5.1)."""
    line, _ = login.wire.run(b"STATUS INBOX (MESSAGES)")
    return line.upper().startswith(b"OK")


def remote_id(name: bytes) -> str:
    """Return a folder's name as the server writes it, byte for byte, as text.

    Controls, which no row or log may hold, become private-use characters; `name_of` undoes it.
    """
    text = name.decode("latin-1").translate(_CONTROLS)
    if len(text) <= _LONGEST_ID:
        return text
    return f"{text[:_LONGEST_ID]}{_CUT}{hashlib.sha256(name).hexdigest()}"


def name_of(folder: RemoteFolder) -> bytes:
    """Return what the server calls a folder. Raises FolderRefused for one of a name too long to
    store that is not listed now."""
    text = folder.remote_id
    if _CUT in text:
        if "name" not in folder.state:
            raise FolderRefused("The name of this folder is known only while the server lists it.")
        text = folder.state["name"]
    return text.translate(_CONTROLS_BACK).encode("latin-1")


def _status_items(login: Login) -> str:
    items = "MESSAGES UIDNEXT UIDVALIDITY"
    if login.has_condstore:
        items += " HIGHESTMODSEQ"
    if login.can("OBJECTID"):
        items += " MAILBOXID"
    return items


_Entry = tuple[set[bytes], bytes | None, bytes]


def _read(untagged: Sequence[list[bytes]]) -> tuple[list[_Entry], dict[bytes, dict[str, Any]]]:
    listed: dict[bytes, _Entry] = {}
    states: dict[bytes, dict[str, Any]] = {}
    for response in untagged:
        values = syntax.parse(response)
        kind = values[0].upper() if values and isinstance(values[0], bytes) else b""
        if kind == b"LIST" and len(values) >= 4:
            attributes = {a.upper() for a in values[1] or [] if isinstance(a, bytes)}
            delimiter = values[2] if isinstance(values[2], bytes) else None
            name = _name(values[3] if _is_whole(values[4:]) else _unquoted(response, values[3]))
            listed.setdefault(name, (attributes, delimiter, name))
        elif kind == b"STATUS" and len(values) >= 3 and isinstance(values[2], list):
            states[_name(values[1])] = _state(syntax.pairs(values[2]))
    return list(listed.values()), states


def _is_whole(rest: Sequence[Any]) -> bool:
    """Tell whether what follows a folder's name is of LIST-EXTENDED: [tag, value, ...], or nothing
    (RFC 9051 section 9, mbox-list-extended)."""
    return not rest or (len(rest) == 1 and isinstance(rest[0], list) and len(rest[0]) % 2 == 0)


def _unquoted(response: Sequence[bytes], otherwise: Any) -> Any:
    """Return the name of a folder that a server wrote without the quotes or escapes it needs: all
    to the end of the line."""
    found = _LISTED.match(response[0]) if len(response) == 1 else None
    if found is None:
        return otherwise
    name = found[1]
    return name[1:-1] if len(name) > 1 and name[:1] == name[-1:] == b'"' else name


def _name(value: Any) -> bytes:
    """Return a folder's name. INBOX is the only one whose case means nothing (RFC 9051 s5.1)."""
    if not isinstance(value, bytes):
        return b"NIL"  # a folder may be called so, without quotes
    return b"INBOX" if value.upper() == b"INBOX" else value


def _state(items: Mapping[bytes, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name in (b"MESSAGES", b"UIDNEXT", b"UIDVALIDITY", b"HIGHESTMODSEQ"):
        value = items.get(name)
        if isinstance(value, bytes) and value.isdigit() and len(value) <= MAX_DIGITS:
            state[name.decode().lower()] = int(value)
    for key in ("uidnext", "uidvalidity", "highestmodseq"):
        if state.get(key) == 0:  # no number of IMAP's: not told, or none kept (RFC 7162 s3.1.2.2)
            del state[key]
    object_id = items.get(b"MAILBOXID")
    if isinstance(object_id, list) and object_id and isinstance(object_id[0], bytes):
        state["mailboxid"] = syntax.printable(object_id[0])
    return state


def _ask_status(login: Login, names: Sequence[bytes], items: str) -> dict[bytes, dict[str, Any]]:
    """STATUS of each folder, pipelined. A folder whose STATUS fails is listed without one."""
    states: dict[bytes, dict[str, Any]] = {}
    for start in range(0, len(names), _STATUS_BATCH):
        arguments = [syntax.string(name) for name in names[start : start + _STATUS_BATCH]]
        tags = [login.wire.command_ahead(b"STATUS", a, f"({items})".encode()) for a in arguments]
        states |= _read(login.wire.replies(tags)[1])[1]
    return states


def _with_roles(listed: Sequence[_Entry]) -> list[tuple[_Entry, str]]:
    marked = any(attributes & _ROLES.keys() for attributes, _, _ in listed)
    return [(entry, _role(entry, by_name=not marked)) for entry in listed]


def _role(entry: _Entry, *, by_name: bool) -> str:
    attributes, delimiter, name = entry
    if name == b"INBOX":
        return "inbox"
    for attribute, role in _ROLES.items():
        if attribute in attributes:
            return role
    if not by_name:
        return ""
    # Only there do programs put their own folders: Clients/Spam is one that a person made.
    parent, _, last = _path(name, delimiter).rpartition("/")
    return _NAMES.get(last.casefold(), "") if parent.upper() in ("", "INBOX") else ""


def _folder(
    entry_and_role: tuple[_Entry, str], states: Mapping[bytes, dict[str, Any]]
) -> RemoteFolder:
    (_, delimiter, name), role = entry_and_role
    state, path = states.get(name, {}), _path(name, delimiter)
    if len(name) > _LONGEST_ID:
        state = {**state, "name": name.decode("latin-1")}
    return RemoteFolder(
        remote_id=remote_id(name),
        path=path if len(path) <= _LONGEST_PATH else path[:_LONGEST_PATH] + _CUT,
        role=role,
        message_count=state.get("messages"),
        exact_count=True,
        stable_id=str(state.get("mailboxid", "")),
        lasting_ids=state.get("uidvalidity", 0) >= _MADE_OF_TIME,
        state=state,
    )


def _path(name: bytes, delimiter: bytes | None) -> str:
    levels = name.split(delimiter) if delimiter else [name]
    return "/".join(decoded(level).replace("/", "\u2215") for level in levels)


def decoded(raw: bytes) -> str:
    """Decode a name or label from modified UTF-7 (RFC 3501 s5.1.3), or from UTF-8 where it is that.

    Never fails; what could harm a page or a log becomes U+FFFD.
    """
    try:
        text = raw.decode("utf-8") if any(b > 127 for b in raw) else str(imap_utf7.decode(raw))
    except (UnicodeError, ValueError):
        text = raw.decode("latin-1")
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _without_views(login: Login, folders: list[RemoteFolder]) -> list[RemoteFolder]:
    """What is flagged is elsewhere too (RFC 6154 section 2). On Gmail any folder is a view of All
    Mail, which has all but spam and trash. Users may hide All Mail from IMAP; then every folder is
    read, and X-GM-MSGID saves the second downloads. Elsewhere what is called \\All may be a folder
    of its own, as where a mailbox was moved from Gmail: it is read."""
    if login.can("X-GM-EXT-1") and any(folder.role == "all" for folder in folders):
        return [folder for folder in folders if folder.role in ("all", "junk", "trash")]
    return [folder for folder in folders if folder.role != "flagged"]
