"""Listing the folders of a mailbox: a round trip for each level of the tree (learn.microsoft.com,
mailFolder). Search folders are views of other folders, and hidden ones hold no mail: both are left
out, with what is below them.

Where the folders in one can't be listed, one that is `unlisted` stands for them. Its remote id is
none of Graph's.
"""

import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from connectors.errors import FolderGone, FolderRefused
from connectors.microsoft.client import Pace, Part, quoted
from connectors.microsoft.refusals import OutOfOrder, Refusal
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
_BELOW = "/childFolders"
#: Which they are must be known, or mail is archived that nobody wants.
_LEFT_OUT = frozenset({"drafts", "trash", "junk"})


def list_folders(pace: Pace, base: str, *, recoverable: bool) -> list[RemoteFolder]:
    """Return the folders, the inbox first. `base` is the path of the mailbox.

    Raises Refusal or OutOfOrder where the mailbox can't be read.
    """
    names = [*_ROLES, _RECOVERABLE] if recoverable else list(_ROLES)
    asked = [f"{base}/mailFolders/{name}?$select=id,totalItemCount" for name in names]
    top, *known = pace.batch([f"{base}/mailFolders?{_PAGE}", *asked])
    if isinstance(top, Exception):  # gone or not: no mailbox is without folders
        raise top
    roles: dict[str, str] = {}
    deleted: list[RemoteFolder] = []
    for name, answer in zip(names, known, strict=True):
        if isinstance(answer, Refusal) and answer.is_gone:
            continue  # a mailbox need not have an archive folder
        if isinstance(answer, Exception):
            if name == _RECOVERABLE:
                above = _RECOVERABLE_PATH.partition("/")[0]
                deleted = [_unlisted(name, f"{above}/", answer)]
            elif _ROLES[name] in _LEFT_OUT:
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
    level: list[tuple[str, str, Part]] = [("", "", top)]
    for _ in range(_DEEPEST):
        below: list[tuple[str, str, str]] = []
        for above_id, above, first in level:
            try:
                for item in _items(pace, first):
                    path = above + _printable(str(item.get("displayName", "")))
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
                        below.append((remote_id, f"{path}/", url))
            except (OutOfOrder, Refusal) as problem:
                if isinstance(problem, OutOfOrder) and not problem.is_own:
                    raise
                yield _unlisted(above_id, above, problem)
        if not below:
            return
        answers = pace.batch([url for _, _, url in below])
        level = [
            (above_id, above, answer)
            for (above_id, above, _), answer in zip(below, answers, strict=True)
        ]


def _items(pace: Pace, first: Part) -> Iterator[Mapping[str, Any]]:
    """Yield the folders of a listing that hold mail. Raises Refusal or OutOfOrder."""
    page: Part | None = first
    while page is not None:
        if isinstance(page, Refusal) and page.is_gone:  # deleted since its parent was listed
            return
        if isinstance(page, Exception):
            raise page
        for item in page.get("value", ()):
            kind = str(item.get("@odata.type", ""))
            if not item.get("isHidden") and not kind.endswith("mailSearchFolder"):
                yield item
        page = pace.follow(page)


def _unlisted(above_id: str, above: str, problem: OutOfOrder | Refusal) -> RemoteFolder:
    why = f"The folders there can't be listed now; those that are known are read. {problem}"
    return RemoteFolder(f"{above_id}{_BELOW}", f"{above}*", unlisted=True, state={"why": why})


def require_listed(folder: RemoteFolder) -> None:
    """Raise FolderRefused for a folder that stands for others, FolderGone once they are listed."""
    if folder.unlisted:
        raise FolderRefused(str(folder.state["why"]))
    if folder.remote_id.endswith(_BELOW):
        raise FolderGone("The folders there can be listed again.")


def probe_path(base: str) -> str:
    """Return a path that answers wherever mail of this mailbox can be read."""
    return f"{base}/mailFolders?$top=1&$select=id"


def changes_path(base: str, folder: RemoteFolder, select: Sequence[str]) -> str:
    """Return the path of a new round of delta query."""
    query = urllib.parse.quote(",".join(select), safe=",")
    return f"{base}/mailFolders/{quoted(folder.remote_id)}/messages/delta?$select={query}"


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else " " for c in name)
