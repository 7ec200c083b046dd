"""The API against its own OpenAPI document, tried by schemathesis over HTTP."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from django.contrib.auth.models import User

from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.stack import ROOT

if TYPE_CHECKING:
    from tests.servers.stack import Service


@pytest.mark.long(seconds=45)
def test_schemathesis_finds_nothing(
    service: "Service",
    api: httpx.Client,
    owner: User,
    make_key: Callable[..., str],
    dovecot: Dovecot,
    wait_for: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """No 500, no answer that the document lacks, no wrong input taken, 405 for other methods."""
    account = dovecot.account(b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")
    body = {
        "name": "Mail",
        "provider": "generic_imap",
        "providerConfig": imap_source.config(account),
        "autoImport": True,
    }
    url = f"/ingestion/{api.post('/ingestion', json=body).json()['id']}"
    wait_for(lambda: api.get(url).json()["status"] == "active")

    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            program,
            *("--config-file", ROOT / "tests" / "e2e" / "schemathesis.toml"),
            *("run", f"{service.url}/api/schema", "--no-color"),
            *("--header", f"Authorization: Bearer {make_key(owner)}"),
        ],
        cwd=tmp_path,  # it leaves reports there
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tried = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert tried, done.stdout
    assert int(tried[1].replace(",", "")) > 1000, done.stdout
    selected = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert selected, done.stdout
    assert len(set(selected.groups())) == 1, done.stdout


def test_a_user_who_asks_too_often_is_told_when_to_come_back(
    owner: User, client: Any, settings: Any
) -> None:
    settings.API_REQUESTS_PER_MINUTE = 3
    client.force_login(owner)
    answers = [client.get("/api/v1/ingestion") for _ in range(8)]  # one minute may end among them
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 2
    assert 1 <= int(refused[-1].headers["Retry-After"]) <= 60
    assert refused[-1].json()["errors"][0]["detail"]
    assert answers[0].status_code == 200
