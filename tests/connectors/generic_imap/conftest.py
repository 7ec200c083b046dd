"""A scripted IMAP server of the test's own."""

from collections.abc import Iterator

import pytest

from tests.servers.imap_script import ImapScript


@pytest.fixture
def server() -> Iterator[ImapScript]:
    with ImapScript() as script:
        yield script
