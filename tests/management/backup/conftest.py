"""A source with two messages, where its backup is, and another machine to restore that on.

Models are imported where they are used: pytest may read this file before Django is set up.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers.command_line import CommandLine
from tests.servers.dovecot import Account, Dovecot

if TYPE_CHECKING:
    from django.contrib.auth.models import User

    from ingestion.models import IngestionSource
    from ingestion.services.operations.backup.place import Place
    from tests.management.backup.world import Elsewhere


@pytest.fixture
def owner(transactional_db: None) -> "User":
    from tests.servers import people

    return people.superuser("root")


@pytest.fixture
def account(dovecot: Dovecot) -> Account:
    from tests.management.backup.world import mail

    return dovecot.account(mail("one"), mail("two"))


@pytest.fixture
def source(account: Account, archive_dir: Path) -> "IngestionSource":
    """A source with two messages in one pack."""
    from tests.servers import imap_source

    source = imap_source.create(account)
    imap_source.imported(source)
    return source


@pytest.fixture
def more(account: Account, dovecot: Dovecot) -> "Callable[[IngestionSource, str], None]":
    """`more(source, "three")`: a message comes, and is archived in a pack of its own."""
    from tests.management.backup.world import mail
    from tests.servers import imap_source

    def come(source: "IngestionSource", name: str) -> None:
        dovecot.append(account.name, "INBOX", mail(name))
        imap_source.synced(source)

    return come


@pytest.fixture
def place(tmp_path: Path) -> "Place":
    from ingestion.services.operations.backup.place import Place

    return Place(tmp_path / "backup")


@pytest.fixture
def elsewhere(settings: Any, tmp_path: Path, manage: CommandLine) -> "Iterator[Elsewhere]":
    """`elsewhere()`: from now on this is another machine, with nothing on it."""
    from tests.servers.elsewhere import another_machine

    machine = another_machine(settings, tmp_path)
    began: list[None] = []

    def go() -> None:
        began.append(machine.__enter__())

    yield go
    if began:
        machine.__exit__(None, None, None)
