"""What every provider must keep to, as one list. A provider's test class inherits ConnectorContract.

It needs a scripted server on a socket that the provider's own connector talks to: see `Account`.
"""

import abc
import contextlib
import json
import tempfile
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from connectors.base import Connector, MailboxSession
from connectors.errors import (
    ConnectorError,
    CursorExpired,
    MessageGone,
    MessageRefused,
    NeedsReauth,
    Retryable,
)
from connectors.types import (
    Cursor,
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteMailbox,
    SpooledBody,
)
from tests.servers.disk import file_sizes_limited

SECRET = "canary-9f3b"


class Account(abc.ABC):
    """One account on a scripted server of the provider. Made anew for each test."""

    @abc.abstractmethod
    def connector(self, *, secret: str = SECRET) -> Connector:
        """Return a connector to the account, not yet connected."""

    @abc.abstractmethod
    def deliver(self, body: bytes) -> str:
        """Put a message into the folder; return its remote id."""

    @abc.abstractmethod
    def remove(self, remote_id: str) -> None: ...

    @abc.abstractmethod
    def relabel(self, remote_id: str) -> None:
        """Change the message's labels (flags)."""

    @abc.abstractmethod
    def renumber(self) -> None:
        """Make every cursor useless."""

    @abc.abstractmethod
    def drop_connection_at(self, remote_id: str) -> None:
        """Break the connection instead of sending this message, once."""

    @abc.abstractmethod
    def requests(self) -> int:
        """Return how many requests were made so far."""


class ConnectorContract:
    """Subclasses give an `account` fixture, and the provider's name.

    `examples`: a valid providerConfig of each kind, with "canary" in every secret.
    """

    slug: ClassVar[str]
    examples: ClassVar[tuple[dict[str, Any], ...]]

    #: Whether the provider tells what is new from what changed. Where it does not, what was listed
    #: before is listed again with its new labels, and the engine recognises it.
    tells_new_from_changed = True
    #: What it costs to learn that nothing changed in a folder, once the folders are listed.
    requests_without_changes = 0

    @pytest.fixture
    def session(self, account: Account) -> Iterator[MailboxSession]:
        with self.opened(account) as session:
            yield session

    @staticmethod
    @contextlib.contextmanager
    def opened(account: Account) -> Iterator[MailboxSession]:
        with account.connector() as connector:
            [mailbox] = connector.mailboxes()
            with connector.open(mailbox) as session:
                yield session

    @staticmethod
    def folder(session: MailboxSession) -> RemoteFolder:
        return next(iter(session.folders()))

    def listed(self, session: MailboxSession, since: Cursor | None = None) -> list[Page]:
        return list(session.changes(self.folder(session), since))

    def followed(self, account: Account, since: Cursor) -> list[Page]:
        with self.opened(account) as session:
            return self.listed(session, since)

    # -- the way in ------------------------------------------------------------------------------

    def test_a_good_account_is_recognised(self, account: Account) -> None:
        with account.connector() as connector:
            assert connector.check().account

    def test_a_wrong_secret_needs_a_person_and_is_not_repeated_to_them(
        self, account: Account
    ) -> None:
        with pytest.raises(NeedsReauth) as caught, account.connector(secret="wrong-7c1d") as c:
            c.check()
        assert "wrong-7c1d" not in str(caught.value)

    def test_no_secret_is_in_a_repr(self, account: Account) -> None:
        connector = account.connector()
        assert SECRET not in repr(connector) + repr(vars(connector))

    def test_a_mailbox_has_the_same_id_each_time(self, account: Account) -> None:
        with account.connector() as connector, account.connector() as another:
            first, again = list(connector.mailboxes()), list(another.mailboxes())
        assert first == again
        assert len({mailbox.remote_id for mailbox in first}) == len(first)

    def test_a_mailbox_of_somebody_else_is_not_opened(self, account: Account) -> None:
        stranger = RemoteMailbox("stranger@example.com", "stranger@example.com")
        account.deliver(b"not theirs")
        with (
            account.connector() as connector,
            pytest.raises(ConnectorError),
            connector.open(stranger) as session,
        ):
            session.folders()

    # -- listing ---------------------------------------------------------------------------------

    def test_every_message_is_listed_once(self, account: Account) -> None:
        ids = [account.deliver(b"message %d" % n) for n in range(5)]
        with self.opened(account) as session:
            pages = self.listed(session)
        assert sorted(ref.remote_id for page in pages for ref in page.added) == sorted(ids)

    def test_cursors_survive_being_stored(self, account: Account) -> None:
        account.deliver(b"one")
        with self.opened(account) as session:
            for page in self.listed(session):
                assert json.loads(json.dumps(dict(page.cursor))) == dict(page.cursor)

    def test_an_empty_folder_gets_a_cursor_too(self, account: Account) -> None:
        with self.opened(account) as session:
            pages = self.listed(session)
        assert pages
        new = account.deliver(b"the first")
        found = [r.remote_id for p in self.followed(account, pages[-1].cursor) for r in p.added]
        assert found == [new]

    def test_a_folder_without_changes_costs_next_to_nothing(self, account: Account) -> None:
        account.deliver(b"one")
        with self.opened(account) as session:
            cursor = self.listed(session)[-1].cursor
        with self.opened(account) as session:
            folder = self.folder(session)
            before = account.requests()
            assert list(session.changes(folder, cursor)) == []
            assert account.requests() == before + self.requests_without_changes

    def test_each_pages_cursor_goes_on_where_the_page_ended(self, account: Account) -> None:
        ids = {account.deliver(b"message %d" % n) for n in range(7)}
        with self.opened(account) as session:
            pages = self.listed(session)
        done: set[str] = set()
        for page in pages:
            done |= {ref.remote_id for ref in page.added}
            rest = {r.remote_id for p in self.followed(account, page.cursor) for r in p.added}
            assert done | rest >= ids

    def test_what_is_new_changed_and_gone_is_told(self, account: Account) -> None:
        kept, changed, gone = (account.deliver(b"message %d" % n) for n in range(3))
        with self.opened(account) as session:
            cursor = self.listed(session)[-1].cursor
        account.relabel(changed)
        account.remove(gone)
        new = account.deliver(b"new")
        pages = self.followed(account, cursor)
        added = [ref.remote_id for page in pages if not page.again for ref in page.added]
        relabelled = {remote_id for page in pages for remote_id, _ in page.relabelled}
        if not self.tells_new_from_changed:
            relabelled |= {remote_id for remote_id in added if remote_id in (kept, changed)}
            added = [remote_id for remote_id in added if remote_id not in relabelled]
        assert added == [new]
        assert changed in relabelled
        assert self.removed_of(pages, {kept, changed, gone, new}) == {gone}
        assert self.followed(account, pages[-1].cursor) == []

    @staticmethod
    def removed_of(pages: list[Page], known: set[str]) -> set[str]:
        removed = {remote_id for page in pages for remote_id in page.removed}
        for page in pages:
            if page.present is not None:
                removed |= {remote_id for remote_id in known if remote_id not in page.present}
        return removed

    def test_a_useless_cursor_is_said_to_be_one(self, account: Account) -> None:
        old = account.deliver(b"one")
        with self.opened(account) as session:
            cursor = self.listed(session)[-1].cursor
        account.renumber()
        with self.opened(account) as session:
            with pytest.raises(CursorExpired):
                self.listed(session, cursor)
            pages = self.listed(session)
        [ref] = [ref for page in pages for ref in page.added]
        if ref.remote_id != old:
            assert self.removed_of(pages, {old, ref.remote_id}) == {old}

    # -- downloading -----------------------------------------------------------------------------

    def test_bytes_are_exact(self, account: Account, session: MailboxSession) -> None:
        bodies = [b"plain\r\n", b"bare\nline\n", b"\x00\xff\x80", b"x" * 70_000, b")\r\n{3}\r\n"]
        of_id = {account.deliver(body): body for body in bodies}
        refs = [ref for page in self.listed(session) for ref in page.added]
        got = {a.ref.remote_id: content(a) for a in session.fetch(self.folder(session), refs)}
        assert got == of_id

    def test_labels_are_told_alike_with_the_bytes_and_without(
        self, account: Account, session: MailboxSession
    ) -> None:
        changed = account.deliver(b"one")
        account.deliver(b"two")
        refs = [ref for page in self.listed(session) for ref in page.added]
        account.relabel(changed)
        folder = self.folder(session)
        told = {ref.remote_id: ref.labels for ref in session.describe(folder, refs)}
        for answer in session.fetch(folder, refs):
            content(answer)
            labels = told.pop(answer.ref.remote_id)
            assert labels is None or labels == (answer.ref.labels or ())
        assert not told

    def test_a_large_message_is_on_disk(self, account: Account, session: MailboxSession) -> None:
        body = bytes(range(256)) * 20_000
        account.deliver(body)
        refs = [ref for page in self.listed(session) for ref in page.added]
        [answer] = session.fetch(self.folder(session), refs)
        assert isinstance(answer, RawMessage)
        assert isinstance(answer.body, SpooledBody)
        assert content(answer) == body

    def test_a_large_message_for_which_there_is_no_room_holds_up_no_other(
        self, account: Account, session: MailboxSession
    ) -> None:
        large = account.deliver(bytes(range(256)) * 30_000)
        others = {account.deliver(b"%d" % number) for number in range(3)}
        refs = [ref for page in self.listed(session) for ref in page.added]
        with file_sizes_limited(4_500_000):
            answers = list(session.fetch(self.folder(session), refs))
        [missing] = [answer for answer in answers if isinstance(answer, Missing)]
        assert isinstance(missing.error, MessageRefused)
        assert (missing.ref.remote_id, missing.error.code) == (large, "no_room")
        assert tempfile.gettempdir() in str(missing.error)
        assert {a.ref.remote_id for a in answers if isinstance(a, RawMessage)} == others

    def test_every_reference_is_answered_once(
        self, account: Account, session: MailboxSession
    ) -> None:
        ids = [account.deliver(b"message %d" % n) for n in range(20)]
        refs = [ref for page in self.listed(session) for ref in page.added]
        account.remove(ids[3])
        answers = list(session.fetch(self.folder(session), refs))
        assert sorted(answer.ref.remote_id for answer in answers) == sorted(ids)
        [missing] = [answer for answer in answers if isinstance(answer, Missing)]
        assert missing.ref.remote_id == ids[3]
        assert isinstance(missing.error, MessageGone)

    def test_nothing_is_asked_for_nothing(self, account: Account, session: MailboxSession) -> None:
        assert list(session.fetch(self.folder(session), [])) == []

    def test_a_broken_connection_keeps_what_came_and_the_rest_can_be_had(
        self, account: Account
    ) -> None:
        ids = [account.deliver(b"message %d" % n) for n in range(10)]
        account.drop_connection_at(ids[5])
        got: list[str] = []
        with self.opened(account) as session:
            refs = [ref for page in self.listed(session) for ref in page.added]
            with pytest.raises(Retryable):
                for answer in session.fetch(self.folder(session), refs):
                    assert isinstance(answer, RawMessage)
                    got.append(answer.ref.remote_id)
        rest = [ref for ref in refs if ref.remote_id not in got]
        with self.opened(account) as session:
            got += [a.ref.remote_id for a in session.fetch(self.folder(session), rest)]
        assert sorted(got) == sorted(ids)

    def test_a_download_can_be_left_in_the_middle_and_the_session_used_on(
        self, account: Account, session: MailboxSession
    ) -> None:
        for n in range(300):
            account.deliver(b"message %d" % n + b"x" * 20_000)
        refs = [ref for page in self.listed(session) for ref in page.added]
        folder = self.folder(session)
        answers = session.fetch(folder, refs)
        next(answers)
        close: Any = answers
        close.close()
        assert len(list(session.fetch(folder, refs[:3]))) == 3

    def test_closing_twice_is_nothing(self, account: Account) -> None:
        connector = account.connector()
        [mailbox] = connector.mailboxes()
        session = connector.open(mailbox)
        for _ in range(2):
            session.close()
            connector.close()

    def test_only_known_errors_come_out(self, account: Account, session: MailboxSession) -> None:
        foreign = MessageRef("no id of ours")
        try:
            answers = list(session.fetch(self.folder(session), [foreign]))
        except ConnectorError:
            return
        assert [type(answer) for answer in answers] == [Missing]


def content(answer: RawMessage | Missing) -> bytes:
    """Return a body's bytes. Fails where the message is missing."""
    assert isinstance(answer, RawMessage), answer
    if isinstance(answer.body, bytes):
        return answer.body
    whole = b"".join(answer.body.chunks())
    answer.body.close()
    return whole
