"""Microsoft 365 as an operator sets it up: processes, and settings from the environment."""

import json
from pathlib import Path

import pytest

from ingestion.models import IngestionSource, Message
from tests.servers import people
from tests.servers.command_line import CommandLine
from tests.servers.graph import GraphServer, User
from tests.servers.graph.connectors import box


@pytest.fixture
def manage(transactional_db: None, tmp_path: Path, server: GraphServer) -> CommandLine:
    command = CommandLine(tmp_path / "archive")
    command.env |= server.settings | {
        "MICROSOFT_REQUESTS_PER_MAILBOX": "1200",  # two a second, twenty of them at once
        "MICROSOFT_CONNECTIONS_PER_MAILBOX": "2",
    }
    return command


def test_the_settings_say_where_microsoft_is_and_what_it_allows(
    manage: CommandLine, server: GraphServer, alice: User
) -> None:
    people.superuser("operator")
    for number in range(16):
        box(alice).deliver(b"message %d" % number)
    server.latency_seconds = 0.05
    given = json.dumps(server.config())
    added = manage(
        "add_source", "Contoso", "--provider", "microsoft", "--config-file", "-", stdin=given
    )
    assert added.code == 0, added.stderr
    imported = manage("import_source", "Contoso", "--now", "--json")
    assert imported.code == 0, imported.stderr
    assert imported.json()["run"]["messagesNew"] == 16
    about_alice = [entry.at for entry in server.log if entry.user]
    assert about_alice[-1] - about_alice[0] > 2.0  # without a limit it takes half a second
    assert server.most_concurrent == 2
    source = IngestionSource.objects.get()
    assert (source.status, source.message_count) == ("active", 16)
    assert server.login.client_secret not in json.dumps(source.config)
    assert Message.objects.count() == 16
