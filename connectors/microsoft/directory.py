"""The users of a tenant, and which of them have a mailbox that is to be read.

What can be told from the directory is told here, without a request for each user; whether there
truly is a mailbox, and whether a policy keeps us from it, shows when it is opened.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from connectors.errors import Fatal
from connectors.microsoft.client import Graph
from connectors.microsoft.config import MicrosoftConfig
from connectors.microsoft.refusals import Refusal
from connectors.types import RemoteMailbox

_USERS = "/users?$select=id,userPrincipalName,mail,accountEnabled,userType,assignedPlans&$top=999"
_GUEST = "A guest: the mailbox is in another organisation."
_NO_LICENCE = "No licence for Exchange Online, and no address: there is no mailbox."
_SHARED = "A shared, room or equipment mailbox: left out by includeSharedMailboxes."
#: learn.microsoft.com/graph/api/resources/assignedplan: mail is kept in the last days of a plan.
_HAS_PLAN = frozenset({"Enabled", "Warning"})


def mailboxes(graph: Graph, config: MicrosoftConfig) -> Iterator[RemoteMailbox]:
    """Yield every user of the tenant. Raises ConnectorError."""
    try:
        for page in graph.pages(_USERS):
            for user in page.get("value", ()):
                yield _mailbox(user, config)
    except Refusal as refusal:
        raise refusal.of_directory() from None


def own_mailbox(graph: Graph, config: MicrosoftConfig) -> RemoteMailbox:
    """Return the mailbox of the person who signed in. Raises Fatal where it is another person: one
    who has the address by no name, former main addresses and other aliases among them."""
    try:
        user = graph.get("/me?$select=id,userPrincipalName,mail,proxyAddresses")
    except Refusal as refusal:
        raise refusal.of_directory() from None
    names = [str(user.get(name) or "") for name in ("mail", "userPrincipalName")]
    aliases = [str(address).partition(":")[2] for address in user.get("proxyAddresses") or ()]
    if config.email.casefold() not in [name.casefold() for name in (*names, *aliases)]:
        raise Fatal(
            f"{names[0] or names[1]} signed in, and the source is for {config.email}. Sign in as"
            " that person, or change email.",
            code="other_person",
        )
    return RemoteMailbox(str(user["id"]), names[0] or names[1])


def _mailbox(user: Mapping[str, Any], config: MicrosoftConfig) -> RemoteMailbox:
    name = str(user.get("userPrincipalName") or "")
    address = str(user.get("mail") or name)
    return RemoteMailbox(str(user["id"]), address, _unavailable(user, name, config))


def _unavailable(user: Mapping[str, Any], name: str, config: MicrosoftConfig) -> str:
    """Say why a user's mail is not read; "" where it is, accounts that are disabled included: the
    mailbox of who left is still there."""
    licensed = any(
        str(plan.get("service", "")).lower() == "exchange"
        and plan.get("capabilityStatus") in _HAS_PLAN
        for plan in user.get("assignedPlans") or ()
    )
    if licensed:
        return ""
    if str(user.get("userType")) == "Guest" or "#ext#" in name.lower():
        return _GUEST
    if not user.get("mail"):
        return _NO_LICENCE
    return "" if config.includeSharedMailboxes else _SHARED
