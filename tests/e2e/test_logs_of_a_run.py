"""What an import leaves in the logs of all processes: its ids, and nothing of the mail."""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx

from ingestion.models import Mailbox, Pack
from tests.servers import imap_source
from tests.servers.dovecot import Dovecot
from tests.servers.stack import let_nobody_give_way

if TYPE_CHECKING:
    from tests.servers.stack import Service

MAIL = (
    b"From: Canary Sender <canary-sender@example.com>\r\nTo: canary-reader@example.com\r\n"
    b"Subject: canary-subject\r\nMessage-ID: <canary-id@example.com>\r\n\r\ncanary-text\r\n"
)


def test_a_run_is_found_by_its_ids_in_the_logs_of_all_processes_and_nothing_of_its_mail(
    service: "Service", api: httpx.Client, dovecot: Dovecot, wait_for: Callable[..., Any]
) -> None:
    account = dovecot.account(MAIL)
    before = len(service.output())

    def lines(*parts: str) -> list[str]:
        said = service.output()[before:].splitlines()
        return [line for line in said if all(part in line for part in parts)]

    def said_by(program: str, *parts: str) -> bool:
        return any(re.match(rf"{program} +\|", line) for line in lines(*parts))

    config = imap_source.config(account)
    body = {"name": "canary-name", "provider": "generic_imap", "providerConfig": config}
    source = api.post("/ingestion", json=body).json()["id"]
    asked = {"X-Request-ID": "the-request-of-the-test"}
    run = api.post(f"/ingestion/{source}/import", headers=asked).json()["run"]["id"]
    wait_for(lambda: api.get(f"/ingestion/{source}").json()["status"] == "active")
    pack, mailbox = Pack.objects.get(source=source), Mailbox.objects.get(source=source)

    def is_indexed() -> bool:
        let_nobody_give_way(service.supervised.process.pid)
        return bool(lines("pack_indexed", str(pack.pk)))

    wait_for(is_indexed, 500)
    found = api.get("/emails", params={"q": "subject:canary-subject from:canary-sender"}).json()
    api.get(f"/emails/{found['results'][0]['id']}/raw").raise_for_status()
    wrong = {**body, "providerConfig": config | {"password": "canary-password"}}
    refused = api.post("/ingestion", json=wrong).json()["id"]
    wait_for(lambda: api.get(f"/ingestion/{refused}").json()["status"] == "error")
    wait_for(lambda: lines("request_finished", refused))

    for program, event, *ids in (
        ("web", "run_started", run, source, "the-request-of-the-test"),
        ("web", "request_finished", source, "the-request-of-the-test"),
        ("control", "mailboxes_listed", run, source),
        ("worker", "pack_archived", run, source, str(mailbox.pk), str(pack.pk)),
        ("worker", "run_finished", run, source, str(mailbox.pk)),
        ("index", "pack_indexed", source, str(pack.pk)),
    ):
        wait_for(functools.partial(said_by, program, event, *ids))  # after what it tells of came
    key = api.headers["Authorization"].removeprefix("Bearer ")
    for secret in ("canary", "example.com", account.password, key):
        assert lines(secret) == [], secret
