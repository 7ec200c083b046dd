"""What Graph's answers have in common: error bodies, page sizes, preferences."""

from typing import Any

from tests.servers.graph.http import Request, Response


def error(status: int, code: str, message: str, **headers: str) -> Response:
    """An error as "Microsoft Graph error responses and resource types" shows it."""
    about = {
        "date": "2026-01-05T08:00:00",
        "request-id": "5d7a0001-0000-4000-8000-000000000001",
        "client-request-id": "5d7a0001-0000-4000-8000-000000000001",
    }
    body: dict[str, Any] = {"error": {"code": code, "message": message, "innerError": about}}
    return Response.json(body, status, **headers)


def preferences(request: Request) -> dict[str, str]:
    """Parse the Prefer header: `IdType="ImmutableId", odata.maxpagesize=500`."""
    found: dict[str, str] = {}
    for part in request.headers.get("prefer", "").split(","):
        name, _, value = part.strip().partition("=")
        found[name.lower()] = value.strip('"')
    return found


def wants_immutable(request: Request) -> bool:
    return preferences(request).get("idtype", "").lower() == "immutableid"


def page_size(request: Request, *, default: int = 10, largest: int = 1_000) -> int:
    asked = request.query.get("$top") or preferences(request).get("odata.maxpagesize")
    return min(int(asked), largest) if asked else default
