"""add_source on a terminal: it asks, tries, and adds what a person settled on."""

import sys
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from ingestion.models import IngestionSource
from tests.servers import people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Dovecot
from tests.servers.stack import ROOT
from tests.servers.terminal import Terminal


@pytest.fixture
def root(transactional_db: None) -> User:
    return people.superuser("root")


def asked(manage: CommandLine, *more: str) -> Terminal:
    words = [sys.executable, str(ROOT / "manage.py"), "add_source", *more]
    return Terminal(words, manage.env, str(ROOT))


def test_a_wrong_password_is_said_typed_again_and_never_shown(
    manage: CommandLine, root: User, dovecot: Dovecot
) -> None:
    account = dovecot.account(b"Subject: one\r\n\r\nbody\r\n")
    with asked(manage, "--include-trash") as terminal:
        terminal.answer("Which is it", "99")
        terminal.answer("Which is it", "10")
        terminal.answer("Host", account.host)
        terminal.answer("Port", "none")
        terminal.answer("Must be a whole number.\r\nPort", str(account.port))
        terminal.answer("TLS", "n")
        terminal.answer("STARTTLS", "n")
        terminal.answer("Accept any certificate")
        terminal.answer("User name", account.name)
        terminal.answer("Password", "not-the-password")
        terminal.wait("✗ Log in")
        terminal.answer("leave it", "change")
        for label in ("Host", "Port", "TLS", "STARTTLS", "Accept any certificate", "User name"):
            terminal.answer(label)
        terminal.answer("Password (empty keeps what you gave)", account.password)
        terminal.wait("✓ Read one message")
        terminal.answer(f"What is it called ({account.name})", "Ada")
        terminal.answer("Import as soon", "n")
        assert terminal.ends() == 0
        assert "Added Ada as" in terminal.said
        assert account.password not in terminal.said
        assert "not-the-password" not in terminal.said
    source = IngestionSource.objects.get()
    assert (source.name, source.owner, source.auto_import) == ("Ada", root, False)
    assert source.secrets == {"password": account.password}
    assert source.options["includeTrash"] is True


def test_steps_are_told_and_a_sign_in_is_left_for_later(
    manage: CommandLine, root: User, tmp_path: Path
) -> None:
    with asked(manage) as terminal:
        terminal.answer("Which is it", "1")
        terminal.wait("One Gmail account: what to do there first")
        terminal.wait("/api/v1/oauth/callback")
        terminal.answer("OAuth client id", "client-1")
        terminal.answer("OAuth client secret", "shh")
        terminal.answer("Account", "ada@gmail.com")
        terminal.wait("once its owner has granted access")
        terminal.answer("What is it called")
        terminal.answer("Import as soon")
        assert terminal.ends() == 0
        assert "sign_in_source with --link" in terminal.said
    assert IngestionSource.objects.get().name == "ada@gmail.com"


def test_without_a_terminal_it_says_what_to_give(manage: CommandLine, root: User) -> None:
    refused = manage("add_source")
    assert refused.code == 2
    assert "Give NAME and the account" in refused.stderr
    assert manage.here("add_source", "--json").code == 2


def test_ctrl_c_adds_nothing(manage: CommandLine, root: User) -> None:
    with asked(manage) as terminal:
        terminal.answer("Which is it", "10")
        terminal.answer("Host", "\x03")
        assert terminal.ends() == 130
    assert not IngestionSource.objects.exists()
