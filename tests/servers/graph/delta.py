"""`messages/delta`: rounds of pages, state tokens, replays, removals, expiry.

A round lists what changed after a number (0: everything), and ends with a token of the number that
it began with: what changed while it was read is told again, as the documentation warns.
"""

import base64
import json
from typing import Any

from tests.servers.graph.http import Request, Response
from tests.servers.graph.store import Folder, Mailbox, Message
from tests.servers.graph.words import error, page_size

Token = dict[str, int]


class Deltas:
    """`replay`: how many of the last page's items each page repeats. `empty_pages`: one before each
    page that has something. `expire_after`: so many pages of the next rounds, then 410."""

    def __init__(self) -> None:
        self.replay = 0
        self.empty_pages = False
        self.largest_page = 1_000
        self.error_code = "SyncStateNotFound"
        self.supported = True

    def answer(
        self, request: Request, here: str, mailbox: Mailbox, folder: Folder, *, immutable: bool
    ) -> Response:
        if not self.supported:
            return error(400, "BadRequest", "Resource not found for the segment 'delta'.")
        token = self._token(request, mailbox, folder)
        if token is None or token["e"] != mailbox.epoch or token["f"] != folder.number:
            text = "The sync state generation is not found; generation=1;[highest=2]."
            return error(410, self.error_code, text, Location=f"{here}?$deltatoken=")
        size = min(page_size(request), self.largest_page)
        if self.empty_pages and not token["x"]:
            return self._page(here, [], {**token, "x": 1}, last=False)
        return self._listing(here, folder, token, size, immutable=immutable)

    def _listing(
        self, here: str, folder: Folder, token: Token, size: int, *, immutable: bool
    ) -> Response:
        start = token["p"] - (self.replay if token["p"] > token["s"] else 0)
        changed = [
            (at, number, change)
            for number, (at, change) in folder.changes.items()
            if at > max(token["s"], start)
        ]
        items: list[dict[str, Any]] = []
        reached, new = token["p"], 0
        for at, number, change in changed:
            if new >= size:
                break
            new += at > token["p"]
            reached = max(reached, at)
            message = folder.messages.get(number)
            if message is not None:
                partial = change == "read" and token["s"] > 0
                items.append(described(message, immutable=immutable, partial=partial))
            elif token["s"] > 0 or at > token["n"]:
                gone = folder.ids[number] if immutable else f"AQMk-gone-{number}"
                items.append({"@removed": {"reason": "deleted"}, "id": gone})
        last = not changed or reached >= changed[-1][0]
        following = {**token, "p": reached, "x": 0}
        if last:
            following = {**token, "s": token["n"], "p": token["n"], "n": 0, "x": 0}
        return self._page(here, items, following, last=last)

    def _page(
        self, here: str, items: list[dict[str, Any]], token: Token, *, last: bool
    ) -> Response:
        name = "deltatoken" if last else "skiptoken"
        text = base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")
        return Response.json(
            {
                "@odata.context": f"{here}/$metadata#Collection(message)",
                "value": items,
                f"@odata.{'delta' if last else 'next'}Link": f"{here}?${name}={text}",
            },
            Preference_Applied="odata.maxpagesize",
        )

    @staticmethod
    def _token(request: Request, mailbox: Mailbox, folder: Folder) -> Token | None:
        """`e` epoch, `f` folder, `s` since, `n` the number at the round's begin, `p` position."""
        given = request.query.get("$skiptoken") or request.query.get("$deltatoken")
        if given is None:
            now = mailbox.now()
            return {"e": mailbox.epoch, "f": folder.number, "s": 0, "n": now, "p": 0, "x": 0}
        try:
            token: Token = json.loads(base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)))
        except ValueError:
            return None
        if token["n"] == 0:  # a new round, from a deltaLink
            token["n"] = mailbox.now()
        return token


def described(message: Message, *, immutable: bool, partial: bool = False) -> dict[str, Any]:
    """A message's properties. `partial`: what delta tells of one that was only read."""
    number, folder = message.number, message.folder
    found: dict[str, Any] = {
        "@odata.type": message.kind,
        "@odata.etag": f'W/"CQAAABYAAAB{number}"',
        "id": message.id if immutable else message.mutable_id,
        "isRead": message.is_read,
    }
    if partial:
        return found | {"parentFolderId": folder.id}
    return found | {
        "parentFolderId": folder.id,
        "receivedDateTime": message.received.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "isDraft": message.is_draft,
        "flag": {"flagStatus": "flagged" if message.flagged else "notFlagged"},
        "categories": list(message.categories),
        "conversationId": f"AAQk-{number}",
    }
