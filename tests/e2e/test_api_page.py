"""The examples of docs/api.md as they stand there, against the running service and its providers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from django.contrib.auth.models import User

from ingestion.models import IngestionSource
from tests.servers import google_sources
from tests.servers.dovecot import Account, Dovecot
from tests.servers.gmail import Gmail
from tests.servers.graph import GraphServer
from tests.servers.stack import ROOT

if TYPE_CHECKING:
    from tests.servers.stack import Service

PAGE = (ROOT / "docs" / "api.md").read_text()
MAIL = (
    b"From: Shop <shop@example.com>\r\nTo: alice@example.com\r\nSubject: Invoice 4711\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nDear Alice\r\n"
    b"--b\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename=bill.csv\r\n\r\n"
    b"1,2\r\n--b--\r\n"
)


def blocks(language: str, *, after: str = "", before: str = "\n## A generated client") -> str:
    """Return all of the page's pieces in a language between two headings, as one program."""
    part = PAGE[PAGE.index(after) :].partition(before)[0]
    found = re.findall(rf"^```{language}\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    assert found
    return "\n".join(found)


Given = Callable[[str], str]


@pytest.fixture
def given(
    service: "Service",
    dovecot: Dovecot,
    running_google: Gmail,
    running_microsoft: GraphServer,
    tmp_path: Path,
) -> Given:
    """`given(text)` puts addresses and passwords that exist in place of those of the page."""
    account = dovecot.account(MAIL)
    domain = google_sources.domain(running_google)
    (tmp_path / "key.json").write_text(json.dumps(domain["serviceAccountKeyJson"]))
    known = {
        "http://localhost:8000": service.url,
        "admin@example.com": domain["impersonatedAdminEmail"],
        "4711.apps.googleusercontent.com": running_google.oauth.client_id,
        "GOCSPX-secret": running_google.oauth.client_secret,
        "contoso.example": running_microsoft.tenant.id,
        "an application id": running_microsoft.login.client_id,
        "its secret value": running_microsoft.login.client_secret,
        **_imap(account),
    }

    def replaced(text: str) -> str:
        for there, here in known.items():
            text = text.replace(there, here)
        return text

    return replaced


def _imap(account: Account) -> dict[str, str]:
    """The page's account is of a host with TLS on port 993, ours of a port without."""
    return {
        '"host": "imap.example.com"': f'"host": "{account.host}", "port": {account.port}, "secure": PLAIN',
        'host="imap.example.com"': f'host="{account.host}", port={account.port}, secure=False',
        "alice@example.com": account.name,
        "an app password": account.password,
    }


def run(command: list[str | Path], directory: Path, key: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "KEY": key, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_lines_for_the_shell_work_as_written(
    given: Given, owner: User, make_key: Callable[..., str], tmp_path: Path
) -> None:
    script = given(blocks("sh")).replace("PLAIN", "false")
    said = run(["bash", "-c", f"set -euo pipefail\n{script}"], tmp_path, make_key(owner))
    assert (tmp_path / "mail.eml").read_bytes() == MAIL
    assert (tmp_path / "attachment").read_bytes() == b"1,2"
    for name in ("mail.zip", "mail.mbox.zip"):
        assert (tmp_path / name).read_bytes().startswith(b"PK")
    for part in ("Log in: ", "event: end", "Invoice 4711", "paused", "import: completed", "Dear"):
        assert part in said
    left = IngestionSource.objects.filter(deleted_at=None).values_list("name", flat=True)
    assert sorted(left) == ["Alice at Gmail", "Bob", "Contoso", "example.com"]


def test_the_lines_for_python_work_as_written(
    given: Given, owner: User, make_key: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(given(blocks("python")).replace("PLAIN", "False"))
    said = run([sys.executable, "program.py"], tmp_path, make_key(owner))
    assert (tmp_path / "mail.eml").read_bytes() == MAIL
    assert (tmp_path / "mail.mbox.zip").read_bytes().startswith(b"PK")
    for part in ("ok Log in", "active 1", "412 changed_meanwhile", "Invoice 4711", "bill.csv 3"):
        assert part in said
    left = IngestionSource.objects.filter(deleted_at=None).values_list("name", flat=True)
    assert sorted(left) == ["Alice at Gmail", "Bob", "Contoso", "example.com"]


def test_a_generated_client_has_types_and_works(
    service: "Service",
    given: Given,
    owner: User,
    make_key: Callable[..., str],
    tmp_path: Path,
) -> None:
    """mypy reads the page's program with the client, strictly; then it runs."""
    part = {"after": "\n## A generated client", "before": "\n## No such heading"}
    # Formatting is all that is left out: it takes longer than the rest.
    (tmp_path / "client.yml").write_text(blocks("yaml", **part) + "post_hooks: []\n")
    (tmp_path / "program.py").write_text(given(blocks("python", **part)))
    (tmp_path / "schema.json").write_bytes(
        httpx.get(f"{service.url}/api/schema?format=json", trust_env=False, verify=False).content
    )
    program = Path(sys.executable).with_name("openapi-python-client")
    line = "generate --path schema.json --config client.yml --meta none --output-path archive"
    assert "WARNING" not in run([program, *line.split(), "--fail-on-warning"], tmp_path, "")
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\nfollow_untyped_imports = true\n")
    run([sys.executable, "-m", "mypy", "program.py"], tmp_path, "")

    said = run([sys.executable, "program.py"], tmp_path, make_key(owner))
    assert "'Log in'" in said
    assert re.search(rf"Invoice 4711 .* {len(MAIL)} {len(MAIL)}\n", said)
    assert not IngestionSource.objects.filter(deleted_at=None).exists()
