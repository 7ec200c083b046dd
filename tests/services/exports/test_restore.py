"""`export --to-imap` with a real Dovecot: from one account into another, exact, and nothing twice."""

import imaplib
import re
import signal
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from connectors.config import Environment
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.putting import Account as Target
from connectors.generic_imap.putting import Print
from ingestion.models import AuditEvent, IngestionSource
from ingestion.services.archive.exports.restore import Restored, restore
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.audit import Actor
from ingestion.services.engine import due_work
from ingestion.services.sources import configuration, verbs
from tests.servers import imap_source
from tests.servers.command_line import CommandLine, Result
from tests.servers.dovecot import Account, Dovecot

pytestmark = pytest.mark.django_db(transaction=True)

ACTOR = Actor.system("test")
#: Folder as the server writes it -> flags and date of each message.
_FOLDERS = {
    "INBOX": [r"(\Seen \Answered)", r"()"],
    "Sent": [r"(\Seen)"],
    "Kunden/Gr&APYA3w-e": [r"(\Flagged $Forwarded)"],
    "Projects/a.b": [r"()"],
}
_DATE = '"03-Feb-2021 04:05:06 +0000"'

Mails = dict[str, list[tuple[bytes, frozenset[bytes], bytes]]]


def body(folder: str, number: int) -> bytes:
    # The first two of a size: only their bytes tell them apart.
    return b"Message-ID: <same@example.com>\r\n\r\n%s %04d\r\n" % (folder.encode(), number)


@pytest.fixture
def filled(dovecot: Dovecot) -> Account:
    account = dovecot.account()
    client = dovecot.connect(account.name)
    for folder, messages in _FOLDERS.items():
        client.create(f'"{folder}"')
        for number, flags in enumerate(messages):
            client.append(f'"{folder}"', flags, _DATE, body(folder, number))
    client.append("INBOX", "", _DATE, b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n" * 700_000)
    client.logout()
    return account


@pytest.fixture
def source(owner: User, filled: Account) -> IngestionSource:
    config = imap_source.config(filled)
    source = configuration.create(
        owner=owner, name="Ada", provider="generic_imap", provider_config=config, actor=ACTOR
    )
    verbs.start_import(source, actor=ACTOR)
    due_work.work_until_done(source, on_progress=lambda _: None)
    return source


def everything(dovecot: Dovecot, account: Account) -> Mails:
    """Read all that is there by the standard library: bytes, flags and date by folder."""
    found: Mails = {}
    client = dovecot.connect(account.name)
    for line in client.list()[1]:
        assert isinstance(line, bytes)
        folder = line.rpartition(b' "/" ')[2].decode().strip('"')
        if client.select(f'"{folder}"', readonly=True)[0] != "OK":
            continue  # a level without mail
        for entry in client.uid("FETCH", "1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")[1]:
            if isinstance(entry, tuple):
                flags = frozenset(imaplib.ParseFlags(entry[0])) - {b"\\Recent"}
                date = re.search(rb'INTERNALDATE "([^"]+)"', entry[0])
                assert date
                found.setdefault(folder, []).append((entry[1], flags, date[1]))
    client.logout()
    return {folder: sorted(mails, key=lambda mail: mail[0]) for folder, mails in found.items()}


def words(target: Account) -> tuple[str, ...]:
    to = f"--to-imap={target.host}:{target.port}"
    return (to, f"--imap-user={target.name}", "--imap-encryption=none")


def restored(manage: CommandLine, target: Account, tmp_path: Path, *more: str) -> Result:
    password = tmp_path / "password"
    password.write_text(f"{target.password}\n")
    return manage.here("export", *words(target), f"--imap-password-file={password}", *more)


def test_bytes_dates_flags_and_folders_are_as_they_were_and_twice_is_once(
    dovecot: Dovecot, filled: Account, source: IngestionSource, manage: CommandLine, tmp_path: Path
) -> None:
    target = dovecot.account()

    first = restored(manage, target, tmp_path)

    assert (first.code, first.stdout) == (0, "6 put, 0 were there, 0 could not be put.\n")
    wanted = everything(dovecot, filled)
    assert len(wanted["INBOX"]) == 3
    assert everything(dovecot, target) == wanted
    again = restored(manage, target, tmp_path, "--json")
    assert (
        again.stdout.replace("\n", "") == '{  "put": 0,  "there": 6,  "failed": 0,  "unindexed": 0}'
    )
    assert everything(dovecot, target) == wanted
    event = AuditEvent.objects.filter(action="export.restore").latest("id")
    assert event.changes["to"] == f"{target.name} at {target.host}"
    assert target.password not in str(event.changes)


def test_killed_halfway_and_again_it_is_exact(
    dovecot: Dovecot, filled: Account, source: IngestionSource, manage: CommandLine, tmp_path: Path
) -> None:
    target = dovecot.account()
    manage.env["IMAP_PASSWORD"] = target.password
    process = manage.start("export", *words(target), "--imap-password-env=IMAP_PASSWORD")
    while process.poll() is None and not everything(dovecot, target):
        pass  # until something was put
    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert restored(manage, target, tmp_path).code == 0
    assert everything(dovecot, target) == everything(dovecot, filled)


def test_a_folder_that_somebody_deletes_meanwhile_ends_no_others(
    dovecot: Dovecot, filled: Account, source: IngestionSource
) -> None:
    target = dovecot.account()
    client = dovecot.connect(target.name)
    client.create("Sent")
    failed: list[str] = []

    def delete(_: Restored) -> None:
        client.delete("Sent")

    done = restore(
        Selection(source.owner, ""),
        ImapConfig(**imap_source.config(target)),
        about="",
        actor=ACTOR,
        on_failed=lambda _, why: failed.append(why),
        on_progress=delete,
    )
    client.logout()
    assert (done.put, done.failed) == (5, 1)
    assert len(failed) == 1
    assert "Sent" not in everything(dovecot, target)


@pytest.mark.parametrize("level", ["long" * 45, "长" * 60], ids=["ascii", "encoded"])
def test_a_folder_of_a_very_long_name_is_made_and_filled_at_once(
    dovecot: Dovecot, level: str
) -> None:
    """Of more than 1,000 bytes as the server writes it."""
    config = ImapConfig(**imap_source.config(dovecot.account()))
    body = b"Subject: kept\r\n\r\n"
    for there in (False, True):
        with Target(config, Environment(timeout_seconds=10)) as target:
            folder = target.folder([level] * 7, "")
            assert folder.has(Print(body)) is there
            if not there:
                assert folder.put(body, Print(body), flags=(), at=None) == ""


def test_a_wrong_password_and_a_wrong_command_line_are_said(
    dovecot: Dovecot, source: IngestionSource, manage: CommandLine, tmp_path: Path
) -> None:
    target = dovecot.account()
    target.password = "wrong"
    refused = restored(manage, target, tmp_path)
    assert refused.code == 1
    assert "check user name and password" in refused.stderr
    assert restored(manage, target, tmp_path, "--format=eml").code == 2
    assert manage.here("export", "--to-imap=x", "--imap-user=y").code == 2
    assert manage.here("export", "--to-imap=x").code == 2
