"""What a scripted Google holds: people, their mail, labels and the history of changes."""

import base64
import bisect
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable
from typing import Any

SYSTEM_LABELS = (
    *("INBOX", "SENT", "DRAFT", "SPAM", "TRASH", "UNREAD", "STARRED", "IMPORTANT", "CHAT"),
    *("CATEGORY_PERSONAL", "CATEGORY_SOCIAL", "CATEGORY_PROMOTIONS", "CATEGORY_UPDATES"),
    "CATEGORY_FORUMS",
)
_FIRST_DATE_MS = 1_700_000_000_000
_ids = itertools.count(0x18C0_0000_0000_0001, 7)


@dataclasses.dataclass(slots=True)
class Mail:
    id: str
    thread_id: str
    raw: bytes
    labels: set[str]
    date_ms: int

    @property
    def order(self) -> tuple[int, str]:
        """Newest first, as Google lists."""
        return (-self.date_ms, self.id)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One history record. `labels`: the message's, after it."""

    number: int
    kind: str  # messagesAdded, messagesDeleted, labelsAdded, labelsRemoved
    id: str
    thread_id: str
    labels: tuple[str, ...]
    changed: tuple[str, ...] = ()


class Person:
    """One Google account. `licensed`: has Gmail. Thread-safe where tests change what is read."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.id = address, str(100_000_000_000_000_000_000 + number)
        self.suspended = self.archived = self.is_admin = False
        self.mailbox_setup = self.licensed = True
        self.mail: dict[str, Mail] = {}
        self.labels: dict[str, str] = {}  # id -> name
        self.changes: list[Change] = []
        self.history_id = 1_000
        self.history_starts_at = 1_000
        self._order: list[tuple[int, str]] = []
        self.changed: Callable[[], None] = lambda: None  # after each change
        self._dates = itertools.count(_FIRST_DATE_MS, 1_000)
        self.lock = threading.RLock()

    # -- what tests do ---------------------------------------------------------------------------

    def deliver(
        self, raw: bytes, labels: Iterable[str] = ("INBOX",), *, date_ms: int | None = None
    ) -> str:
        with self.lock:
            name = format(next(_ids), "x")
            date = next(self._dates) if date_ms is None else date_ms
            mail = Mail(name, name, raw, set(labels), date)
            self.mail[name] = mail
            bisect.insort(self._order, mail.order)
            self._record("messagesAdded", mail)
            return name

    def delete(self, name: str) -> None:
        with self.lock:
            mail = self.mail.pop(name)
            self._order.remove(mail.order)
            self._record("messagesDeleted", mail)

    def relabel(self, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        with self.lock:
            mail = self.mail[name]
            added, removed = set(add) - mail.labels, set(remove) & mail.labels
            if added:
                mail.labels |= added
                self._record("labelsAdded", mail, added)
            if removed:
                mail.labels -= removed
                self._record("labelsRemoved", mail, removed)

    def make_label(self, name: str) -> str:
        with self.lock:
            label = f"Label_{len(self.labels) + 1}"
            self.labels[label] = name
            return label

    def drop_label(self, label: str) -> None:
        with self.lock:
            if self.labels.pop(label, None):
                for mail in self.mail.values():
                    mail.labels.discard(label)

    def expire_history(self) -> None:
        """Forget all changes so far, as Google does after a week or so."""
        with self.lock:
            self.history_id += 1
            self.history_starts_at = self.history_id
            self.changes.clear()

    def _record(self, kind: str, mail: Mail, changed: Iterable[str] = ()) -> None:
        self.history_id += 3
        change = Change(
            self.history_id, kind, mail.id, mail.thread_id,
            tuple(sorted(mail.labels)), tuple(sorted(changed)),
        )  # fmt: skip
        self.changes.append(change)
        self.changed()

    # -- what the API answers --------------------------------------------------------------------

    def listed(
        self, *, labels: Iterable[str], spam_and_trash: bool, after_s: int, token: str, size: int
    ) -> dict[str, Any]:
        """Answer a page of messages.list. Raises ValueError for a token that is none of ours."""
        with self.lock:
            start = 0
            if token:
                date, name = base64.urlsafe_b64decode(token).decode().split(":")
                start = bisect.bisect_right(self._order, (int(date), name))
            wanted, last = set(labels), (0, "")
            page: list[dict[str, str]] = []
            hidden = set() if spam_and_trash else {"SPAM", "TRASH"} - wanted
            more = False
            for order in self._order[start:]:
                mail = self.mail[order[1]]
                if not wanted <= mail.labels or mail.labels & hidden:
                    continue
                if after_s and mail.date_ms < after_s * 1000:
                    break
                if len(page) == size:
                    more = True
                    break
                page.append({"id": mail.id, "threadId": mail.thread_id})
                last = order
            answer: dict[str, Any] = {"resultSizeEstimate": len(page)}
            if page:
                answer["messages"] = page
            if more:
                answer["nextPageToken"] = base64.urlsafe_b64encode(
                    f"{last[0]}:{last[1]}".encode()
                ).decode()
            return answer

    def history(
        self, *, start: int, kinds: set[str], token: str, size: int, tell_labels: bool
    ) -> dict[str, Any] | None:
        """Answer a page of history.list; None where `start` is too old.

        Pages are of what there was at the first of them, `historyId` is of now: Google does not say
        that it is so, nor that it is not.
        """
        with self.lock:
            if start < self.history_starts_at:
                return None
            first = bisect.bisect_right(self.changes, start, key=lambda change: change.number)
            end = len(self.changes)
            if token:
                first, end = map(int, token.split("-"))
            window = self.changes[first : min(first + size, end)]
            records = [_record(c, tell_labels) for c in window if not kinds or c.kind in kinds]
            answer: dict[str, Any] = {"historyId": str(self.history_id)}
            if records:
                answer["history"] = records
            if first + size < end:
                answer["nextPageToken"] = f"{first + size}-{end}"
            return answer

    def label_list(self) -> list[dict[str, Any]]:
        system = [{"id": name, "name": name, "type": "system"} for name in SYSTEM_LABELS]
        return [*system, *({"id": i, "name": n, "type": "user"} for i, n in self.labels.items())]

    def profile(self) -> dict[str, Any]:
        count = len(self.mail)
        return {
            "emailAddress": self.address,
            "messagesTotal": count,
            "threadsTotal": count,
            "historyId": str(self.history_id),
        }


def message(mail: Mail, how: str) -> dict[str, Any]:
    """Return a Message resource. Google leaves an empty list of labels out."""
    found: dict[str, Any] = {
        "id": mail.id,
        "threadId": mail.thread_id,
        "internalDate": str(mail.date_ms),
        "sizeEstimate": len(mail.raw),
        "historyId": "1",
    }
    if mail.labels:
        found["labelIds"] = sorted(mail.labels)
    if how == "raw":
        found["raw"] = base64.urlsafe_b64encode(mail.raw).decode("ascii")
    return found


def _record(change: Change, tell_labels: bool) -> dict[str, Any]:
    brief: dict[str, Any] = {"id": change.id, "threadId": change.thread_id}
    full = brief | ({"labelIds": list(change.labels)} if tell_labels and change.labels else {})
    entry: dict[str, Any] = {"message": full}
    if change.changed:
        entry["labelIds"] = list(change.changed)
    return {"id": str(change.number), "messages": [brief], change.kind: [entry]}
