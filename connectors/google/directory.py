"""The users of a Workspace domain, and which of them have a mailbox that is to be read."""

from collections.abc import Iterator
from typing import Any

from connectors.google import client
from connectors.google.client import Caller
from connectors.types import RemoteMailbox

_FIELDS = "users(id,primaryEmail,suspended,archived,isMailboxSetup),nextPageToken"
#: developers.google.com/workspace/admin/directory/reference/rest/v1/users/list.
PAGE_SIZE = 500


def pages(caller: Caller, url: str) -> Iterator[list[RemoteMailbox]]:
    """Yield the users, in the order of their addresses. Raises ConnectorError."""
    users, token = client.directory(url).users, ""
    while True:
        given: dict[str, Any] = {"pageToken": token} if token else {}
        answer = caller.call(
            users.list(
                customer="my_customer",
                maxResults=PAGE_SIZE,
                orderBy="email",
                fields=_FIELDS,
                **given,
            )
        )
        yield [_mailbox(user) for user in answer.get("users", ())]
        token = answer.get("nextPageToken", "")
        if not token:
            return


def _mailbox(user: dict[str, Any]) -> RemoteMailbox:
    """Name a user by the id that a rename leaves alone."""
    reason = ""
    if user.get("suspended"):
        reason = "Suspended in the Google admin console."
    elif user.get("archived"):
        reason = "Archived in the Google admin console: its mail can't be read."
    elif not user.get("isMailboxSetup", True):
        reason = "Has no Gmail mailbox: no licence, or never set up."
    return RemoteMailbox(user["id"], user["primaryEmail"], reason)
