"""From the consent to a sync, over HTTP, against a Gmail that nobody here wrote (npm emulate)."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User

from ingestion.models import IngestionSource, Placement, Run
from ingestion.services.engine import due_work
from tests.servers import google_sources
from tests.servers.emulate import Emulate

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def gmail(live_server: Any, settings: Any, tmp_path: Path) -> Iterator[Emulate]:
    back = f"{live_server.url}/api/v1/oauth/callback"
    with Emulate("alice@example.com", redirect_uri=back) as running:
        settings.PROVIDER_ENDPOINTS = running.endpoints
        settings.PROVIDER_QUOTAS = {"google": google_sources.AMPLE}
        settings.ARCHIVE_DIR = tmp_path / "archive"
        yield running


@pytest.fixture
def client(live_server: Any, owner: User, make_key: Callable[..., str]) -> Iterator[httpx.Client]:
    """A program of the owner's."""
    headers = {"Authorization": f"Bearer {make_key(owner)}"}
    base = f"{live_server.url}/api/v1"
    with httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=30) as program:
        yield program


def done(source: IngestionSource) -> Run:
    return due_work.work_until_done(source, on_progress=lambda _: None)


def archived() -> dict[str, tuple[str, list[str]]]:
    placed = Placement.objects.filter(removed_at=None).select_related("message")
    return {p.remote_id: (p.message.sha256_hex, p.labels) for p in placed}


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def test_signing_in_importing_and_following(gmail: Emulate, client: httpx.Client) -> None:
    bodies = [b"Subject: %d\r\n\r\nbare\nlines \xff\x00 %d\r\n" % (n, n) for n in range(5)]
    names = [gmail.deliver(body, "INBOX") for body in bodies[:3]]
    spam = gmail.deliver(bodies[3], "SPAM")
    config = {"clientId": gmail.client_id, "clientSecret": gmail.client_secret}
    body = {"name": "Gmail", "provider": "google", "providerConfig": config, "autoImport": True}
    made = client.post("/ingestion", json=body)
    assert made.status_code == 201, made.text
    source = IngestionSource.objects.get(pk=made.json()["id"])

    begun = client.post(f"/ingestion/{source.pk}/oauth/authorize")
    assert begun.status_code == 200, begun.text
    back = gmail.consent(begun.json()["authorizeUrl"])
    answer = client.get(back)
    assert answer.status_code == 200, answer.text
    assert answer.json()["providerConfig"]["email"] == "alice@example.com"
    assert client.get(back).status_code == 400  # once

    verdict = client.post(f"/ingestion/{source.pk}/verify").json()
    assert verdict["ok"], verdict
    assert done(source).message == "3 archived."
    assert archived() == {
        name: (sha256(body), ["INBOX"]) for name, body in zip(names, bodies, strict=False)
    }

    work = gmail.make_label("Work")
    new = gmail.deliver(bodies[4], "INBOX", "UNREAD")
    gmail.relabel(names[0], add=["STARRED", work], remove=["INBOX"])
    gmail.relabel(spam, add=["INBOX"], remove=["SPAM"])
    gmail.delete(names[1])
    started = client.post(f"/ingestion/{source.pk}/sync")
    assert started.status_code == 202, started.text
    assert done(source).message == "2 archived."
    assert archived() == {
        names[0]: (sha256(bodies[0]), ["STARRED", "Work"]),
        names[2]: (sha256(bodies[2]), ["INBOX"]),
        spam: (sha256(bodies[3]), ["INBOX"]),
        new: (sha256(bodies[4]), ["INBOX", "UNREAD"]),
    }
    client.post(f"/ingestion/{source.pk}/sync")
    assert done(source).message == "0 archived."
