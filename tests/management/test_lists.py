"""Commands that list and change: tables on a terminal, tabs into a pipe, JSON for programs."""

import datetime as dt
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import User
from django.utils import timezone

from ingestion.models import ApiKey, AuditEvent, FailedMessage, Folder, IngestionSource, Mailbox
from ingestion.services.audit import Actor
from ingestion.services.operations import api_keys
from ingestion.services.sources import configuration
from tests.servers import imap_source, people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot

ACTOR = Actor.system("test")


@pytest.fixture
def root(transactional_db: None) -> User:
    return people.superuser("root")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return dovecot.account(b"Subject: one\r\n\r\nbody\r\n")


@pytest.fixture
def source(root: User, account: Account) -> IngestionSource:
    return configuration.create(
        owner=root,
        name="Alice",
        provider="generic_imap",
        provider_config=imap_source.config(account),
        actor=ACTOR,
    )


class Terminal:
    """A command on a terminal of so many columns."""

    def __init__(self, manage: CommandLine, *arguments: str, columns: int) -> None:
        master, slave = pty.openpty()
        self._master = master
        self.process = subprocess.Popen(
            manage._words(arguments),
            env={**manage.env, "COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - only sets a handler
        )
        os.close(slave)
        self.text = ""

    def read_until(self, pattern: str, *, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, self.text
            self._read(0.5)

    def end(self) -> int:
        code = self.process.wait(timeout=300)
        while self._read(0.2):
            pass
        os.close(self._master)
        return code

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            self.text += os.read(self._master, 65_536).decode()
        except OSError:  # the other side is closed
            return False
        return True


# -- what a source has -------------------------------------------------------------------------


def test_a_list_is_lines_with_tabs_in_a_pipe_and_a_table_as_wide_as_a_terminal(
    manage: CommandLine, source: IngestionSource
) -> None:
    manage.here("import_source", "Alice", "--now")
    mailbox = Mailbox.objects.get()
    synced = mailbox.last_synced_at
    assert synced is not None
    Mailbox.objects.update(last_error="The server says \tno, and explains why. " * 3)
    Mailbox.objects.update(archived_bytes=12_345)
    rows = manage.here("mailboxes", "Alice").stdout.splitlines()
    [cells] = [row.split("\t") for row in rows]
    assert cells[:4] == [mailbox.address, "active", "1", "12345"]
    assert dt.datetime.fromisoformat(cells[4]) == synced.replace(microsecond=0)
    assert r"\tno" in rows[0]
    shown = Terminal(manage, "mailboxes", "Alice", columns=80)
    assert shown.end() == 0
    lines = shown.text.splitlines()
    assert "Last synced" in lines[0]
    assert "12.3 kB" in lines[2]
    assert " ago" in shown.text
    assert max(map(len, lines)) <= 80
    assert "explains" in shown.text
    listed = manage.here("mailboxes", "Alice", "--json").json()["mailboxes"]
    assert [one["messageCount"] for one in listed] == [1]


def test_on_a_narrow_terminal_words_stay_whole_and_columns_give_way(
    manage: CommandLine, source: IngestionSource
) -> None:
    why = "The server says no: nobody of this name may come in here, and nobody else."
    IngestionSource.objects.update(
        status="error",
        status_message=why,
        name="Alice and " * 9,
        message_count=12_345_678,
        archived_bytes=10**12,
    )
    for columns, gives_way in ((48, True), (140, False)):
        shown = Terminal(manage, "source_status", columns=columns)
        assert shown.end() == 1
        lines = shown.text.splitlines()
        assert max(map(len, lines)) <= columns
        assert ("Size" not in shown.text) == gives_way
        words = " ".join(lines).split()
        assert {"Alice", "error", "Messages", *why.split()} <= set(words)


def test_what_is_shown_meanwhile_takes_one_line(
    manage: CommandLine, source: IngestionSource, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manage.here("import_source", "Alice", "--now")
    for command, said in (("verify_archive", "Verifying"), ("backup", "Dumping the")):
        where = [str(tmp_path_factory.mktemp("elsewhere"))] if command == "backup" else []
        shown = Terminal(manage, command, *where, columns=60)
        assert shown.end() == 0, shown.text
        lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[\??[0-9;]*\w", "", shown.text))
        live = [line for line in lines if line.lstrip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ").startswith(said)]
        assert live, shown.text
        assert max(map(len, live)) <= 60


def test_runs_and_failures_are_listed_newest_first_and_as_many_as_asked(
    manage: CommandLine, source: IngestionSource
) -> None:
    assert "no import yet" in manage.here("runs", "Alice").stderr
    manage.here("import_source", "Alice", "--now")
    manage.here("sync_source", "Alice", "--now")
    assert "no failed message" in manage.here("failures", "Alice").stderr
    runs = [row.split("\t") for row in manage.here("runs", "Alice").stdout.splitlines()]
    assert [(row[1], row[3]) for row in runs] == [("sync", "0"), ("import", "1")]
    assert len(manage.here("runs", "Alice", "--limit", "1", "--json").json()["runs"]) == 1
    folder = Folder.objects.first()
    assert folder is not None
    FailedMessage.objects.create(
        mailbox=folder.mailbox, folder=folder, remote_id="9", code="refused", reason="No\tbody.",
        not_before=timezone.now(),
    )  # fmt: skip
    failed = manage.here("failures", "Alice").stdout.split("\t")
    assert failed[3:6] == ["refused", r"No\tbody.", "1"]
    assert manage.here("failures", "Alice", "--json").json()["failures"][0]["code"] == "refused"
    for command in ("runs", "failures"):
        assert manage.here(command, "Alice", "--limit", "0").code == 2


def test_the_status_is_watched_until_ctrl_c(manage: CommandLine, source: IngestionSource) -> None:
    watching = Terminal(manage, "source_status", "--watch", columns=120)
    watching.read_until("Alice .*pending_auth")
    IngestionSource.objects.update(name="Bob")
    watching.read_until("Bob .*pending_auth")
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == 0
    piped = manage.here("source_status", "--watch")
    assert (piped.code, "terminal" in piped.stderr) == (2, True)


# -- update_source -----------------------------------------------------------------------------


def test_a_source_is_changed_and_its_new_password_checked(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    changed = manage.here(
        *("update_source", "Alice", "--rename", "Bob", "--sync-interval-seconds", "900", "--json")
    )
    assert (changed.code, changed.json()["name"]) == (0, "Bob")
    assert changed.json()["options"]["syncIntervalSeconds"] == 900
    dovecot.set_password(account.name, "another")
    right = manage(*("update_source", "Bob", "--password-env", "NEW", "--verify"), NEW="another")
    assert right.code == 0, right.stderr
    source.refresh_from_db()
    assert source.status == "auth_success"
    wrong = manage("update_source", "Bob", "--password-stdin", "--verify", stdin="wrong\n")
    assert (wrong.code, "don't work" in wrong.stderr) == (1, True)
    moved = manage.here("update_source", "Bob", "--host", "elsewhere.example")
    assert (moved.code, "password" in moved.stderr) == (2, True)
    assert "what to change" in manage.here("update_source", "Bob").stderr


# -- keys --------------------------------------------------------------------------------------


def test_keys_are_listed_and_one_is_revoked_by_its_beginning(
    manage: CommandLine, root: User
) -> None:
    assert "create_api_key" in manage.here("list_keys").stderr
    kept, _ = api_keys.create(root, name="kept", actor=ACTOR)
    gone, plain = api_keys.create(root, name="gone", scopes=["read"], actor=ACTOR)
    listed = manage.here("list_keys", "--user", "root", "--json")
    assert {key["name"]: key["scopes"] for key in listed.json()["keys"]} == {
        "kept": ["read", "write", "export"],
        "gone": ["read"],
    }
    assert plain not in listed.stdout
    for unclear in ("", "never"):
        assert manage.here("revoke_key", unclear).code == 2
    assert ApiKey.objects.count() == 2
    revoked = manage.here("revoke_key", gone.token_key, "--json")
    assert (revoked.code, revoked.json()["name"]) == (0, "gone")
    assert list(ApiKey.objects.all()) == [kept]
    assert AuditEvent.objects.filter(action="key.revoke").count() == 1


def test_who_lost_their_second_step_comes_in_by_password_again(
    manage: CommandLine, root: User
) -> None:
    Authenticator.objects.create(user=root, type="totp", data={"secret": "encrypted"})
    assert manage.here("reset_second_step", "nobody").code == 2
    for removed in (1, 0):
        done = manage.here("reset_second_step", "root", "--json")
        assert (done.code, done.json()) == (0, {"user": "root", "removed": removed})
    assert not Authenticator.objects.exists()
    told = AuditEvent.objects.filter(action="user.update").get()
    assert told.changes["changed"] == ["Second step: reset"]
