"""Listing the folders of a mailbox: a round trip for each level of the tree (learn.microsoft.com,
mailFolder). Search folders are views of other folders, and hidden ones hold no mail: both are left
out, with what is below them.
"""

import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from connectors.microsoft.client import Pace, quoted
from connectors.microsoft.refusals import Refusal
from connectors.types import RemoteFolder

_ROLES = {
    "inbox": "inbox",
    "sentitems": "sent",
    "drafts": "drafts",
    "deleteditems": "trash",
    "junkemail": "junk",
    "archive": "archive",
}
#: The only one of the Recoverable Items that the documentation names.
_RECOVERABLE = "recoverableitemsdeletions"
_RECOVERABLE_PATH = "Recoverable Items/Deletions"
_SELECT = "$select=id,displayName,childFolderCount,totalItemCount,isHidden"
#: The default page has ten folders.
_PAGE = f"$top=250&{_SELECT}"
_DEEPEST = 300  # Exchange's own limit of levels


def list_folders(pace: Pace, base: str, *, recoverable: bool) -> list[RemoteFolder]:
    """Return the folders, the inbox first. `base` is the path of the mailbox.

    Raises Refusal where the mailbox can't be read.
    """
    names = [*_ROLES, _RECOVERABLE] if recoverable else list(_ROLES)
    asked = [f"{base}/mailFolders/{name}?$select=id,totalItemCount" for name in names]
    top, *known = pace.batch([f"{base}/mailFolders?{_PAGE}", *asked])
    if isinstance(top, Refusal):  # gone or not: no mailbox is without folders
        raise top
    roles: dict[str, str] = {}
    deleted: list[RemoteFolder] = []
    for name, answer in zip(names, known, strict=True):
        if isinstance(answer, Refusal):
            if not answer.is_gone:  # a mailbox need not have an archive folder
                raise answer
        elif name == _RECOVERABLE:
            count = answer.get("totalItemCount")
            deleted = [RemoteFolder(answer["id"], _RECOVERABLE_PATH, message_count=count)]
        else:
            roles[str(answer["id"])] = _ROLES[name]
    found = [*_walk(pace, base, top, roles), *deleted]
    return sorted(found, key=lambda folder: folder.role != "inbox")


def _walk(
    pace: Pace, base: str, top: Mapping[str, Any], roles: Mapping[str, str]
) -> Iterator[RemoteFolder]:
    level: list[tuple[str, Mapping[str, Any] | Refusal]] = [("", top)]
    for _ in range(_DEEPEST):
        below: list[tuple[str, str]] = []
        for parent, first in level:
            for item in _items(pace, first):
                path = parent + _printable(str(item.get("displayName", "")))
                remote_id = str(item["id"])
                yield RemoteFolder(
                    remote_id,
                    path,
                    roles.get(remote_id, ""),
                    message_count=item.get("totalItemCount"),
                    stable_id=remote_id,
                )
                if item.get("childFolderCount"):
                    url = f"{base}/mailFolders/{quoted(remote_id)}/childFolders?{_PAGE}"
                    below.append((f"{path}/", url))
        if not below:
            return
        answers = pace.batch([url for _, url in below])
        level = list(zip([path for path, _ in below], answers, strict=True))


def _items(pace: Pace, first: Mapping[str, Any] | Refusal) -> Iterator[Mapping[str, Any]]:
    """Yield the folders of a listing that hold mail."""
    page: Mapping[str, Any] | Refusal | None = first
    while page is not None:
        if isinstance(page, Refusal):
            if page.is_gone:  # deleted since its parent was listed
                return
            raise page
        for item in page.get("value", ()):
            kind = str(item.get("@odata.type", ""))
            if not item.get("isHidden") and not kind.endswith("mailSearchFolder"):
                yield item
        page = pace.follow(page)


def probe_path(base: str) -> str:
    """Return a path that answers wherever mail of this mailbox can be read."""
    return f"{base}/mailFolders?$top=1&$select=id"


def changes_path(base: str, folder: RemoteFolder, select: Sequence[str]) -> str:
    """Return the path of a new round of delta query."""
    query = urllib.parse.quote(",".join(select), safe=",")
    return f"{base}/mailFolders/{quoted(folder.remote_id)}/messages/delta?$select={query}"


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else " " for c in name)
