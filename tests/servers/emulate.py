"""emulate's Google (npm), a Gmail that nobody here wrote, behind what it lacks: users.getProfile.

`make node-packages` installs it. Everything but the profile is emulate's own answer, passed on as
it came; the profile is put together from emulate's own list and history.
"""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.servers.gmail_http import HttpServer, Request, Response

_NODE = Path(__file__).parent / "node"
_PROFILE = "/gmail/v1/users/me/profile"
_DROPPED = {"content-length", "content-encoding", "transfer-encoding", "connection", "keep-alive"}


class Emulate:
    """One person's account. The client's id and secret are as a Google console would give them."""

    client_id, client_secret = "client-1.apps.googleusercontent.com", "GOCSPX-secret"

    def __init__(self, address: str, *, redirect_uri: str) -> None:
        node = shutil.which("node")
        if node is None or not (_NODE / "node_modules/emulate").is_dir():
            pytest.fail("These tests need emulate: make node-packages", pytrace=False)
        self.address = address
        client = {
            "client_id": self.client_id, "client_secret": self.client_secret,
            "redirect_uris": [redirect_uri],
        }  # fmt: skip
        user = {"email": address, "name": "Alice"}
        seed = {"google": {"users": [user], "oauth_clients": [client]}}
        self._process = subprocess.Popen(
            [node, "google.mjs", json.dumps(seed)],
            cwd=_NODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line.startswith("http://localhost:"), f"emulate did not start: {line}"
        self._behind = httpx.Client(
            base_url=line.replace("localhost", "127.0.0.1"), trust_env=False, timeout=20
        )
        self._front = HttpServer(self._answer)
        self.url = self._front.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._front.stop()
        self._behind.close()
        self._process.communicate()  # closes its standard input, and it ends

    @property
    def endpoints(self) -> dict[str, str]:
        return {
            "google.gmail": self.url,
            "google.directory": self.url,
            "google.auth": f"{self.url}/o/oauth2/v2/auth",
            "google.token": f"{self.url}/oauth2/token",
        }

    # -- the person at the browser and at Gmail --------------------------------------------------

    def consent(self, authorize_url: str) -> str:
        """Choose the account on emulate's own page; return where it sends the person back to."""
        page = httpx.get(authorize_url, trust_env=False)
        assert page.status_code == 200, page.text
        fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.text))
        unescaped = {name: value.replace("&amp;", "&") for name, value in fields.items()}
        answer = self._behind.post("/o/oauth2/v2/auth/callback", data=unescaped)
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def deliver(self, raw: bytes, *labels: str) -> str:
        body = {"raw": base64.urlsafe_b64encode(raw).decode(), "labelIds": list(labels)}
        return str(self._post("/gmail/v1/users/me/messages", body)["id"])

    def relabel(self, name: str, *, add: list[str], remove: list[str]) -> None:
        body = {"addLabelIds": add, "removeLabelIds": remove}
        self._post(f"/gmail/v1/users/me/messages/{name}/modify", body)

    def make_label(self, name: str) -> str:
        return str(self._post("/gmail/v1/users/me/labels", {"name": name})["id"])

    def delete(self, name: str) -> None:
        answer = self._behind.delete(f"/gmail/v1/users/me/messages/{name}", headers=self._owner)
        assert answer.is_success, answer.text

    @property
    def _owner(self) -> dict[str, str]:
        return {"Authorization": "Bearer the-person-themselves"}

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._behind.post(path, json=body, headers=self._owner)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    # -- the front -------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Response:
        headers = {n: v for n, v in request.headers.items() if n not in {"host", "content-length"}}
        if request.path == _PROFILE:
            return self._profile(headers)
        answer = self._behind.request(
            request.method, request.target, headers=headers, content=request.body
        )
        kept = {n: v for n, v in answer.headers.items() if n not in _DROPPED}
        return Response(answer.status_code, answer.content, kept)

    def _profile(self, headers: dict[str, str]) -> Response:
        listed = self._behind.get(
            "/gmail/v1/users/me/messages?includeSpamTrash=true&maxResults=1", headers=headers
        )
        history = self._behind.get("/gmail/v1/users/me/history?startHistoryId=1", headers=headers)
        if not listed.is_success or not history.is_success:
            failed = history if listed.is_success else listed
            return Response(failed.status_code, failed.content)
        profile = {
            "emailAddress": self.address,
            "messagesTotal": listed.json()["resultSizeEstimate"],
            "historyId": history.json()["historyId"],
        }
        return Response(200, json.dumps(profile).encode(), {"Content-Type": "application/json"})
