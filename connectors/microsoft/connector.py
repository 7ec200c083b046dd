"""The Microsoft 365 connector: a whole tenant by an application, or one mailbox by consent.

It only reads, with the least that lets it: Mail.Read and User.Read.All of an application, Mail.Read
and User.Read of a person. Everything goes through Microsoft Graph v1.0.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

from connectors.base import Connector, MailboxSession
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, MailboxUnavailable, NeedsReauth
from connectors.microsoft import directory, folders, listing
from connectors.microsoft.client import Graph, Pace, quoted
from connectors.microsoft.config import MicrosoftConfig
from connectors.microsoft.consent import consent
from connectors.microsoft.download import Download
from connectors.microsoft.refusals import Refusal
from connectors.types import (
    Cursor,
    Identity,
    MessageRef,
    Missing,
    Page,
    RawMessage,
    RemoteFolder,
    RemoteMailbox,
)

#: Connector.check() has 15 s; each step of it less.
_CHECK_SECONDS = 13.0
_CHECK_STEP_SECONDS = 6.0
#: Of a tenant, so many mailboxes are tried until one can be read.
_CHECK_MAILBOXES = 15


class MicrosoftConnector(Connector):
    def __init__(self, config: MicrosoftConfig, environment: Environment) -> None:
        self._config, self._environment = config, environment
        self._graph = Graph(config, environment)

    def close(self) -> None:
        self._graph.close()

    def check(self) -> Identity:
        timeout = min(_CHECK_STEP_SECONDS, self._environment.timeout_seconds)
        quick = dataclasses.replace(self._environment, timeout_seconds=timeout)
        graph = Graph(self._config, quick, until=time.monotonic() + _CHECK_SECONDS)
        try:
            return _Check(self._config, graph).identity()
        finally:
            graph.close()

    def mailboxes(self) -> Iterator[RemoteMailbox]:
        if self._config.signs_in:
            yield directory.own_mailbox(self._graph, self._config)
        else:
            yield from directory.mailboxes(self._graph, self._config)

    def open(self, mailbox: RemoteMailbox) -> MailboxSession:
        return MicrosoftSession(self._config, self._environment, self._graph, mailbox)


class MicrosoftSession(MailboxSession):
    """One mailbox. Its connections are the connector's."""

    def __init__(
        self,
        config: MicrosoftConfig,
        environment: Environment,
        graph: Graph,
        mailbox: RemoteMailbox,
    ) -> None:
        self._config, self._environment, self._graph = config, environment, graph
        self._base = _base(config, mailbox)
        self._pace = Pace(graph, graph.budgets(mailbox.remote_id))

    def folders(self) -> Sequence[RemoteFolder]:
        try:
            return folders.list_folders(
                self._pace, self._base, recoverable=self._config.includeRecoverableItems
            )
        except Refusal as refusal:
            raise _of_mailbox(refusal, self._graph) from None

    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        return listing.changes(self._pace, self._base, folder, since, relative=self._graph.relative)

    def fetch(
        self,
        folder: RemoteFolder,  # noqa: ARG002 - an id names a message in every folder
        refs: Sequence[MessageRef],
    ) -> Iterator[RawMessage | Missing]:
        return Download(
            self._pace,
            self._base,
            refs,
            connections=int(self._graph.limits["connections"]),
            max_message_bytes=self._environment.max_message_bytes,
        ).answers()


class _Check:
    """Proves that users can be listed and mail can be read, or says what is missing."""

    def __init__(self, config: MicrosoftConfig, graph: Graph) -> None:
        self._config, self._graph = config, graph

    def identity(self) -> Identity:
        if self._config.signs_in:
            mailbox = directory.own_mailbox(self._graph, self._config)
            if (error := self._refusal_of(mailbox)) is not None:
                raise Fatal(f"The sign-in works, and the mail can't be read. {error}")
            return Identity(mailbox.address)
        users = directory.mailboxes(self._graph, self._config)
        first = next(users, None)  # proves User.Read.All
        candidates = self._named() or itertools.chain([first] if first else [], users)
        return self._readable(candidates)

    def _named(self) -> list[RemoteMailbox]:
        name = self._config.checkMailbox
        return [RemoteMailbox(name, name)] if name else []

    def _readable(self, candidates: Iterator[RemoteMailbox] | list[RemoteMailbox]) -> Identity:
        tried, problem = 0, None
        for mailbox in candidates:
            if mailbox.unavailable:
                continue
            error = self._refusal_of(mailbox)
            if error is None:
                return Identity(self._config.tenantId, f"can read {mailbox.address}")
            problem = error if problem is None or error.code != "no_mailbox" else problem
            tried += 1
            if tried >= _CHECK_MAILBOXES or self._graph.seconds_left() < 1:
                break
        raise self._verdict(tried, problem)

    def _refusal_of(self, mailbox: RemoteMailbox) -> ConnectorError | None:
        """Read one message's id. Returns why this mailbox can't be read; raises what is wrong with
        all of them."""
        base = _base(self._config, mailbox)
        pace = Pace(self._graph, self._graph.budgets(mailbox.remote_id))
        try:
            pace.get(f"{base}/mailFolders/inbox/messages?$top=1&$select=id")
        except Refusal as refusal:
            error = _of_mailbox(refusal, self._graph)
            if isinstance(error, MailboxUnavailable):
                return error
            raise error from None
        return None

    def _verdict(self, tried: int, problem: ConnectorError | None) -> ConnectorError:
        if problem is None:
            return Fatal(
                "The tenant has no user with a mailbox. Check tenantId.", code="no_mailbox"
            )
        if problem.code == "access_policy":
            return Fatal(
                f"Users can be listed, and none of the {tried} mailboxes that were tried may be"
                " read: an application access policy in Exchange forbids it. Give checkMailbox, an"
                " address that the policy allows, or change the policy.",
                code="access_policy",
            )
        if problem.code == "access_denied":
            return NeedsReauth(
                "Users can be listed, and mail may not be read. In Entra, give the application the"
                " application permission Mail.Read and grant admin consent; an access policy in"
                " Exchange may also be the reason.",
                code="no_mail_read",
            )
        return Fatal(
            f"Users can be listed, and none of the {tried} mailboxes that were tried can be read."
            f" {problem}",
            code=problem.code,
        )


def _base(config: MicrosoftConfig, mailbox: RemoteMailbox) -> str:
    if config.signs_in:
        return "/me"
    name = mailbox.remote_id
    # An address, where a check names one; else an object id, which needs no quoting.
    return f"/users/{name if '@' in name else quoted(name)}"


def _of_mailbox(refusal: Refusal, graph: Graph) -> ConnectorError:
    """What a refusal means for a mailbox, and whether it is rather the permission that is gone."""
    if refusal.status == 403 and not refusal.policy and graph.tokens.lacks("Mail.Read"):
        return NeedsReauth(
            "The permission to read mail is missing. In Entra, give the application the permission"
            " Mail.Read (application, or delegated where a person signs in) and grant admin"
            " consent.",
            code="no_mail_read",
        )
    return refusal.of_mailbox()


CONNECTOR = MicrosoftConnector
CONSENT = consent
