"""The program of docs/following.md, as it stands there, beside a service whose archive changes."""

import contextlib
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from ingestion.models import Folder, Mailbox, Message, Placement
from ingestion.services.audit import Actor
from ingestion.services.sources import verbs
from tests.e2e import rows
from tests.servers.stack import ROOT

if TYPE_CHECKING:
    from tests.servers.stack import Service

Row = tuple[int, str, str, str, str, str, str]


class Program:
    """The mirror: started, killed, and its table read."""

    def __init__(self, at: Path, env: dict[str, str]) -> None:
        page = (ROOT / "docs" / "following.md").read_text()
        [code] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        self.script, self.database = at / "mirror.py", at / "mirror.db"
        self.script.write_text(code)
        self._env = {**os.environ, **env}
        self.start()

    def start(self) -> None:
        command: list[str | Path] = [sys.executable, self.script, self.database]
        self.process = subprocess.Popen(command, env=self._env, stderr=subprocess.PIPE)

    def kill(self) -> None:
        self.process.kill()
        _, said = self.process.communicate()
        assert said == b""

    def rows(self) -> set[Row]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as db:
            try:
                found = db.execute(
                    "SELECT id, message, sha256, source, mailbox, folder, labels FROM mail"
                )
                return set(found)
            except sqlite3.OperationalError:
                return set()  # it has not made its table yet


@pytest.fixture
def program(
    service: "Service", owner: User, make_key: Callable[..., str], tmp_path: Path
) -> Iterator[Program]:
    key = make_key(owner, ("read",))
    made = Program(tmp_path, {"ARCHIVE_URL": service.url, "ARCHIVE_KEY": key})
    yield made
    made.kill()


def archived() -> set[Row]:
    placed = Placement.objects.filter(removed_at=None, mailbox__source__deleted_at=None)
    return {
        (
            *(p.pk, str(p.message_id), p.message.sha256_hex, str(p.mailbox.source_id)),
            *(p.mailbox.address, p.folder.path, json.dumps(p.labels)),
        )
        for p in placed.select_related("message", "folder", "mailbox")
    }


def change_something(chance: random.Random, folders: list[Folder], number: int) -> None:
    """Do to a placement, folder or mailbox what happens to them."""
    folder = chance.choice(folders)
    if not Placement.objects.exists() or chance.random() < 0.3:
        other = Folder.objects.create(
            mailbox=folder.mailbox, remote_id=f"new {number}", path=f"New {number}"
        )
        rows.archived(other, *(b"Subject: %d %d\r\n\r\n" % (number, n) for n in range(5)))
        return
    placement = chance.choice(list(Placement.objects.select_related("message")))
    one = Placement.objects.filter(pk=placement.pk)
    match chance.randrange(6):
        case 0:
            one.update(labels=[f"label {number}"])
        case 1:
            one.update(removed_at=None if placement.removed_at else timezone.now())
        case 2:  # moved
            one.update(removed_at=timezone.now())
            Placement.objects.create(
                mailbox_id=placement.mailbox_id,
                folder=Folder.objects.filter(mailbox=placement.mailbox_id).latest("pk"),
                message=placement.message,
                remote_id=f"moved {number}",
            )
        case 3:
            Message.objects.get(pk=placement.message_id).delete()
        case 4:
            Folder.objects.filter(pk=placement.folder_id).update(path=f"Renamed {number}")
        case 5:
            Mailbox.objects.filter(pk=placement.mailbox_id).update(address=f"{number}@example.com")


def test_the_mirror_of_the_page_stays_exact_through_kills(
    program: Program, owner: User, wait_for: Callable[..., Any]
) -> None:
    seed = int(os.environ.get("FEED_SEED", random.randrange(2**32)))
    print(f"FEED_SEED={seed}")
    chance = random.Random(seed)
    sources = [rows.a_source(owner, name) for name in ("One", "Two")]
    folders = [rows.a_folder(rows.a_mailbox(source)) for source in sources]
    for kill in range(8):
        until = time.monotonic() + chance.random()
        number = 0
        while time.monotonic() < until:
            change_something(chance, folders, number := number + 1 + 1000 * kill)
        program.kill()
        program.start()
    wait_for(lambda: program.rows() == archived())
    assert archived()

    verbs.delete(sources[0], actor=Actor.system("tests"))
    wait_for(lambda: program.rows() == archived())


def test_the_mirror_begins_again_where_its_cursor_leads_nowhere(
    program: Program, owner: User, wait_for: Callable[..., Any]
) -> None:
    folder = rows.a_folder(rows.a_mailbox(rows.a_source(owner)))
    rows.archived(folder, b"Subject: one\r\n\r\n", b"Subject: two\r\n\r\n")
    wait_for(lambda: program.rows() == archived())
    program.kill()
    with contextlib.closing(sqlite3.connect(program.database)) as db, db:
        db.execute("INSERT INTO mail (id, message) VALUES (1000000, 'of the database before')")
        db.execute("UPDATE place SET cursor = 'WyJhbm90aGVyIiwxLDFd'")  # ["another",1,1]
    program.start()
    wait_for(lambda: program.rows() == archived())
