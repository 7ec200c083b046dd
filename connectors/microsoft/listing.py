"""What changed in a folder since a cursor: delta query of messages. Lists, never downloads.

A cursor is {"link": where to go on, as a path, "listed": whether the folder had been listed to its
end, "at": when that link was given}.

    first listing   pages that each end with a nextLink, the last one with a deltaLink
    later           the same, from the deltaLink on: what is new, changed or removed

Delta query does not tell new messages from changed ones, and tells some twice; so all are `added`,
and the engine recognises what it has. Nothing is filtered: with $filter, Graph ends after 5,000
messages and doesn't say so.

Removals come by themselves, but not to who begins anew after a state token expired. So a listing
from the beginning ends with what is `present`. One that was resumed in its middle has not seen
everything; it lists the ids once more for that.

The cloud of China has no delta query of messages: there each sync lists the whole folder, and the
cursor is {"whole": True}, with a "link" in the middle of such a listing. What a page misses, as a
deletion moved the others, the next sync has. So it is elsewhere while delta query alone fails.
There it is tried first where a listing begins, not where one goes on: what it gives before it fails
may be all that a slice has time for.
"""

import array
import bisect
import datetime as dt
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from connectors.errors import (
    ConnectorError,
    CursorExpired,
    FolderGone,
    FolderRefused,
    Unavailable,
)
from connectors.microsoft.client import Pace, Part, quoted
from connectors.microsoft.folders import changes_path, probe_path, require_listed
from connectors.microsoft.refusals import OutOfOrder, Refusal
from connectors.types import Cursor, MessageRef, Page, RemoteFolder

#: The largest that Graph gives; the default is ten.
PAGE_MESSAGES = 1_000
#: A page may fail for its size, or for one item: smaller ones come through.
_SIZES = (PAGE_MESSAGES, 100, 10, 1)
_SMALL_PAGES = 10  # before a larger size is tried again
#: So many removals of a page are asked for one by one; of more, the ids are listed once.
_ASKED_SINGLY = 200
#: Delta tells some messages twice; a page that comes so often in a row will come for ever.
_SAME_PAGES = 5
_SELECT = (
    *("id", "receivedDateTime", "conversationId"),
    *("isRead", "isDraft", "flag", "categories"),
)
#: State tokens have no fixed life. One is replaced after this long, also where nothing changed.
REFRESH_SECONDS = 6 * 3_600


def changes(
    pace: Pace,
    base: str,
    folder: RemoteFolder,
    since: Cursor | None,
    *,
    relative: Callable[[Any], str | None],
    has_delta: bool = True,
    now: Callable[[], float] = time.time,
) -> Iterator[Page]:
    """Yield the pages of `MailboxSession.changes`. `relative` makes a path of a link."""
    require_listed(folder)
    listing = _Listing(pace, base, folder, relative, now)
    try:
        link = since.get("link") if since is not None and "whole" in since else None
        if link is not None or not has_delta:
            yield from listing.whole(link)
        elif since is None or "whole" in since:
            yield from listing.first(changes_path(base, folder, _SELECT), Seen())
        elif not since["listed"]:
            yield from listing.first(str(since["link"]), None)
        else:
            yield from listing.follow(str(since["link"]), float(since["at"]))
    except _NoDelta:
        yield from changes(pace, base, folder, since, relative=relative, has_delta=False)
    except OutOfOrder as error:
        raise _meaning(pace, base, folder, error) from error
    except Refusal as refusal:
        if refusal.is_expired_state and since is None:
            raise Unavailable(
                "Microsoft lost the state of a listing that had just begun. It begins anew."
            ) from None
        if refusal.is_expired_state:
            raise CursorExpired(
                "Microsoft no longer knows how far the folder had been read."
            ) from None
        if refusal.status == 400 and since is not None:
            raise CursorExpired("Microsoft does not understand its own link any more.") from None
        raise _meaning(pace, base, folder, refusal) from None


def _meaning(
    pace: Pace, base: str, folder: RemoteFolder, problem: OutOfOrder | Refusal
) -> ConnectorError:
    """Return why a folder can't be listed: it is gone, refused, or the whole mailbox is.

    Raises Unavailable where the mailbox does not answer either.
    """
    try:
        pace.get(probe_path(base))
    except Refusal as refusal:
        return refusal.of_mailbox()
    try:
        pace.get(f"{base}/mailFolders/{quoted(folder.remote_id)}?$select=id")
    except OutOfOrder:
        pass
    except Refusal as refusal:
        if refusal.status == 404:
            return FolderGone("The folder is gone at the provider.")
    return FolderRefused(f"The folder is there and can't be listed now. {problem}")


class _NoDelta(Exception):
    """Delta query of a folder does not work now, and a plain listing may: the mailbox is full, in
    which delta query keeps its state, or it fails at an item that a plain listing shows."""


class _Listing:
    """One pass over one folder."""

    def __init__(
        self,
        pace: Pace,
        base: str,
        folder: RemoteFolder,
        relative: Callable[[Any], str | None],
        now: Callable[[], float],
    ) -> None:
        self._pace, self._base, self._folder = pace, base, folder
        self._relative, self._now = relative, now
        self._size, self._small_pages = 0, 0  # place in _SIZES, and how many pages it holds
        self._all: Seen | None = None

    def first(self, link: str, seen: "Seen | None") -> Iterator[Page]:
        """List from a link to the end, and say what is present."""
        for items, following, last in self._round(link):
            refs, removed = self._told(items)
            if seen is not None:
                seen.add(ref.remote_id for ref in refs)
                seen.discard(removed)
            if not last:
                yield Page(self._cursor(following, listed=False), refs, removed)
                continue
            present = seen or self._present()
            yield Page(
                self._cursor(following, listed=True), refs, removed, present=present.sorted()
            )

    def whole(self, link: str | None) -> Iterator[Page]:
        """List everything, or what follows from a link on, and say what is present."""
        seen = Seen() if link is None else None
        for items, following in self._plainly(_SELECT, link):
            refs = [reference(str(item["id"]), item) for item in items]
            if seen is not None:
                seen.add(ref.remote_id for ref in refs)
            if following is not None:
                yield Page({"whole": True, "link": following}, refs)
                continue
            present = seen or self._present_plainly()
            yield Page({"whole": True}, refs, present=present.sorted(), last=True)

    def _present_plainly(self) -> "Seen":
        seen = Seen()
        for items, _ in self._plainly(("id",), None):
            seen.add(str(item["id"]) for item in items)
        return seen

    def _plainly(
        self, select: Sequence[str], link: str | None
    ) -> Iterator[tuple[Sequence[Mapping[str, Any]], str | None]]:
        """Yield each page of a listing without delta query: its items, and where to go on."""
        if link is None:
            query = f"$select={','.join(select)}&$top={PAGE_MESSAGES}"
            link = f"{self._base}/mailFolders/{quoted(self._folder.remote_id)}/messages?{query}"
        while link is not None:
            page = self._pace.get(link)
            link = self._relative(page.get("@odata.nextLink"))
            yield page.get("value", ()), link

    def follow(self, link: str, given_at: float) -> Iterator[Page]:
        """List what changed since a complete pass; nothing where nothing did."""
        worth_storing = self._now() - given_at > REFRESH_SECONDS
        for items, following, last in self._round(link):
            refs, removed = self._told(items)
            worth_storing = worth_storing or bool(refs or removed)
            if refs or removed or (last and worth_storing):
                yield Page(self._cursor(following, listed=True), refs, removed)

    def _present(self) -> "Seen":
        seen = Seen()
        for items, _, _ in self._round(changes_path(self._base, self._folder, ("id",))):
            seen.add(remote_id for remote_id, item in items.items() if "@removed" not in item)
            seen.discard([remote_id for remote_id, item in items.items() if "@removed" in item])
        return seen

    def _cursor(self, link: str, *, listed: bool) -> dict[str, Any]:
        return {"link": link, "listed": listed, "at": int(self._now())}

    def _round(self, link: str) -> Iterator[tuple[dict[str, Mapping[str, Any]], str, bool]]:
        """Yield each page of a round: its items by id, where to go on, whether it is the last."""
        before: list[str] = []
        same = 0
        while True:
            page = self._page(link)
            # What is told twice counts as told last; it must not be both added and removed.
            items = {str(item["id"]): item for item in page.get("value", ())}
            following = self._relative(page.get("@odata.nextLink"))
            if following is None:
                last = self._relative(page.get("@odata.deltaLink"))
                if last is None:
                    raise Unavailable("Microsoft Graph sent a page without saying what follows.")
                yield items, last, True
                return
            same = same + 1 if items and list(items) == before else 0
            before = list(items)
            if following == link or same >= _SAME_PAGES:
                raise FolderRefused("Microsoft Graph sends the same page again and again.")
            yield items, following, False
            link = following

    def _page(self, link: str) -> Mapping[str, Any]:
        """GET a page, a smaller one where that fails. Raises _NoDelta where no size helps."""
        if self._size and self._small_pages <= 0:
            self._size, self._small_pages = self._size - 1, _SMALL_PAGES
        while True:
            try:
                page = self._pace.get(link, prefer=(f"odata.maxpagesize={_SIZES[self._size]}",))
            except (OutOfOrder, Refusal) as problem:
                may_be_size = (
                    problem.is_own if isinstance(problem, OutOfOrder) else problem.is_of_item
                )
                is_full = isinstance(problem, Refusal) and problem.is_full
                if is_full or (may_be_size and self._size == len(_SIZES) - 1):
                    raise _NoDelta from problem
                if not may_be_size:
                    raise
                self._size, self._small_pages = self._size + 1, _SMALL_PAGES
            else:
                self._small_pages -= 1
                return page

    # -- what they are -----------------------------------------------------------------------------

    def _told(self, items: Mapping[str, Mapping[str, Any]]) -> tuple[list[MessageRef], list[str]]:
        """Return what is in the folder, and what is not any more.

        With immutable ids, a message that was moved away and back may be told as removed alone
        (alcionai/corso#3755): so removals are looked up before they are believed.
        """
        refs = self._references(items)
        removed = [remote_id for remote_id, item in items.items() if "@removed" in item]
        asked = removed
        if len(removed) > _ASKED_SINGLY:
            there = self._there()
            asked = [remote_id for remote_id in removed if remote_id in there]
        back: dict[str, MessageRef] = {}
        for remote_id, item in zip(asked, self._described(asked), strict=True):
            if not isinstance(item, Exception):
                if item.get("parentFolderId") == self._folder.remote_id:
                    back[remote_id] = reference(remote_id, item)
            elif not _is_gone(item) and remote_id in self._there():
                back[remote_id] = reference(remote_id, {})
        refs += back.values()
        return refs, [remote_id for remote_id in removed if remote_id not in back]

    def _there(self) -> "Seen":
        """Return the ids that are in the folder, listed once in a pass."""
        if self._all is None:
            self._all = self._present().sorted()
        return self._all

    def _references(self, items: Mapping[str, Mapping[str, Any]]) -> list[MessageRef]:
        """Make references. Of a message that was only read, delta tells no more than that: the rest
        is asked for, twenty in a request."""
        there = {remote_id: item for remote_id, item in items.items() if "@removed" not in item}
        partial = [remote_id for remote_id, item in there.items() if "flag" not in item]
        for remote_id, whole in zip(partial, self._described(partial), strict=True):
            if not isinstance(whole, Exception):
                there[remote_id] = whole
            elif _is_gone(whole):
                del there[remote_id]  # gone or moved meanwhile: a later round tells
            # else its labels stay as they were: one item must not hold up the folder
        return [reference(remote_id, item) for remote_id, item in there.items()]

    def _described(self, ids: Sequence[str]) -> list[Part]:
        query = f"?$select={','.join((*_SELECT, 'parentFolderId'))}"
        return self._pace.batch(
            [f"{self._base}/messages/{quoted(remote_id)}{query}" for remote_id in ids]
        )


def _is_gone(problem: Refusal | OutOfOrder) -> bool:
    return isinstance(problem, Refusal) and problem.is_gone


def reference(remote_id: str, item: Mapping[str, Any]) -> MessageRef:
    """Make a reference of a message's properties, which may be told in part or not at all.

    The immutable id names it in every folder, but for a draft: what is sent of it has the draft's
    id and other bytes (learn.microsoft.com/graph/outlook-immutable-id).
    """
    labels = {str(category).replace("\0", "") for category in item.get("categories") or ()}
    flag = item.get("flag")
    if item.get("isRead"):
        labels.add("\\Seen")
    if item.get("isDraft"):
        labels.add("\\Draft")
    if isinstance(flag, Mapping) and flag.get("flagStatus") == "flagged":
        labels.add("\\Flagged")
    return MessageRef(
        remote_id,
        stable_id="" if item.get("isDraft") else remote_id,
        thread_id=str(item.get("conversationId") or ""),
        received_at=_time(item.get("receivedDateTime")),
        labels=tuple(sorted(labels)) if "flag" in item else None,
    )


def _time(text: Any) -> dt.datetime | None:
    """Parse "2026-01-05T08:00:00Z"; None where it is no time."""
    try:
        time_then = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time_then.astimezone(dt.UTC) if time_then.tzinfo else None


class Seen:
    """A set of remote ids, at 8 bytes each: their hashes. Two that are the same would only leave a
    removed message marked as present, once in 10^13 mailboxes of a million messages."""

    def __init__(self) -> None:
        self._hashes = array.array("Q")
        self._gone: set[int] = set()

    def add(self, remote_ids: Iterator[str]) -> None:
        for remote_id in remote_ids:
            hashed = _hash(remote_id)
            self._gone.discard(hashed)
            self._hashes.append(hashed)

    def discard(self, remote_ids: Sequence[str]) -> None:
        self._gone.update(map(_hash, remote_ids))

    def sorted(self) -> "Seen":
        self._hashes = array.array("Q", sorted(self._hashes))
        return self

    def __contains__(self, remote_id: object, /) -> bool:
        """Only once sorted."""
        hashed = _hash(str(remote_id))
        at = bisect.bisect_left(self._hashes, hashed)
        found = at < len(self._hashes) and self._hashes[at] == hashed
        return found and hashed not in self._gone


def _hash(remote_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(remote_id.encode(), digest_size=8).digest(), "big")
