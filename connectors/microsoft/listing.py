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
cursor is {"whole": True}. What a page misses, because a deletion moved the others, the next has.
"""

import array
import bisect
import datetime as dt
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from connectors.errors import CursorExpired, Unavailable
from connectors.microsoft.client import Pace, quoted
from connectors.microsoft.folders import changes_path
from connectors.microsoft.refusals import Refusal
from connectors.types import Cursor, MessageRef, Page, RemoteFolder

#: The largest that Graph gives; the default is ten.
PAGE_MESSAGES = 1_000
_PREFER = f"odata.maxpagesize={PAGE_MESSAGES}"
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
    listing = _Listing(pace, base, folder, relative, now)
    try:
        if not has_delta:
            yield from listing.whole()
        elif since is None or "whole" in since:
            yield from listing.first(changes_path(base, folder, _SELECT), Seen())
        elif not since["listed"]:
            yield from listing.first(str(since["link"]), None)
        else:
            yield from listing.follow(str(since["link"]), float(since["at"]))
    except Refusal as refusal:
        if refusal.is_expired_state and since is None:
            raise Unavailable(
                "Microsoft lost the state of a listing that had just begun. It begins anew."
            ) from None
        if refusal.status == 400 and since is not None:
            raise CursorExpired("Microsoft does not understand its own link any more.") from None
        raise refusal.of_folder() from None


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

    def first(self, link: str, seen: "Seen | None") -> Iterator[Page]:
        """List from a link to the end, and say what is present."""
        for items, following, last in self._round(link):
            refs = self._references(items)
            removed = [remote_id for remote_id, item in items.items() if "@removed" in item]
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

    def whole(self) -> Iterator[Page]:
        """List everything, and say what is present."""
        seen = Seen()
        query = f"$select={','.join(_SELECT)}&$top={PAGE_MESSAGES}"
        link = f"{self._base}/mailFolders/{quoted(self._folder.remote_id)}/messages?{query}"
        page: Mapping[str, Any] | None = self._pace.get(link)
        while page is not None:
            refs = [reference(str(item["id"]), item) for item in page.get("value", ())]
            seen.add(ref.remote_id for ref in refs)
            following = self._pace.follow(page)
            present = None if following else seen.sorted()
            yield Page({"whole": True}, refs, present=present)
            page = following

    def follow(self, link: str, given_at: float) -> Iterator[Page]:
        """List what changed since a complete pass; nothing where nothing did."""
        worth_storing = self._now() - given_at > REFRESH_SECONDS
        for items, following, last in self._round(link):
            refs = self._references(items)
            removed = [remote_id for remote_id, item in items.items() if "@removed" in item]
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
        while True:
            page = self._pace.get(link, prefer=(_PREFER,))
            # What is told twice counts as told last; it must not be both added and removed.
            items = {str(item["id"]): item for item in page.get("value", ())}
            following = self._relative(page.get("@odata.nextLink"))
            if following is None:
                last = self._relative(page.get("@odata.deltaLink"))
                if last is None:
                    raise Unavailable("Microsoft Graph sent a page without saying what follows.")
                yield items, last, True
                return
            if following == link:
                raise Unavailable("Microsoft Graph sends the same page again and again.")
            yield items, following, False
            link = following

    # -- what they are -----------------------------------------------------------------------------

    def _references(self, items: Mapping[str, Mapping[str, Any]]) -> list[MessageRef]:
        """Make references. Of a message that was only read, delta tells no more than that: the rest
        is asked for, twenty in a request."""
        there = {remote_id: item for remote_id, item in items.items() if "@removed" not in item}
        partial = [remote_id for remote_id, item in there.items() if "flag" not in item]
        for remote_id, whole in zip(partial, self._described(partial), strict=True):
            if whole is None:
                del there[remote_id]  # gone or moved meanwhile: a later round tells
            else:
                there[remote_id] = whole
        return [reference(remote_id, item) for remote_id, item in there.items()]

    def _described(self, ids: Sequence[str]) -> list[Mapping[str, Any] | None]:
        query = f"?$select={','.join(_SELECT)}"
        paths = [f"{self._base}/messages/{quoted(remote_id)}{query}" for remote_id in ids]
        found: list[Mapping[str, Any] | None] = []
        for answer in self._pace.batch(paths):
            if isinstance(answer, Refusal):
                if not answer.is_gone:
                    raise answer
                found.append(None)
            else:
                found.append(answer)
        return found


def reference(remote_id: str, item: Mapping[str, Any]) -> MessageRef:
    """Make a reference of a message's properties. The immutable id names it in every folder."""
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
        stable_id=remote_id,
        thread_id=str(item.get("conversationId") or ""),
        received_at=_time(item.get("receivedDateTime")),
        labels=tuple(sorted(labels)),
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
