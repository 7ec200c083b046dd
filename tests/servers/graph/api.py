"""Graph v1.0: users, mail folders, messages, $batch. Refuses what Graph refuses, with its codes.

Ids are immutable only with `Prefer: IdType="ImmutableId"`: a client that forgets it once is shown
ids that change, and is refused those that don't.
"""

import json
from typing import Any

from tests.servers.graph.delta import Deltas, described
from tests.servers.graph.http import Request, Response
from tests.servers.graph.login import Claims, Login
from tests.servers.graph.store import Folder, Mailbox, Message, Tenant, User
from tests.servers.graph.words import error, page_size, wants_immutable

_BASIC = "Mail.ReadBasic.All"


class Graph:
    """`handle` answers one request, as from `origin`."""

    def __init__(self, tenant: Tenant, login: Login) -> None:
        self.tenant, self.login = tenant, login
        self.deltas = Deltas()
        self.origin = ""

    def authorised(self, request: Request) -> Claims | Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return error(401, "InvalidAuthenticationToken", "Access token is empty.")
        claims = self.login.claims_of(token)
        if claims is None:
            text = "Lifetime validation failed, the token is expired."
            return error(401, "InvalidAuthenticationToken", text)
        return claims

    def user_of(self, request: Request, claims: Claims) -> User | None:
        """Return whose mail a path speaks of."""
        segments = request.segments
        if segments[1:2] == ["me"]:
            return claims.user
        return self.tenant.find(segments[2]) if len(segments) > 2 else None

    def handle(self, request: Request, claims: Claims) -> Response:
        segments = request.segments
        if segments[:1] != ["v1.0"]:
            return error(404, "BadRequest", "Invalid version: try v1.0.")
        if segments[1:] == ["users"]:
            return self._users(request, claims)
        if segments[1] == "me":
            if claims.user is None:
                text = "/me request is only valid with delegated authentication flow."
                return error(400, "BadRequest", text)
            segments = ["v1.0", "users", claims.user.id, *segments[2:]]
        if segments[1] != "users":
            text = f"Resource not found for the segment '{segments[1]}'."
            return error(400, "BadRequest", text)
        return self._user(request, claims, segments)

    def batch(self, request: Request) -> list[dict[str, Any]] | Response:
        """Return the requests of a $batch, or what is wrong with it."""
        parts: list[dict[str, Any]] = json.loads(request.body)["requests"]
        if len(parts) > 20:
            text = "Number of batch request steps exceeds the maximum value of 20."
            return error(400, "BadRequest", text)
        return parts

    # -- users -------------------------------------------------------------------------------------

    def _users(self, request: Request, claims: Claims) -> Response:
        if claims.user is not None or "User.Read.All" not in claims.roles:
            text = "Insufficient privileges to complete the operation."
            return error(403, "Authorization_RequestDenied", text)
        size = page_size(request, default=100, largest=999)
        start = int(request.query.get("$skiptoken", "0"))
        found = list(self.tenant.users.values())
        body: dict[str, Any] = {
            "@odata.context": f"{self.origin}/v1.0/$metadata#users",
            "value": [_user(user, request.query) for user in found[start : start + size]],
        }
        if start + size < len(found):
            kept = "".join(f"{n}={v}&" for n, v in request.query.items() if n != "$skiptoken")
            body["@odata.nextLink"] = f"{self.origin}/v1.0/users?{kept}$skiptoken={start + size}"
        return Response.json(body)

    def _user(self, request: Request, claims: Claims, segments: list[str]) -> Response:
        user = self.tenant.find(segments[2])
        rest = segments[3:]
        if not rest:
            if user is None:
                text = f"Resource '{segments[2]}' does not exist."
                return error(404, "Request_ResourceNotFound", text)
            return Response.json(_user(user, request.query))
        if user is None:
            text = f"The requested user '{segments[2]}' is invalid."
            return error(404, "ErrorInvalidUser", text)
        if (refused := self._refuses(user, claims, segments)) is not None:
            return refused
        assert user.mailbox is not None
        with user.mailbox.lock:
            return _Mail(self, request, user.mailbox, f"{self.origin}{request.path}").answer(rest)

    def _refuses(self, user: User, claims: Claims, segments: list[str]) -> Response | None:
        if claims.user is None and user.id not in self.tenant.rbac:
            # Mail.ReadBasic.All is for everything but what messages say.
            enough = {"Mail.Read"} if segments[-1] == "$value" else {"Mail.Read", _BASIC}
            if not enough & claims.roles:
                text = "Access is denied. Check credentials and try again."
                return error(403, "ErrorAccessDenied", text)
            if self.tenant.policy is not None and user.id not in self.tenant.policy:
                text = (
                    "Access to OData is disabled: [RAOP] : Blocked by tenant configured AppOnly"
                    " AccessPolicy settings."
                )
                return error(403, "ErrorAccessDenied", text)
        elif claims.user is not None and claims.user is not user:
            text = "The specified object was not found in the store."
            return error(404, "ErrorItemNotFound", text)
        if user.mailbox is None:
            text = "The mailbox is either inactive, soft-deleted, or is hosted on-premise."
            return error(404, "MailboxNotEnabledForRESTAPI", text)
        return None


class _Mail:
    """One request to one mailbox."""

    def __init__(self, graph: Graph, request: Request, mailbox: Mailbox, here: str) -> None:
        self._graph, self._request, self._mailbox, self._here = graph, request, mailbox, here
        self._immutable = wants_immutable(request)

    def answer(self, rest: list[str]) -> Response:
        if rest[0] == "mailFolders":
            return self._folders(rest[1:])
        if rest[0] == "messages" and len(rest) > 1:
            return self._message(rest[1], rest[2:])
        return error(400, "BadRequest", f"Resource not found for the segment '{rest[0]}'.")

    def _folders(self, rest: list[str]) -> Response:
        mailbox = self._mailbox
        if not rest:
            return self._listed(mailbox.root.children)
        folder = mailbox.find_folder(rest[0])
        if folder is None:
            text = "The specified folder could not be found in the store."
            return error(404, "ErrorItemNotFound", text)
        if rest[1:] == []:
            return Response.json(_folder(folder))
        if rest[1:] == ["childFolders"]:
            return self._listed(folder.children)
        if rest[1] == "messages" and rest[2:] == []:
            found = sorted(folder.messages.values(), key=lambda m: m.received, reverse=True)
            items = [described(message, immutable=self._immutable) for message in found]
            return self._paged(items, largest=self._graph.deltas.largest_page)
        if rest[1] == "messages" and rest[2:] in (["delta"], ["delta()"]):
            return self._graph.deltas.answer(
                self._request, self._here, mailbox, folder, immutable=self._immutable
            )
        return error(400, "BadRequest", "Resource not found for the segment.")

    def _listed(self, folders: list[Folder]) -> Response:
        hidden_too = self._request.query.get("includeHiddenFolders") == "true"
        return self._paged([_folder(f) for f in folders if hidden_too or not f.hidden])

    def _paged(self, items: list[dict[str, Any]], *, largest: int = 1_000) -> Response:
        size = page_size(self._request, largest=largest)
        skip = int(self._request.query.get("$skip", "0"))
        body: dict[str, Any] = {"value": items[skip : skip + size]}
        if skip + size < len(items):
            kept = {**self._request.query, "$skip": str(skip + size)}
            query = "&".join(f"{name}={value}" for name, value in kept.items())
            body["@odata.nextLink"] = f"{self._here}?{query}"
        return Response.json(body)

    def _message(self, message_id: str, rest: list[str]) -> Response:
        if not message_id.startswith("AA" if self._immutable else "AQMk"):
            return error(400, "ErrorInvalidIdMalformed", "Id is malformed.")
        message = self._find(message_id)
        if message is None:
            text = "The specified object was not found in the store."
            return error(404, "ErrorItemNotFound", text)
        if not rest:
            return Response.json(described(message, immutable=self._immutable))
        if rest == ["$value"]:
            message.downloads += 1
            body = message.body
            if self._mailbox.regenerates:
                body += b"X-Generated: %d\r\n" % message.downloads
            return Response(200, body, {"Content-Type": "text/plain"}, chunked=True)
        return error(400, "BadRequest", f"Resource not found for the segment '{rest[0]}'.")

    def _find(self, message_id: str) -> Message | None:
        if self._immutable:
            return self._mailbox.messages.get(message_id)
        found = self._mailbox.messages.values()
        return next((m for m in found if m.mutable_id == message_id), None)


def _user(user: User, query: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": user.id,
        "userPrincipalName": user.principal_name,
        "mail": user.mail,
        "proxyAddresses": [
            *([f"SMTP:{user.mail}"] if user.mail else []),
            *(f"smtp:{alias}" for alias in user.aliases),
            f"SIP:{user.principal_name}",
        ],
        "displayName": user.principal_name.partition("@")[0],
        "accountEnabled": user.enabled,
        "userType": user.kind,
        "assignedPlans": [
            {
                "assignedDateTime": "2026-01-05T08:00:00Z",
                "capabilityStatus": "Enabled",
                "service": plan,
                "servicePlanId": "efb87545-963c-4e0d-99df-69c6916d9eb0",
            }
            for plan in user.plans
        ],
    }
    if "$select" in query:
        found = {name: found[name] for name in query["$select"].split(",") if name in found}
    return found


def _folder(folder: Folder) -> dict[str, Any]:
    visible = [child for child in folder.children if not child.hidden]
    found: dict[str, Any] = {
        "id": folder.id,
        "displayName": folder.name,
        "parentFolderId": folder.parent.id if folder.parent else None,
        "childFolderCount": len(visible),
        "unreadItemCount": sum(1 for m in folder.messages.values() if not m.is_read),
        "totalItemCount": len(folder.messages),
        "isHidden": folder.hidden,
    }
    if folder.search:
        found |= {
            "@odata.type": "#microsoft.graph.mailSearchFolder",
            "isSupported": True,
            "includeNestedFolders": True,
        }
    return found
