"""The commands about sources, as processes, against real PostgreSQL, Redis and Dovecot."""

import io
import json
import signal
import uuid
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from ingestion.models import AuditEvent, FailedMessage, IngestionSource, Message, Placement, Run
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration
from ingestion.states import SourceStatus
from tests.servers import imap_source, people
from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot
from tests.servers.stack import wait_for

ACTOR = Actor.system("test")
SECRET = "s3cret-never-shown"


@pytest.fixture
def administrator(transactional_db: None) -> User:
    return people.superuser("root")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    """An account with five messages in two folders."""
    account = dovecot.account(*(b"Subject: %d\r\n\r\nbody %d\r\n" % (n, n) for n in range(3)))
    work = (b"Subject: w%d\r\n\r\nwork %d\r\n" % (n, n) for n in range(2))
    dovecot.append(account.name, "Work", *work)
    return account


@pytest.fixture
def source(administrator: User, account: Account) -> IngestionSource:
    return configuration.create(
        owner=administrator,
        name="Alice",
        provider="generic_imap",
        provider_config=imap_source.config(account),
        actor=ACTOR,
    )


def server(dovecot: Dovecot) -> list[str]:
    return ["--host", dovecot.host, "--port", str(dovecot.port), "--no-secure"]


# -- add_source --------------------------------------------------------------------------------


def test_a_source_is_added_with_its_password_from_the_environment_and_checked(
    manage: CommandLine, administrator: User, dovecot: Dovecot, account: Account
) -> None:
    name, password = account.name, account.password
    added = manage(
        *("add_source", "Alice", *server(dovecot), "--username", name),
        *("--password-env", "MAIL_PASSWORD", "--verify", "--json"),
        *("--exclude-folders", "Lists/*", "--exclude-folders", "Spam", "--include-trash"),
        MAIL_PASSWORD=password,
    )
    assert added.code == 0, added.stderr
    shown = added.json()
    assert shown["status"] == "auth_success"
    assert shown["providerConfig"]["passwordSet"] is True
    assert password not in added.stdout + added.stderr
    row = IngestionSource.objects.get(pk=shown["id"])
    assert row.owner == administrator
    assert row.secrets == {"password": password}
    assert row.options["excludeFolders"] == ["Lists/*", "Spam"]
    assert row.options["includeTrash"] is True
    assert AuditEvent.objects.get(action="source.create").actor.startswith("command line (")


def test_a_password_may_come_from_standard_input_and_a_config_from_a_file(
    manage: CommandLine, administrator: User, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"host": "imap.example.com", "port": 143, "secure": False}))
    added = manage(
        *("add_source", "Bob", "--config-file", str(config), "--config", '{"username": "bob"}'),
        *("--port", "1143", "--password-stdin"),
        stdin=f"{SECRET}\n",
    )
    assert added.code == 0, added.stderr
    assert "being checked" in added.stdout
    row = IngestionSource.objects.get(name="Bob")
    assert (row.config["host"], row.config["port"]) == ("imap.example.com", 1143)
    assert row.secrets == {"password": SECRET}
    assert row.status == SourceStatus.PENDING_AUTH


def test_a_whole_config_may_come_from_standard_input(
    manage: CommandLine, administrator: User
) -> None:
    config = {"host": "imap.example.com", "username": "carol", "password": SECRET}
    added = manage("add_source", "Carol", "--config-file", "-", stdin=json.dumps(config))
    assert added.code == 0, added.stderr
    assert IngestionSource.objects.get(name="Carol").secrets == {"password": SECRET}


def test_a_secret_on_the_command_line_is_taken_with_a_warning(
    manage: CommandLine, administrator: User
) -> None:
    config = json.dumps({"host": "h.example", "username": "u", "password": SECRET})
    added = manage.here("add_source", "Dave", "--config", config, "--json")
    assert added.code == 0
    assert "password stood on the command line" in added.stderr
    assert SECRET not in added.stdout + added.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "h", "--username", "u"], "--password-env: "),
        (["--username", "u", "--password-env", "P"], "--host: "),
        (["--host", "http://h", "--username", "u", "--password-env", "P"], "--host: "),
        (["--host", "h", "--username", "u", "--password-env", "UNSET"], "UNSET is not set"),
        (["--host", "h", "--username", "u", "--password-stdin"], "standard input was empty"),
        (["--config", f'{{"password": "{SECRET}"'], "--config must be a JSON object"),
        (["--config", '{"hots": "h"}'], "hots in --config: "),
        (["--config-file", "/nonexistent.json"], "can't be read"),
        (["--port", "many"], "invalid int value"),
        (["--provider", "pigeon"], "invalid choice"),
        (["--owner", "nobody-here"], "no active user"),
        (["--since", "yesterday", "--host", "h", "--username", "u"], "--since: "),
        (["--provider", "google"], "--service-account-key-json-env"),
    ],
)
def test_wrong_input_is_named_ends_with_2_and_adds_nothing(
    manage: CommandLine,
    administrator: User,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("P", SECRET)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    refused = manage.here("add_source", "Eve", *arguments)
    assert refused.code == 2
    assert said in refused.stderr
    assert refused.stdout == ""
    assert SECRET not in refused.stderr
    assert not IngestionSource.objects.exists()


def test_the_owner_must_be_said_where_it_is_not_obvious(
    manage: CommandLine, administrator: User
) -> None:
    people.superuser("second")
    refused = manage.here("add_source", "Eve", "--config", '{"host": "h"}')
    assert refused.code == 2
    assert "--owner" in refused.stderr


def test_wrong_credentials_are_found_by_verify(
    manage: CommandLine, administrator: User, dovecot: Dovecot, account: Account
) -> None:
    added = manage(
        *("add_source", "Alice", *server(dovecot), "--username", account.name),
        *("--password-env", "P", "--verify"),
        P=SECRET,
    )
    assert added.code == 1
    assert "needs_reauth" in added.stderr
    assert SECRET not in added.stdout + added.stderr
    assert IngestionSource.objects.get().status == SourceStatus.ERROR


# -- which source ------------------------------------------------------------------------------


def test_a_source_is_named_by_id_or_by_a_name_that_only_it_has(
    manage: CommandLine, source: IngestionSource
) -> None:
    assert manage.here("source_status", str(source.pk)).code == 0
    assert manage.here("source_status", "Alice").code == 0
    misspelt = manage.here("source_status", "Alise")
    assert misspelt.code == 2
    assert "Did you mean 'Alice'?" in misspelt.stderr
    assert manage.here("source_status", str(uuid.uuid4())).code == 2
    twin = configuration.create(
        owner=source.owner,
        name="Alice",
        provider="generic_imap",
        provider_config={**source.config, **source.secrets},
        actor=ACTOR,
    )
    ambiguous = manage.here("pause_source", "Alice")
    assert ambiguous.code == 2
    assert str(source.pk) in ambiguous.stderr
    assert str(twin.pk) in ambiguous.stderr


@pytest.mark.parametrize(
    "command",
    [
        *(
            "verify_source",
            "sign_in_source",
            "import_source",
            "sync_source",
            "pause_source",
            "resume_source",
        ),
        *("delete_source", "retry_failed", "reconcile_source", "verify_archive"),
        "rebuild_archive_index",
    ],
)
def test_an_unknown_source_ends_every_command_with_2(manage: CommandLine, command: str) -> None:
    refused = manage.here(command, "Nobody")
    assert refused.code == 2
    assert "no source with the id or name 'Nobody'" in refused.stderr
    assert refused.stdout == ""


# -- import and sync ---------------------------------------------------------------------------


def test_an_import_without_a_worker_archives_everything_and_a_sync_adds_what_came(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    imported = manage("import_source", "Alice", "--now", "--json")
    assert imported.code == 0, imported.stderr
    assert imported.json()["run"]["status"] == "completed"
    assert imported.json()["run"]["messagesNew"] == 5
    assert "5/5 messages" in imported.stderr
    assert Placement.objects.count() == len(dovecot.contents(account.name)) == 5
    dovecot.append(account.name, "INBOX", b"Subject: new\r\n\r\nnew\r\n")
    synced = manage("sync_source", "Alice", "--now", "--json")
    assert synced.code == 0
    assert synced.json()["run"]["messagesNew"] == 1
    assert Message.objects.count() == 6


def test_an_import_without_a_worker_does_not_need_redis(
    manage: CommandLine, source: IngestionSource
) -> None:
    imported = manage("import_source", "Alice", "--now", REDIS_URL="redis://127.0.0.1:1")
    assert imported.code == 0, imported.stderr
    assert "5 archived" in imported.stdout


def test_an_import_that_nobody_will_do_says_so(
    manage: CommandLine, source: IngestionSource
) -> None:
    started = manage("import_source", "Alice", "--json", REDIS_URL="redis://127.0.0.1:1")
    assert started.code == 0
    assert started.json()["run"]["status"] == "running"
    assert "No worker is running" in started.stderr
    again = manage.here("import_source", "Alice", "--json")
    assert again.json()["run"]["id"] == started.json()["run"]["id"]


def test_an_import_with_wrong_credentials_ends_with_1_and_says_why(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    dovecot.set_password(account.name, "changed")
    refused = manage.here("import_source", "Alice", "--now")
    assert refused.code == 1
    assert "user name and password" in refused.stdout
    assert manage.here("source_status").code == 1


def test_an_import_stopped_with_ctrl_c_keeps_what_it_has_and_goes_on_later(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    many = [b"Subject: m%d\r\n\r\n%s\r\n" % (n, b"x" * 1000) for n in range(3000)]
    for number, body in enumerate(many):
        dovecot.deliver(account.name, f"1700000000.M{number}P1.host", body)
    process = manage.start("import_source", "Alice", "--now")
    wait_for(lambda: Message.objects.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    if process.returncode != 0:  # a fast machine may have been done
        assert process.returncode == 130
        assert "What is archived is kept" in stderr
    again = manage.here("import_source", "Alice", "--now", "--json")
    assert again.code == 0, again.stderr
    assert Placement.objects.count() == 3005
    assert Run.objects.filter(status="completed").exists()


def test_both_ways_of_waiting_exclude_each_other(
    manage: CommandLine, source: IngestionSource
) -> None:
    assert manage.here("import_source", "Alice", "--now", "--follow").code == 2


# -- pause, resume, verify ---------------------------------------------------------------------


def test_a_paused_source_refuses_to_sync_until_it_is_resumed(
    manage: CommandLine, source: IngestionSource
) -> None:
    early = manage.here("pause_source", "Alice")
    assert early.code == 1
    assert "still being checked" in early.stderr
    verified = manage("verify_source", "Alice", "--json")
    assert verified.code == 0
    assert verified.json()["ok"] is True
    assert verified.json()["status"] == "auth_success"
    assert manage("pause_source", "Alice", "--json").json()["status"] == "paused"
    assert manage.here("pause_source", "Alice").code == 0
    refused = manage.here("sync_source", "Alice")
    assert refused.code == 1
    assert "Resume it first" in refused.stderr
    assert manage("resume_source", "Alice", "--json").json()["status"] == "auth_success"
    idle = manage.here("resume_source", "Alice")
    assert idle.code == 0
    assert "nothing changed" in idle.stdout


def test_verify_ends_with_1_where_the_credentials_do_not_work(
    manage: CommandLine, source: IngestionSource, dovecot: Dovecot, account: Account
) -> None:
    dovecot.set_password(account.name, "changed")
    verdict = manage.here("verify_source", "Alice", "--json")
    assert verdict.code == 1
    assert verdict.json()["code"] == "needs_reauth"
    assert verdict.json()["status"] == "error"


# -- status ------------------------------------------------------------------------------------


def test_the_status_of_all_and_of_one_is_shown_to_people_and_to_programs(
    manage: CommandLine, source: IngestionSource
) -> None:
    manage.here("import_source", "Alice", "--now")
    listed = manage.here("source_status")
    assert listed.code == 0
    assert "Alice" in listed.stdout
    assert "active" in listed.stdout
    whole = manage.here("source_status", "--json").json()["sources"]
    assert [s["name"] for s in whole] == ["Alice"]
    assert whole[0]["messageCount"] == 5
    one = manage.here("source_status", "Alice")
    assert "5 messages" in one.stdout
    assert "pending_auth → importing" in one.stdout
    full = manage.here("source_status", "Alice", "--json").json()["sources"][0]
    assert full["runs"][0]["messagesNew"] == 5
    assert full["mailboxes"][0]["messageCount"] == 5
    password = source.secrets["password"]
    for shown in (listed.stdout, one.stdout, json.dumps(full)):
        assert password not in shown


def test_an_installation_without_sources_says_how_to_make_one(manage: CommandLine) -> None:
    empty = manage.here("source_status")
    assert empty.code == 0
    assert "add_source" in empty.stdout
    assert manage.here("source_status", "--json").json() == {"sources": [], "service": []}


@pytest.mark.parametrize("command", ["pause_source", "resume_source", "source_status"])
def test_a_name_that_was_stored_before_it_was_refused_is_printed_escaped(
    manage: CommandLine, source: IngestionSource, command: str
) -> None:
    IngestionSource.objects.update(
        name="red\x9b31m\u202e", status="auth_success", proven_at=source.created_at
    )
    shown = manage.here(command, str(source.pk))
    assert shown.code in (0, 1)
    assert "red\\x9b31m\\u202e" in shown.stdout
    assert "\x9b" not in shown.stdout


def test_what_strangers_named_does_not_reach_the_terminal_unescaped(
    manage: CommandLine, source: IngestionSource
) -> None:
    manage.here("import_source", "Alice", "--now")
    folder = source.mailboxes.get().folders.get(path="Work")
    FailedMessage.objects.create(
        mailbox=folder.mailbox,
        folder=folder,
        remote_id="1:9",
        code="message_refused",
        reason="\x1b[31m[bold]red\x07",
        not_before="2030-01-01T00:00Z",
    )
    shown = manage.here("source_status", "Alice")
    assert "\x1b" not in shown.stdout
    assert "\x07" not in shown.stdout
    assert "[bold]red" in shown.stdout


# -- failed messages ---------------------------------------------------------------------------


def test_failed_messages_are_tried_again(manage: CommandLine, source: IngestionSource) -> None:
    manage.here("import_source", "Alice", "--now")
    none = manage.here("retry_failed", "Alice", "--json")
    assert none.code == 0
    assert none.json()["retried"] == 0
    placement = Placement.objects.filter(folder__path="Work").earliest("pk")
    failed = FailedMessage.objects.create(
        mailbox=placement.mailbox,
        folder=placement.folder,
        remote_id=placement.remote_id,
        code="message_refused",
        reason="The server says: NO",
        not_before="2030-01-01T00:00Z",
    )
    placement.delete()
    other = manage.here("retry_failed", "Alice", "--id", str(failed.pk + 1))
    assert other.code == 0
    assert FailedMessage.objects.count() == 1
    retried = manage("retry_failed", "Alice", "--id", str(failed.pk), "--now", "--json")
    assert retried.code == 0, retried.stderr
    assert retried.json()["failedMessageCount"] == 0
    assert not FailedMessage.objects.exists()
    assert Placement.objects.count() == 5


# -- delete ------------------------------------------------------------------------------------


def test_deleting_asks_first_and_leaves_nothing(
    manage: CommandLine, source: IngestionSource, archive_dir: Path
) -> None:
    manage.here("import_source", "Alice", "--now")
    assert list(archive_dir.rglob("*.pack"))
    unsure = manage.here("delete_source", "Alice")
    assert unsure.code == 2
    assert "5 archived messages" in unsure.stderr
    assert "--yes" in unsure.stderr
    assert IngestionSource.objects.filter(deleted_at=None).count() == 1
    gone = manage("delete_source", "Alice", "--yes", "--now", "--json")
    assert gone.code == 0, gone.stderr
    assert gone.json()["removed"] is True
    assert not IngestionSource.objects.exists()
    assert not Message.objects.exists()
    assert not list(archive_dir.rglob("*.pack"))


def test_a_deletion_is_left_to_the_workers_unless_told_otherwise(
    manage: CommandLine, source: IngestionSource
) -> None:
    gone = manage.here("delete_source", str(source.pk), "--yes")
    assert gone.code == 0
    assert manage.here("source_status", "Alice").code == 2
    assert IngestionSource.objects.get().deleted_at is not None


# -- the database ------------------------------------------------------------------------------


def test_a_database_that_does_not_answer_is_said_in_a_sentence(
    manage: CommandLine,
) -> None:
    lost = manage("source_status", DATABASE_URL="postgres://nobody@127.0.0.1:1/none",
                  SECRET_KEY="x" * 50, ENCRYPTION_KEYS="y" * 40)  # fmt: skip
    assert lost.code == 1
    assert "The database does not answer" in lost.stderr
