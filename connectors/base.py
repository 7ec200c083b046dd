"""The interface that every provider implements.

Public: Connector, MailboxSession, Watch, Consent, DeviceConsent, DevicePrompt, require_own.

A connector reads, and only reads: it opens mailboxes read-only and sets no flag. It knows nothing
of the database; it raises only `connectors.errors` (anything else is a bug); it puts a deadline on
every network operation; its memory depends on neither the mailbox's size nor its message count.

The engine calls, for each mailbox, in one thread:

    with connector:
        with connector.open(mailbox) as session:
            for folder in session.folders():
                for page in session.changes(folder, cursor):      # lists: cheap
                    for answer in session.fetch(folder, refs):    # downloads only what is unknown
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from connectors.errors import MailboxUnavailable
from connectors.types import (
    Cursor,
    Identity,
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteMailbox,
    Wanted,
)


def require_own(mailbox: RemoteMailbox, own_id: str) -> None:
    """Raise MailboxUnavailable unless a mailbox is the only one that an account has: else another
    person's mail would be archived as if it were its owner's."""
    if mailbox.remote_id != own_id:
        raise MailboxUnavailable(
            "The source is for another account by now, and this mailbox is not that one's. What was"
            " archived of it stays. The next listing of the mailboxes says which there are."
        )


class _Closing:
    def close(self) -> None:
        """Free connections and threads, also after an error. Idempotent; never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Connector(_Closing, ABC):
    """One configured connection to a provider."""

    @abstractmethod
    def check(self) -> Identity:
        """Prove that mail can be read, not only that the login works.

        Raises NeedsReauth or Fatal with a sentence that says what to change; Retryable where the
        provider can't be reached now. Takes at most 15 s.
        """

    @abstractmethod
    def mailboxes(self) -> Iterator[RemoteMailbox]:
        """Yield every mailbox of the source, page by page, in the provider's order."""

    @abstractmethod
    def open(self, mailbox: RemoteMailbox) -> "MailboxSession":
        """Open one mailbox. Raises MailboxUnavailable where this one can't be had, or is not one of
        the account's: what was listed may be of the account that was configured before.
        """

    def watch(
        self,
        mailboxes: Sequence[RemoteMailbox],  # noqa: ARG002 - for those that can tell
    ) -> "Watch | None":
        """Have the provider tell when something changed in mailboxes; None where it can't."""
        return None


class MailboxSession(_Closing, ABC):
    """One mailbox, opened. Owns its network connections."""

    def prefer(self, wanted: Wanted) -> None:
        """Hear what will be kept, before the first listing: a hint that saves downloads, and other
        requests where nothing is archived yet.

        The engine drops the rest anyway, when it is listed or when it is fetched. A connector that
        leaves something out at listing says so in its cursors, and raises CursorExpired for one
        that left out what is wanted now. One folder for each role needs none of this.
        """

    @abstractmethod
    def folders(self) -> Sequence[RemoteFolder]:
        """List all folders that can hold mail, in one or two round trips for any number.

        Where those in one folder can't be listed, one that is `unlisted` stands for them; what is
        known of them is kept.
        """

    @abstractmethod
    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        """Yield what changed after `since`, oldest first; from the beginning where it is None.

        Yields nothing, at no cost, where nothing changed. Pages are bounded (20,000
        refs). Every page's cursor can be resumed from, also in the middle of a first listing.
        Raises CursorExpired where `since` is of no use any more: the engine calls again with
        None. Raises FolderGone where the folder vanished.
        """

    def describe(
        self,
        folder: RemoteFolder,  # noqa: ARG002 - for those that have more to say
        refs: Sequence[MessageRef],
    ) -> Sequence[MessageRef]:
        """Return messages that `changes` listed without labels, and that are archived already, with
        their labels; `fetch` tells those of the others. Messages of which nothing can be said may
        be left out. Raises what `fetch` raises.
        """
        return refs

    @abstractmethod
    def fetch(
        self, folder: RemoteFolder, refs: Sequence[MessageRef]
    ) -> Iterator[RawMessage | Missing]:
        """Stream the messages, in any order, answering for every ref exactly once.

        Hides latency (pipelined or concurrent), holds a bounded number of bytes, spools large
        bodies. The caller closes spooled bodies. A dropped connection is Retryable after what
        had arrived whole was yielded; the caller keeps that and asks again for the rest. Raises
        FolderRefused where the folder turns out to hold no mail.
        """


class Watch(_Closing, ABC):
    """A way by which a provider tells that mailboxes changed, for a day. A doorbell and no more:
    what it tells may come late, twice or never, and nobody waits for it."""

    @abstractmethod
    def wait(self, seconds: float) -> Sequence[RemoteMailbox]:
        """Wait until something changed, or for about so long; return where. Who calls again has
        seen to what was returned before. What came before this was opened is told too, or told
        as if it had come. Raises ConnectorError: open another.
        """


class Consent(ABC):
    """How a person grants access in the browser: OAuth 2 by authorization code with PKCE (RFC 6749
    section 4.1, RFC 7636). Made of a configuration that knows its client and not yet its tokens.

    A provider that has it sets CONSENT in its connector.py: (config, environment) -> Consent, or
    None where this configuration does not sign anybody in (a service account, say).
    """

    @abstractmethod
    def authorize_url(self, *, redirect_uri: str, state: str, code_challenge: str) -> str:
        """Return the provider's page, for the least that reading mail needs. No network.

        `code_challenge` is of method S256.
        """

    @abstractmethod
    def redeem(self, *, code: str, code_verifier: str, redirect_uri: str) -> Mapping[str, Any]:
        """Exchange the code; return the configuration's fields to store, refreshToken among them.

        Raises ConnectorError with a sentence for the person: too little was granted, it is another
        account than the configuration names, the code is of no use.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class DevicePrompt:
    """What a person types in where: `user_code` on `page`, within `seconds`. `secret` is for
    `DeviceConsent.poll` alone, at most every `interval_seconds`."""

    user_code: str
    page: str
    seconds: float
    interval_seconds: float
    secret: str = dataclasses.field(repr=False)


class DeviceConsent(Consent):
    """A Consent that also works without a browser on this machine: by typing in a code anywhere
    (RFC 8628)."""

    @abstractmethod
    def begin(self) -> DevicePrompt:
        """Ask for a code. Raises ConnectorError."""

    @abstractmethod
    def poll(self, prompt: DevicePrompt) -> Mapping[str, Any] | None:
        """Return what `Consent.redeem` returns once the person is done; None until then.

        Raises ConnectorError with a sentence for the person, as `Consent.redeem` does; also once
        the code has expired.
        """
