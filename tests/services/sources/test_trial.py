"""A configuration is tried before anything is stored, step by step as far as one message."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.audit import SYSTEM
from ingestion.services.sources import configuration, trial
from tests.servers import google_sources, imap_source, people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.gmail import Gmail
from tests.servers.imap_script import ImapScript
from tests.servers.maildir import Maildir
from tests.servers.stack import free_port

MAIL = b"Subject: %d\r\n\r\nbody %d\r\n"


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    account = dovecot.account(*(MAIL % (n, n) for n in range(3)))
    for folder in ("Trash", "Work"):
        dovecot.append(account.name, folder, MAIL % (7, 7))
    return account


def tried(config: dict[str, Any], **options: Any) -> list[trial.Step]:
    return list(
        trial.steps(provider="generic_imap", provider_config=config, options=options or None)
    )


def test_all_steps_are_done_and_nothing_is_stored(transactional_db: None, account: Account) -> None:
    done = tried(imap_source.config(account))
    assert [step.name for step in done] == list(trial.STEPS)
    assert all(step.ok for step in done), done
    said = {step.name: step.text for step in done}
    assert said["encryption"].startswith("Not encrypted")
    assert said["mailboxes"] == "1 to archive."
    assert said["folders"] == "Archives 2 folders, about 4 messages; leaves out Trash."
    assert said["message"] == f"Read: {len(MAIL % (7, 7))} bytes, in Work."
    everything = {
        step.name: step.text for step in tried(imap_source.config(account), includeTrash=True)
    }
    assert "Archives 3 folders, about 5 messages." in everything["folders"]
    assert not IngestionSource.objects.exists()


@pytest.mark.parametrize(
    ("changes", "failed", "code"),
    [
        ({"host": "no-such-host.invalid"}, "server", "unknown_host"),
        ({"port": 0}, "server", "unavailable"),
        ({"secure": True}, "encryption", "tls"),
        ({"password": "wrong"}, "login", "needs_reauth"),
    ],
)
def test_what_fails_is_the_last_step_and_says_what_to_change(
    transactional_db: None, account: Account, changes: dict[str, Any], failed: str, code: str
) -> None:
    if "port" in changes:
        changes = {"port": free_port()}
    done = tried({**imap_source.config(account), **changes})
    assert (done[-1].name, done[-1].code) == (failed, code), done
    assert [step.name for step in done] == list(trial.STEPS)[: len(done)]
    assert all(step.ok for step in done[:-1])
    assert done[-1].text.endswith(".")


def test_steps_before_the_one_that_failed_say_what_they_found(
    transactional_db: None, account: Account, dovecot: Dovecot, settings: Any
) -> None:
    settings.EXTRA_CA_FILE = str(dovecot.root / "cert.pem")
    there = {"host": "localhost", "port": dovecot.tls_port, "secure": True}
    config = {**imap_source.config(account), **there}
    right = {step.name: step.text for step in tried(config)}
    refused = {step.name: step.text for step in tried({**config, "password": "wrong"})}
    assert list(refused) == ["server", "encryption", "login"]
    addresses = {one[4][0] for one in socket.getaddrinfo("localhost", None)}
    has = f" has {len(addresses)} addresses, and" if len(addresses) > 1 else ""
    assert refused["server"] == f"localhost{has} answers on port {dovecot.tls_port}."
    assert re.fullmatch(
        r"TLS 1\.3, with a certificate that is trusted, and valid until 20\d\d-\d\d-\d\d\.",
        refused["encryption"],
    )
    assert (right["server"], right["encryption"]) == (refused["server"], refused["encryption"])
    assert right["login"] == f"Signed in as {account.name}: 3 folders."
    any_will_do = tried({**config, "password": "wrong", "allowInsecureCert": True})
    assert any_will_do[1].text == "TLS 1.3, with whatever certificate the server shows."


def test_an_account_without_folders_says_who_is_signed_in(transactional_db: None) -> None:
    with ImapScript() as server:
        server.boxes.clear()
        done = {step.name: step.text for step in tried(imap_source.config(server))}
    assert list(done) == ["server", "encryption", "login", "folders"]
    assert done["login"] == "Signed in as me@example.com."


def test_a_provider_says_nothing_of_what_it_does_not_do(transactional_db: None) -> None:
    maildir = Maildir("tried", token="a token of the tests")
    maildir.deliver(MAIL % (1, 1))
    done = list(trial.steps(provider="maildir", provider_config=maildir.config))
    assert [step.name for step in done] == ["login", "mailboxes", "folders", "message"]
    assert done[-1].ok


def test_options_that_leave_nothing_are_told(transactional_db: None, account: Account) -> None:
    done = tried(imap_source.config(account), excludeMailboxes=["*"])
    assert (done[-1].name, done[-1].code) == ("mailboxes", "no_mailbox")
    empty = {
        step.name: step.text for step in tried(imap_source.config(account), excludeFolders=["*"])
    }
    assert empty["message"] == "There is no message yet."


def test_a_configuration_that_cannot_be_right_is_refused_before_any_step() -> None:
    with pytest.raises(InvalidInput, match="username"):
        tried({"host": "imap.example.com"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": "x"}, {"since": 5}, {"includeFolders": 5}, {"includeMailboxes": "a@example.com"},
        {"includeFolder": []}, {"syncIntervalSeconds": 1},
    ],
)  # fmt: skip
def test_options_that_no_source_could_have_are_refused_before_any_step(
    transactional_db: None, wrong: dict[str, Any]
) -> None:
    client = APIClient()
    client.force_authenticate(people.user("owner"))
    config = {"host": "imap.example.com", "username": "ada", "password": "x"}
    body = {"provider": "generic_imap", "providerConfig": config, "options": wrong}
    answer = client.post("/api/v1/ingestion/test", body, format="json")
    attrs = [error["attr"].partition(".")[2] for error in answer.json()["errors"]]
    assert (answer.status_code, attrs) == (400, list(wrong))


def test_stored_secrets_stand_in_where_they_were_given_for(
    transactional_db: None, account: Account
) -> None:
    config = imap_source.config(account)
    source = configuration.create(
        owner=people.user("owner"),
        name="Alice",
        provider="generic_imap",
        provider_config=config,
        actor=SYSTEM,
    )
    without = {name: value for name, value in config.items() if name != "password"}
    done = list(trial.steps(provider="generic_imap", provider_config=without, source=source))
    assert done[-1].ok
    elsewhere = without | {"host": "elsewhere.example"}
    with pytest.raises(InvalidInput, match="password"):
        list(trial.steps(provider="generic_imap", provider_config=elsewhere, source=source))


def test_a_domain_of_google_is_tried(transactional_db: None, settings: Any, tmp_path: Path) -> None:
    with Gmail() as google:
        settings.PROVIDER_ENDPOINTS = google.endpoints
        settings.PROVIDER_QUOTAS = {"google": google_sources.AMPLE}
        google.add("alice@example.com").deliver(MAIL % (1, 1))
        config = google_sources.domain(google)
        done = list(trial.steps(provider="google", provider_config=config))
        said = {step.name: step.text for step in done}
        assert done[-1].ok, done
        assert said["mailboxes"] == "2 to archive."
        assert said["folders"].startswith("Archives 1 folder")
        first = list(
            trial.steps(
                provider="google", provider_config=config, options={"includeMailboxes": ["alice*"]}
            )
        )
        assert first[-1].text == f"Read: {len(MAIL % (1, 1))} bytes, in All Mail."
        config = google_sources.account(google, "alice@example.com") | {"refreshToken": ""}
        with pytest.raises(InvalidInput, match="sign in"):
            list(trial.steps(provider="google", provider_config=config))


def test_the_api_tries_it(transactional_db: None, account: Account) -> None:
    client = APIClient()
    client.force_authenticate(people.user("owner"))
    config = imap_source.config(account)
    body = {"provider": "generic_imap", "providerConfig": config}
    answer = client.post("/api/v1/ingestion/test", body, format="json")
    assert (answer.status_code, answer.json()["ok"]) == (200, True)
    assert answer.json()["steps"][-1]["message"].startswith("Read: ")
    whole = body | {"name": "Alice", "autoImport": True, "options": {}}
    assert client.post("/api/v1/ingestion/test", whole, format="json").json()["ok"]
    assert client.post("/api/v1/ingestion/test", whole | {"name": " "}, format="json").json() == (
        client.post("/api/v1/ingestion", whole | {"name": " "}, format="json").json()
    )
    config["password"] = "wr0ng-passw0rd"
    refused = client.post("/api/v1/ingestion/test", body, format="json")
    assert (refused.status_code, refused.json()["ok"]) == (200, False)
    assert "wr0ng-passw0rd" not in refused.content.decode()
    assert client.post("/api/v1/ingestion/test", {}, format="json").status_code == 400
    assert APIClient().post("/api/v1/ingestion/test", body, format="json").status_code == 401
    assert not IngestionSource.objects.exists()


def test_the_command_line_tries_it(manage: CommandLine, account: Account, dovecot: Dovecot) -> None:
    arguments = (
        *("add_source", "Alice", "--host", dovecot.host, "--port", str(dovecot.port)),
        *("--no-secure", "--username", account.name, "--password-stdin", "--test"),
    )
    right = manage(*arguments, stdin=account.password)
    assert (right.code, "✓ Read one message: Read:" in right.stderr) == (0, True), right.stderr
    wrong = manage(*arguments, "--json", stdin="wrong")
    assert (wrong.code, wrong.json()["steps"][-1]["code"]) == (1, "needs_reauth")
    assert not IngestionSource.objects.exists()
    assert not User.objects.exists()
