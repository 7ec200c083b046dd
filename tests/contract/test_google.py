"""The Google provider keeps the contract: for one account, and for a domain with one mailbox."""

from collections.abc import Iterator
from typing import Any

import pytest

from connectors import registry
from connectors.base import Connector
from tests.contract.suite import SECRET, Account, ConnectorContract
from tests.servers import google_sources
from tests.servers.gmail import MAIL_SCOPE, Gmail
from tests.servers.gmail_oauth import another_key


class GoogleAccount(Account):
    def __init__(self, google: Gmail, *, kind: str) -> None:
        self.google, self.kind = google, kind
        self.person = google.add(google_sources.ADMIN)
        self.person.is_admin = True
        google.oauth.client_secret = SECRET
        google.oauth.refresh_tokens[SECRET] = (self.person.address, MAIL_SCOPE)

    def connector(self, *, secret: str = SECRET) -> Connector:
        environment = google_sources.environment(self.google)
        return registry.build("google", self._config(secret), environment)

    def _config(self, secret: str) -> dict[str, Any]:
        if self.kind == "account":
            given = google_sources.account(self.google, self.person.address)
            return given | {"refreshToken": secret}
        given = google_sources.domain(self.google)
        key = given["serviceAccountKeyJson"]
        if secret != SECRET:
            key["private_key"] = another_key()
        return given | {"serviceAccountKeyJson": key | {"private_key_id": secret}}

    def deliver(self, body: bytes) -> str:
        return self.person.deliver(body)

    def remove(self, remote_id: str) -> None:
        self.person.delete(remote_id)

    def relabel(self, remote_id: str) -> None:
        self.person.relabel(remote_id, add={"STARRED"})

    def renumber(self) -> None:
        self.person.expire_history()

    def drop_connection_at(self, remote_id: str) -> None:
        self.google.faults.dropped_once.add(remote_id)

    def requests(self) -> int:
        return len(self.google.requests)


class TestGoogle(ConnectorContract):
    slug = "google"
    examples = (
        {"clientId": "c", "clientSecret": "canary", "refreshToken": "canary", "email": "a@b.c"},
        {
            "impersonatedAdminEmail": "a@b.c",
            "serviceAccountKeyJson": {
                "type": "service_account",
                "private_key": "-----BEGIN PRIVATE KEY-----canary",
                "private_key_id": "canary",
                "client_email": "x@y.z",
                "client_id": "1",
                "project_id": "p",
            },
        },
    )

    @pytest.fixture(params=["account", "domain"])
    def account(self, request: pytest.FixtureRequest) -> Iterator[GoogleAccount]:
        with Gmail() as google:
            yield GoogleAccount(google, kind=request.param)
