"""What is in a mailbox, and what changed: messages.list first, then history.list.

    None --> list, page by page --> finish --> history
                 ^      |                        |
                 +------+ (cursor: page token)   +--> CursorExpired (404: too old) --> None

The history id is taken before the listing and kept to its end: what happens meanwhile is in the
history. A listing names ids alone, so: what is left out (junk, trash, drafts) is listed by label
first; where mail was archived before (a listing after an expired history), its labels are listed
label by label, at 5 units for 500 ids where asking for each message would cost 5 or 20 for one.
What a listing itself archives comes with its labels. A cursor:

    history: where the history goes on    without, since: what this listing left out
    page: token of the next page          recognised: whether labels must be listed at the end
    stage: "finish" when all pages were listed
"""

import datetime as dt
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from connectors.errors import CursorExpired
from connectors.google.ids import Ids, order
from connectors.google.mailbox import ALL, ROLES, GmailMailbox, roles_of
from connectors.google.refusals import Absent, BadRequest
from connectors.types import Cursor, MessageRef, Page, RemoteIds, Wanted

#: In a page. A cursor between two is for workers that die: the labels are listed anew then.
_RELABELLED = 20_000


class Listing:
    """One pass over a mailbox. `now` is its history id when the session began."""

    def __init__(self, mailbox: GmailMailbox, *, now: str, wanted: Wanted) -> None:
        self._mailbox, self._now, self._wanted = mailbox, now, wanted

    def changes(self, since: Cursor | None) -> Iterator[Page]:
        if since is None:
            begun = {"history": self._now, "recognised": self._wanted.has_mail}
            yield from self._listed(begun | self._left_out())
            return
        if self._is_wanted_now(since):
            raise CursorExpired("The options want what was left out before.")
        if "page" in since or "stage" in since:
            yield from self._listed(dict(since) | self._left_out())
        elif since["history"] != self._now:
            yield from self._followed(str(since["history"]))

    def _left_out(self) -> dict[str, Any]:
        since = self._wanted.since
        return {
            "without": sorted(self._wanted.left_out),
            "since": since.isoformat() if since else None,
        }

    def _is_wanted_now(self, cursor: Cursor) -> bool:
        since = dt.date.fromisoformat(cursor["since"]) if cursor["since"] else dt.date.min
        earlier = (self._wanted.since or dt.date.min) < since
        return earlier or not set(cursor["without"]) <= self._wanted.left_out

    # -- the listing -----------------------------------------------------------------------------

    def _listed(self, cursor: dict[str, Any]) -> Iterator[Page]:
        present = None
        if "stage" not in cursor:
            present = yield from self._pages(cursor)
        # Cursors of versions before need not have it.
        names = self._mailbox.labels() if cursor.get("recognised", True) else {}
        members = self._mailbox.members([*names, *([ALL] if present is None else [])])
        if present is None:
            present = members.pop(ALL)
        if names:
            labels = [(names[label], ids) for label, ids in members.items()]
            yield from self._relabelled(cursor, present, labels)
        done = {name: cursor[name] for name in ("history", "without", "since")}
        yield Page(done, present=present)
        # A listing may have taken days, and "imported" is said at its end.
        yield from self._followed(done["history"])

    def _pages(self, cursor: dict[str, Any]) -> Generator[Page, None, Ids | None]:
        """Yield the pages from the cursor's on, and move it to the stage "finish".

        Returns every id of the mailbox, or None where this pass did not see all.
        """
        unwanted = self._ids_by_role()
        since = self._wanted.since
        # A second early: nothing says whether "after" includes its own. The engine looks again.
        after = int(dt.datetime.combine(since, dt.time(), dt.UTC).timestamp()) - 1 if since else 0
        seen = None if "page" in cursor or after else Ids()
        while True:
            token = cursor.pop("page", "")
            try:
                ids, following = self._mailbox.page(token=token, after=after)
            except BadRequest:
                if not token:
                    raise
                raise CursorExpired("Google no longer knows the page.") from None
            if seen is not None:
                seen.update(ids)
            cursor |= {"page": following} if following else {"stage": "finish"}
            if ids:
                yield Page(dict(cursor), added=[_listed_ref(name, unwanted) for name in ids])
            if not following:
                return seen

    def _ids_by_role(self) -> dict[str, Ids]:
        labels = [label for label, role in ROLES.items() if role in self._wanted.left_out]
        return {ROLES[label]: ids for label, ids in self._mailbox.members(labels).items()}

    def _relabelled(
        self, cursor: Mapping[str, Any], present: Ids, labels: Sequence[tuple[str, Ids]]
    ) -> Iterator[Page]:
        """Yield the labels of every message, by each label's name and members; the engine changes
        those that differ."""
        batch: list[tuple[str, tuple[str, ...]]] = []
        for message in present:
            if order(message) > order(cursor.get("relabelled", "")):
                its = tuple(sorted(name for name, ids in labels if message in ids))
                batch.append((message, its))
            if len(batch) >= _RELABELLED:
                yield Page(dict(cursor) | {"relabelled": message}, relabelled=batch, more=True)
                batch = []
        if batch:
            last = batch[-1][0]
            yield Page(dict(cursor) | {"relabelled": last}, relabelled=batch, more=True)

    # -- the history -----------------------------------------------------------------------------

    def _followed(self, start: str) -> Iterator[Page]:
        """Follow to where the history ended when its first page was given. What came since may not
        be in the other pages, though these give its number: then it is told the next time."""
        token, end = "", ""
        while True:
            try:
                answer = self._mailbox.history(start, token)
            except Absent:
                raise CursorExpired("Google no longer has this mailbox's history.") from None
            except BadRequest:
                raise CursorExpired("Google no longer knows the place in the history.") from None
            records, token = answer.get("history", []), answer.get("nextPageToken", "")
            end = end or str(answer["historyId"])
            reached = records[-1]["id"] if token and records else end
            if records or not token:
                yield self._page_of(records, {"history": str(reached)} | self._left_out())
            if not token:
                return

    def _page_of(self, records: list[dict[str, Any]], cursor: Cursor) -> Page:
        """Merge records, oldest first, to what is so after the last of them."""
        tells = _tells_labels(records)
        added: dict[str, MessageRef] = {}
        relabelled: dict[str, tuple[str, ...]] = {}
        removed: dict[str, None] = {}
        for record in records:
            for entry in record.get("messagesDeleted", ()):
                name = entry["message"]["id"]
                added.pop(name, None)
                relabelled.pop(name, None)
                removed[name] = None
            for entry in record.get("messagesAdded", ()):
                name = entry["message"]["id"]
                added[name] = self._ref(entry["message"], _known_labels(entry["message"], tells))
            for kind in ("labelsAdded", "labelsRemoved"):
                for entry in record.get(kind, ()):
                    message = entry["message"]
                    labels = _known_labels(message, tells)
                    if labels is None:
                        labels = self._asked(message["id"])
                    if labels is None:
                        continue  # gone meanwhile: a later record says so
                    left = kind == "labelsRemoved" and roles_of(entry.get("labelIds", ()))
                    if message["id"] in added or left:  # it may be wanted from now on
                        added[message["id"]] = self._ref(message, labels)
                    relabelled[message["id"]] = self._mailbox.label_names(labels)
        for name in added:
            relabelled.pop(name, None)
        return Page(
            cursor,
            added=list(added.values()),
            removed=[name for name in removed if name not in added],  # restored since
            relabelled=list(relabelled.items()),
        )

    def _asked(self, message_id: str) -> list[str] | None:
        try:
            return self._mailbox.label_ids_of(message_id)
        except Absent:
            return None

    def _ref(self, message: Mapping[str, Any], labels: list[str] | None) -> MessageRef:
        return MessageRef(
            message["id"],
            stable_id=message["id"],
            thread_id=message.get("threadId", ""),
            labels=self._mailbox.label_names(labels) if labels is not None else None,
            roles=roles_of(labels or ()),
        )


def _listed_ref(name: str, unwanted: Mapping[str, RemoteIds]) -> MessageRef:
    roles = tuple(role for role, ids in unwanted.items() if name in ids)
    return MessageRef(name, stable_id=name, labels=None, roles=roles)


def _tells_labels(records: list[dict[str, Any]]) -> bool:
    """Whether the messages of these records come with their labels. Google leaves an empty list
    out, so one message alone does not tell."""
    kinds = ("messagesAdded", "labelsAdded", "labelsRemoved")
    entries = (e for record in records for kind in kinds for e in record.get(kind, ()))
    return any("labelIds" in entry["message"] for entry in entries)


def _known_labels(message: Mapping[str, Any], tells: bool) -> list[str] | None:
    if "labelIds" in message:
        return list(message["labelIds"])
    return [] if tells else None
