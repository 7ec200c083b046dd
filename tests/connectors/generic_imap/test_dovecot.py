"""The IMAP connector and the engine against a real Dovecot: exact after every kind of change."""

import datetime as dt
import os
import re
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from connectors.errors import Fatal, NeedsReauth, Unavailable
from connectors.generic_imap import wire
from connectors.types import MessageRef, RawMessage, SpooledBody
from ingestion.models import Folder, IngestionSource, Mailbox, Message, Placement, Run
from ingestion.services.archive import reading
from ingestion.services.audit import Actor
from ingestion.services.engine import due_work
from ingestion.services.sources import configuration, verbs
from tests.servers.dovecot import Account, Dovecot
from tests.servers.imap_source import config

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("archive_dir")]
ACTOR = Actor.system("test")
#: Names as the server writes them (modified UTF-7): nested, non-ASCII, and hostile ones.
FOLDERS = [
    "INBOX", "Projects", "Projects/2024", "Projects/2024/Q1", "Projects/2024/Q2", "Sent", "Archive",
    "Entw&APw-rfe", "&U,BTFw-", "&ZeVnLIqe-/&MMYwuTDI-", "a&-b", "with space", "quote\\\"d", "<b>bold",
    "..dots", "percent%20", "semi;colon", "$(touch x)", "{5}", "100%", "O'Neill", "-rf",
    *(f"Lists/list-{number}" for number in range(8)),
]  # fmt: skip


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    return dovecot.account()


def connector(account: Account, **changes: Any) -> Connector:
    return registry.build(
        "generic_imap", config(account, **changes), Environment(timeout_seconds=10)
    )


def body(number: int | str) -> bytes:
    return f"Subject: {number}\r\nFrom: a@example.com\r\n\r\nBody {number} \u00e9\r\n".encode()


def imported(account: Account, **options: Any) -> IngestionSource:
    source = configuration.create(
        owner=User.objects.create_user("imap"),
        name="Dovecot",
        provider="generic_imap",
        provider_config=config(account),
        options={"includeJunk": True, "includeTrash": True, "includeDrafts": True} | options,
        actor=ACTOR,
    )
    verbs.start_import(source, actor=ACTOR)
    assert work(source).status == "completed"
    return source


def work(source: IngestionSource) -> Run:
    def hurry(_: Run) -> None:
        Mailbox.objects.update(not_before=timezone.now() - dt.timedelta(seconds=1))

    return due_work.work_until_done(source, on_progress=hurry)


def synced(source: IngestionSource) -> Run:
    verbs.start_sync(source, actor=ACTOR)
    return work(source)


def archived(source: IngestionSource) -> dict[tuple[str, str], bytes]:
    found = {}
    rows = Placement.objects.filter(removed_at=None).select_related("message", "folder")
    for placement in rows:
        message = placement.message
        content = reading.opened(message)
        if isinstance(content, SpooledBody):
            spool, content = content, b"".join(content.chunks())
            spool.close()
        found[(placement.folder.remote_id, placement.remote_id)] = content
    return found


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that fills with the commands sent from now on."""
    commands: list[bytes] = []
    send = wire.Wire.send

    def record(self: wire.Wire, data: bytes) -> None:
        if re.match(rb"\w+ [A-Z]", data):
            commands.append(data)
        send(self, data)

    monkeypatch.setattr(wire.Wire, "send", record)
    return commands


def test_thirty_folders_arrive_byte_for_byte_and_every_change_is_followed(
    dovecot: Dovecot, account: Account
) -> None:
    name = account.name
    for index, folder in enumerate(FOLDERS):
        dovecot.append(
            name, folder.replace('\\"', '"'), *(body(f"{folder} {n}") for n in range(index % 4 + 1))
        )
    source = imported(account)
    assert len(FOLDERS) == 30
    assert archived(source) == dovecot.contents(account.name)
    assert Folder.objects.get(remote_id="Entw&APw-rfe").path == "Entwürfe"

    assert synced(source).message == "0 archived."
    assert Run.objects.latest("started_at").bytes_done == 0

    client = dovecot.connect(name)
    client.select("INBOX")
    client.uid("STORE", "1", "+FLAGS", "(\\Flagged work)")
    client.select('"Lists/list-7"')
    client.uid("STORE", "1", "+FLAGS", "\\Deleted")
    client.expunge()
    client.select('"Projects/2024"')
    client.uid("MOVE", "1", "Archive")
    client.logout()
    dovecot.append(name, "Sent", body("new"))
    run = synced(source)
    assert run.messages_new == 1
    assert archived(source) == dovecot.contents(account.name)
    flagged = Placement.objects.get(folder__path="INBOX", remote_id__endswith=":1")
    assert flagged.labels == ["\\Flagged", "work"]
    assert Message.objects.count() == source.mailboxes.get().message_count

    dovecot.doveadm("mailbox", "rename", "-u", name, "Projects", "Done")
    dovecot.doveadm("mailbox", "delete", "-u", name, "a&-b".replace("&-", "&"))
    synced(source)
    assert archived(source) == dovecot.contents(account.name)
    assert Folder.objects.get(remote_id="a&-b").removed_at is not None


def test_a_uidvalidity_reset_relists_and_doubles_nothing(
    dovecot: Dovecot, account: Account
) -> None:
    dovecot.append(account.name, "INBOX", *(body(n) for n in range(20)))
    source = imported(account)
    dovecot.doveadm("mailbox", "update", "-u", account.name, "--uid-validity", "1234", "INBOX")
    dovecot.append(account.name, "INBOX", body("later"))
    synced(source)
    assert archived(source) == dovecot.contents(account.name)
    assert Message.objects.count() == 21


def test_a_folder_deleted_and_made_again_is_listed_from_the_beginning(
    dovecot: Dovecot, account: Account
) -> None:
    dovecot.append(account.name, "Work", body(1), body(2))
    source = imported(account)
    dovecot.doveadm("mailbox", "delete", "-u", account.name, "Work")
    dovecot.append(account.name, "Work", body(3), body(4))
    synced(source)
    assert archived(source) == dovecot.contents(account.name)


def test_what_mail_is_made_of_does_not_matter(dovecot: Dovecot, account: Account) -> None:
    """8-bit bytes, bare CR, no header, no body, a header alone, long lines, broken MIME."""
    odd = [
        b"\xff\xfe\x80 not a header\r\n\r\n\xe9\r\n",
        b"Subject: bare\rcr\r\n\r\na\rb\r\n",
        b"Subject: only a header\r\n",
        b"\r\n",
        b"X: " + b"y" * 100_000 + b"\r\n\r\n" + b"z" * 200_000,
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b\r\n--c",
        b"Subject: ) FETCH (UID 5 BODY[] {3}\r\n\r\n* 1 FETCH (UID 9 BODY[] {2}\r\nab)\r\n",
        b"From: =?utf-8?b?\x00?=\r\n\r\nNUL in a word\r\n".replace(b"\x00", b"AA=="),
    ]
    dovecot.append(account.name, "INBOX", *odd)
    nul_and_lf = b"Subject: nul\n\na\x00b\nbare line feeds\n"
    dovecot.deliver(account.name, f"1600000000.M1P1.host,S={len(nul_and_lf)}", nul_and_lf)
    source = imported(account)
    assert archived(source) == dovecot.contents(account.name)
    assert len(archived(source)) == 9


def test_a_message_of_30_mb_is_spooled_and_exact(dovecot: Dovecot, account: Account) -> None:
    dovecot.append(
        account.name,
        "INBOX",
        body(1),
        b"Subject: big\r\n\r\n" + os.urandom(1000).hex().encode() * 15_000,
    )
    source = imported(account)
    assert archived(source) == dovecot.contents(account.name)


def test_sparse_uids_cost_a_handful_of_commands(
    dovecot: Dovecot, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = account.name
    dovecot.append(name, "INBOX", body("first"))
    dovecot.doveadm("mailbox", "update", "-u", name, "--min-next-uid", "2000001", "INBOX")
    dovecot.append(name, "INBOX", *(body(n) for n in range(40)))
    commands = recorded(monkeypatch)
    with connector(account) as c, c.open(next(iter(c.mailboxes()))) as session:
        inbox = next(f for f in session.folders() if f.role == "inbox")
        got = [a for page in session.changes(inbox, None) for a in session.fetch(inbox, page.added)]
    assert len(got) == 41
    assert len(commands) <= 10, commands


def test_a_poll_without_changes_costs_few_commands_for_any_number_of_folders(
    dovecot: Dovecot, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        dovecot.append(account.name, f"f{number}", body(number))
    source = imported(account)
    commands = recorded(monkeypatch)
    assert synced(source).message == "0 archived."
    assert len(commands) <= 5, commands


def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(
    dovecot: Dovecot, account: Account
) -> None:
    dovecot.append(account.name, "INBOX", *(body(n) + b"x" * 50_000 for n in range(200)))
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.15):
            dovecot.kick(account.name)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        threading.Timer(1.5, stop.set).start()
        source = imported(account)
    finally:
        stop.set()
        thread.join()
    assert archived(source) == dovecot.contents(account.name)
    assert Message.objects.count() == 200


def test_the_mailbox_is_never_written_to(dovecot: Dovecot, account: Account) -> None:
    dovecot.append(account.name, "INBOX", body(1))
    imported(account)
    flags = dovecot.doveadm("fetch", "-u", account.name, "flags", "mailbox", "INBOX")
    assert "\\Seen" not in flags


@pytest.mark.parametrize("way", ["tls", "starttls", "xoauth2"])
def test_every_way_in_reads_mail(dovecot: Dovecot, account: Account, way: str) -> None:
    ways: dict[str, dict[str, Any]] = {
        "tls": {"port": dovecot.tls_port, "secure": True, "allowInsecureCert": True},
        "starttls": {"startTls": True, "allowInsecureCert": True},
        "xoauth2": {"password": "", "accessToken": dovecot.token(account.name)},
    }
    dovecot.append(account.name, "INBOX", body(1))
    with connector(account, **ways[way]) as c:
        assert c.check().account == account.name
        with c.open(next(iter(c.mailboxes()))) as session:
            inbox = next(f for f in session.folders() if f.role == "inbox")
            refs = [ref for page in session.changes(inbox, None) for ref in page.added]
            [answer] = session.fetch(inbox, refs)
    assert isinstance(answer, RawMessage)
    assert answer.body == body(1)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"password": "wrong-canary"}, NeedsReauth, "app password"),
        ({"password": "", "accessToken": "wrong-canary"}, NeedsReauth, "refused"),
        ({"secure": True}, Fatal, "does not speak TLS"),
        ({"startTls": True}, Fatal, "can't be verified"),
        ({"port": 1}, Unavailable, "Can't connect"),
        ({"host": "no-such-host.invalid"}, (Fatal, Unavailable), "host"),
    ],
)
def test_a_wrong_configuration_says_what_to_change(
    dovecot: Dovecot,
    account: Account,
    changes: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says) as caught, connector(account, **changes) as c:
        c.check()
    assert "canary" not in str(caught.value)


def test_private_addresses_are_refused_where_they_are_forbidden(
    dovecot: Dovecot, account: Account
) -> None:
    forbidding = Environment(forbid_private_addresses=True)
    for host in ("127.0.0.1", "localhost"):
        built = registry.build("generic_imap", config(account, host=host), forbidding)
        with pytest.raises(Fatal, match="private"):
            built.check()


def test_a_reference_of_another_uidvalidity_is_gone_and_none_is_left_unanswered(
    dovecot: Dovecot, account: Account
) -> None:
    dovecot.append(account.name, "INBOX", body(1))
    with connector(account) as c, c.open(next(iter(c.mailboxes()))) as session:
        inbox = next(f for f in session.folders() if f.role == "inbox")
        [ref] = [ref for page in session.changes(inbox, None) for ref in page.added]
        validity = ref.remote_id.partition(":")[0]
        asked = [ref, MessageRef("7:1"), MessageRef(f"{validity}:99")]
        answers = {a.ref.remote_id: type(a).__name__ for a in session.fetch(inbox, asked)}
    assert answers == {ref.remote_id: "RawMessage", "7:1": "Missing", f"{validity}:99": "Missing"}
