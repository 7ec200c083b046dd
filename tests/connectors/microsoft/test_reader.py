"""Microsoft's own client reads what the scripted Graph answers, and understands all of it."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.servers.graph import GraphServer
from tests.servers.stack import ROOT

WHEELS = ROOT / ".venv" / "msgraph"


def test_microsofts_own_client_understands_the_scripted_graph(server: GraphServer) -> None:
    if not WHEELS.exists():
        pytest.fail("msgraph-sdk's wheels are missing: make .venv/msgraph", pytrace=False)
    alice = server.tenant.add_user("alice")
    server.tenant.add_user("guest", kind="Guest", has_mailbox=False, plans=(), mail=None)
    mailbox = alice.mailbox
    assert mailbox is not None
    mailbox.add_folder("Child", parent=mailbox.inbox)
    mailbox.add_folder("Search", search=True)
    ids = [mailbox.deliver(b"message %d" % number) for number in range(5)]
    ids.append(mailbox.deliver(b"x", kind="#microsoft.graph.eventMessageRequest"))
    mailbox.mark(ids[1], is_read=True, flagged=True, categories=("Blue",))
    seen = read(server, alice.id)
    assert seen["unknown"] == []
    assert [user["user_type"] for user in seen["users"]] == ["Member", "Guest"]
    plan = seen["users"][0]["assigned_plans"][0]
    assert (plan["service"], plan["capability_status"]) == ("exchange", "Enabled")
    assert plan["assigned_date_time"] == "2026-01-05 08:00:00+00:00"
    folders = {folder["display_name"]: folder for folder in seen["folders"]}
    assert folders["Inbox"]["total_item_count"] == 6
    assert folders["Inbox"]["is_hidden"] is False
    assert folders["Search"]["class"] == "MailSearchFolder"
    assert [folder["display_name"] for folder in seen["children"]] == ["Child"]
    messages = {message["id"]: message for message in seen["messages"]}
    assert sorted(messages) == sorted(ids)
    marked = messages[ids[1]]
    assert marked["is_read"] is True
    assert marked["flag"]["flag_status"] == "flagged"
    assert marked["categories"] == ["Blue"]
    assert marked["received_date_time"].startswith("2026-01-05 08:00")
    assert messages[ids[-1]]["class"] == "EventMessageRequest"
    assert "$deltatoken=" in seen["deltaLink"]
    assert seen["body"] == "message 0"
    assert seen["error"][:2] == [404, "ErrorItemNotFound"]
    assert seen["errorDate"] == "2026-01-05 08:00:00"


def read(server: GraphServer, user_id: str) -> Any:
    token = server.login.application_token()
    given = [str(WHEELS), server.origin, server.ca_file, token, user_id]
    done = subprocess.run(
        [sys.executable, "-m", "tests.servers.graph.reader", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
