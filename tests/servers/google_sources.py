"""What points the service at a scripted Google: configurations, environments."""

from typing import Any

from connectors.config import Environment
from tests.servers.gmail import MAIL_SCOPE, Gmail

ADMIN = "admin@example.com"
#: More than any test uses; tests of the limiter have their own.
AMPLE = {"user": 1e9, "project": 1e9, "get": 5, "list": 5, "history": 2, "connections": 4}


def domain(google: Gmail) -> dict[str, Any]:
    """Return the providerConfig of the whole domain; makes its administrator."""
    if ADMIN not in google.people:
        google.add(ADMIN).is_admin = True
    return {"serviceAccountKeyJson": google.oauth.key_json(), "impersonatedAdminEmail": ADMIN}


def account(google: Gmail, address: str) -> dict[str, Any]:
    """Return the providerConfig of one account that has consented."""
    return {
        "clientId": google.oauth.client_id,
        "clientSecret": google.oauth.client_secret,
        "refreshToken": google.oauth.grant(address, MAIL_SCOPE),
        "email": address,
    }


def environment(google: Gmail, **changes: Any) -> Environment:
    given = {"endpoints": google.endpoints, "quotas": {"google": AMPLE}, "timeout_seconds": 10}
    return Environment(**{**given, **changes})
