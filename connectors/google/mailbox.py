"""One person's Gmail: the few calls that are made of it, and what its labels mean.

Everything lies in one folder, All Mail; labels are attributes of its messages. Spam, trash and
drafts are messages with a label, which come and go, so they are roles of messages, not folders.
So are chats of the time of Google Talk and Hangouts, which are no mail: their raw is missing, cut
or empty (GAM-team/got-your-back#99).
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from connectors.config import Environment
from connectors.errors import CursorExpired
from connectors.google import client
from connectors.google.client import Caller, Pace
from connectors.google.ids import Ids
from connectors.google.refusals import Asker, BadRequest, PreconditionFailed
from connectors.google.tokens import Access
from connectors.google.transport import Http

#: developers.google.com/workspace/gmail/api/reference: messages.list and history.list.
PAGE_SIZE = 500
ROLES = {"SPAM": "junk", "TRASH": "trash", "DRAFT": "drafts", "CHAT": "chats"}
ALL = ""  # in a label's place
_MESSAGE_FIELDS = "id,threadId,labelIds,internalDate,raw"
_RECORD = "message(id,threadId,labelIds)"
_HISTORY_FIELDS = (
    f"history(id,messagesAdded/{_RECORD},messagesDeleted/message/id,"
    f"labelsAdded/{_RECORD},labelsRemoved({_RECORD},labelIds)),historyId,nextPageToken"
)


def roles_of(label_ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(ROLES[label] for label in label_ids if label in ROLES))


class GmailMailbox:
    """The calls. `callers` hands out one Caller for each thread that downloads."""

    def __init__(
        self,
        environment: Environment,
        access: Access,
        asker: Asker,
        *,
        project: str,
        stop: threading.Event,
    ) -> None:
        self._environment, self._access, self._asker = environment, access, asker
        self._pace = Pace(environment, project=project, person=asker.person)
        self._api = client.gmail(environment.endpoints["google.gmail"])
        self._one_large = threading.Lock()
        self._idle: list[Http] = []
        self._stop = stop
        self._main = self.caller(stop)
        self._names: dict[str, str] = {}
        self._nameless: set[str] = set()  # ids that Gmail uses and does not list
        self._names_lock = threading.Lock()

    def close(self) -> None:
        for http in (self._main.http, *self._idle):
            http.close()
        self._idle.clear()

    # -- callers ---------------------------------------------------------------------------------

    @property
    def is_one_of_many(self) -> bool:
        """Whether it is a domain's, where the others go on without it."""
        return self._asker.mailbox

    @property
    def connections(self) -> int:
        return max(1, int(self._environment.quotas["google"].get("connections", 1)))

    def caller(self, stop: threading.Event) -> Caller:
        """Return a Caller for one thread; `stop` ends its waits."""
        try:
            http = self._idle.pop()
        except IndexError:
            http = Http(self._environment, one_large=self._one_large)
        return Caller(http, self._access, self._asker, self._pace, "gmail", stop)

    def give_back(self, caller: Caller) -> None:
        self._idle.append(caller.http)

    # -- calls -----------------------------------------------------------------------------------

    def profile(self) -> dict[str, Any]:
        """Return emailAddress, messagesTotal and historyId: one unit."""
        return self.probe(self._main)

    def page(
        self, *, token: str = "", label: str = ALL, after: int = 0, caller: Caller | None = None
    ) -> tuple[list[str], str]:
        """Return a page of message ids, newest first, and the token of the next page, or "".

        Spam and trash are in it. `after`: only those received at this time (Unix) or later.
        `caller`: where it is not the session's own thread that asks.
        """
        given: dict[str, Any] = {"pageToken": token} if token else {}
        if label:
            given["labelIds"] = [label]
        if after:
            given["q"] = f"after:{after}"
        request = self._api.messages.list(
            userId="me",
            includeSpamTrash=True,
            maxResults=PAGE_SIZE,
            fields="messages/id,nextPageToken",
            **given,
        )
        answer = (caller or self._main).call(request, kind="list")
        ids = [message["id"] for message in answer.get("messages", ())]
        return ids, answer.get("nextPageToken", "")

    def members(self, labels: Sequence[str]) -> dict[str, Ids]:
        """Return the messages that have each of these labels; of ALL, all there are.

        By several connections: a large mailbox takes thousands of requests, of 500 ids each, and
        nothing is stored, and no slice ends, before the last.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(self.connections, thread_name_prefix="gmail-labels") as pool:
            try:
                found = pool.map(lambda label: self._members(label, stop), labels)
                return dict(zip(labels, found, strict=True))
            except BaseException:
                stop.set()  # nobody wants the others
                raise

    def _members(self, label: str, stop: threading.Event) -> Ids:
        found, token = Ids(), ""
        caller = self.caller(stop)
        try:
            while True:
                try:
                    ids, token = self.page(token=token, label=label, caller=caller)
                except BadRequest:
                    if token:  # or the label was deleted since its first page
                        raise CursorExpired("Google no longer knows the page.") from None
                    if label:
                        return found  # it was deleted meanwhile
                    raise
                found.update(ids)
                if not token:
                    return found
        finally:
            self.give_back(caller)

    def history(self, start: str, token: str = "") -> dict[str, Any]:
        """Return a page of what happened after `start`. Raises Absent where that is too old."""
        given = {"pageToken": token} if token else {}
        request = self._api.history.list(
            userId="me",
            startHistoryId=start,
            maxResults=PAGE_SIZE,
            fields=_HISTORY_FIELDS,
            **given,
        )
        answer: dict[str, Any] = self._main.call(request, kind="history")
        return answer

    def label_ids_of(self, message_id: str) -> list[str]:
        """Return a message's labels. Raises Absent."""
        request = self._api.messages.get(
            userId="me", id=message_id, format="minimal", fields="labelIds"
        )
        return list(self._main.call(request, kind="get").get("labelIds", ()))

    def download(
        self, caller: Caller, message_id: str, reader: Callable[[bytes | bytearray], Any]
    ) -> Any:
        """Get one message whole, by a thread's own caller; `reader` takes the answer's bytes."""
        request = self._api.messages.get(
            userId="me", id=message_id, format="raw", fields=_MESSAGE_FIELDS
        )
        return caller.call(request, kind="get", reader=reader)

    def probe(self, caller: Caller) -> dict[str, Any]:
        """Return the profile where Gmail works for this person; raise where it does not."""
        try:
            found: dict[str, Any] = caller.call(self._api.users.getProfile(userId="me"))
        except PreconditionFailed as error:
            raise error.no_gmail from None
        return found

    def tell(self, topic: str) -> None:
        """Have Gmail tell a topic of what changes here, for the next seven days."""
        request = self._api.users.watch(userId="me", body={"topicName": topic})
        try:
            self._main.call(request, kind="watch")
        except PreconditionFailed:  # a project may have one topic told, and it was another
            self._main.call(self._api.users.stop(userId="me"))
            self._main.call(request, kind="watch")

    # -- labels ----------------------------------------------------------------------------------

    def label_names(self, label_ids: Sequence[str]) -> tuple[str, ...]:
        """Return the labels' names as people see them, sorted. Thread-safe."""
        with self._names_lock:
            if not self._nameless.issuperset(set(label_ids) - self._names.keys()):
                self._read_names()
                self._nameless.update(set(label_ids) - self._names.keys())
            return tuple(sorted(self._names.get(label, label) for label in label_ids))

    def labels(self) -> dict[str, str]:
        """Return the names of all labels by id."""
        with self._names_lock:
            if not self._names:
                self._read_names()
            return dict(self._names)

    def _read_names(self) -> None:
        caller = self.caller(self._stop)  # whichever thread this is
        try:
            request = self._api.labels.list(userId="me", fields="labels(id,name)")
            answer = caller.call(request)
        finally:
            self.give_back(caller)
        self._names = {label["id"]: label["name"] for label in answer.get("labels", ())}
