"""The Microsoft 365 connector: a whole tenant by an application, or one mailbox by consent.

It only reads, with the least that lets it: Mail.Read and User.Read.All of an application, Mail.Read
and User.Read of a person. Everything goes through Microsoft Graph v1.0.
"""

import dataclasses
import itertools
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from connectors.base import Connector, MailboxSession, require_own
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, NeedsReauth
from connectors.microsoft import directory, folders, listing
from connectors.microsoft.client import Call, Graph, Pace, quoted
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

_T = TypeVar("_T")

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
            # Of a tenant, to be refused with it may take all the time that there is.
            if not self._config.signs_in and (token := graph.tokens.known()):
                graph.tokens.forget(token)
            return _as_granted_now(graph, _Check(self._config, graph).identity)
        finally:
            graph.close()

    def mailboxes(self) -> Iterator[RemoteMailbox]:
        if self._config.signs_in:
            yield self._own_mailbox()
        else:
            yield from _as_granted_now(self._graph, self._users)

    def open(self, mailbox: RemoteMailbox) -> MailboxSession:
        if self._config.signs_in:  # "/me" is whoever did
            require_own(mailbox, self._own_mailbox().remote_id)
        return MicrosoftSession(self._config, self._environment, self._graph, mailbox)

    def _own_mailbox(self) -> RemoteMailbox:
        return _as_granted_now(
            self._graph, lambda: directory.own_mailbox(self._graph, self._config)
        )

    def _users(self) -> Iterator[RemoteMailbox]:
        """The first is asked for before this returns."""
        users = directory.mailboxes(self._graph, self._config)
        return itertools.chain([*itertools.islice(users, 1)], users)


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
        self._has_delta = config.where(environment).has_delta
        self._pace = Pace(graph, graph.budgets(mailbox.remote_id))

    def folders(self) -> Sequence[RemoteFolder]:
        return _as_granted_now(self._graph, self._folders)

    def _folders(self) -> Sequence[RemoteFolder]:
        try:
            return folders.list_folders(
                self._pace, self._base, recoverable=self._config.includeRecoverableItems
            )
        except Refusal as refusal:
            raise _of_mailbox(refusal, self._graph, self._config) from None

    def changes(self, folder: RemoteFolder, since: Cursor | None) -> Iterator[Page]:
        return listing.changes(
            self._pace,
            self._base,
            folder,
            since,
            relative=self._graph.relative,
            has_delta=self._has_delta,
        )

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
        """Return why a mailbox can't be read; None where it can."""
        try:
            _probe(self._graph, self._config, mailbox)
        except Refusal as refusal:
            return refusal.of_mailbox()
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
                " application permission Mail.Read and grant admin consent. Where Exchange limits"
                " it to some mailboxes instead, give checkMailbox, one of these.",
                code="no_mail_read",
            )
        return Fatal(
            f"Users can be listed, and none of the {tried} mailboxes that were tried can be read."
            f" {problem}",
            code=problem.code,
        )


def _as_granted_now(graph: Graph, ask: Callable[[], _T]) -> _T:
    """Ask, and once more with a new token where a permission is missing: one that is in hand tells
    of what was granted when it was issued, for an hour and more."""
    token = graph.tokens.known()
    try:
        return ask()
    except NeedsReauth:
        if token is None:
            raise
        graph.tokens.forget(token)
    return ask()


def _base(config: MicrosoftConfig, mailbox: RemoteMailbox) -> str:
    if config.signs_in:
        return "/me"
    # An object id; or an address, where a check names one.
    return f"/users/{urllib.parse.quote(mailbox.remote_id, safe='@')}"


def _probe(graph: Graph, config: MicrosoftConfig, mailbox: RemoteMailbox) -> None:
    """Begin to read the bytes of one message; where the inbox is empty, go by the token.

    Its id would prove too little: Mail.ReadBasic lists, and reads no message. Raises ConnectorError
    or Refusal.
    """
    pace, base = Pace(graph, graph.budgets(mailbox.remote_id)), _base(config, mailbox)
    page = pace.get(f"{base}/mailFolders/inbox/messages?$top=1&$select=id")
    if found := page.get("value"):
        pace.ask(Call(f"{base}/messages/{quoted(str(found[0]['id']))}/$value", take=lambda _: None))
    elif graph.tokens.lacks_mail_read() and not config.checkMailbox:
        raise Refusal(403, "no Mail.Read in the token")


def _of_mailbox(refusal: Refusal, graph: Graph, config: MicrosoftConfig) -> ConnectorError:
    """What a refusal means for a mailbox, and whether it is rather the permission that is gone."""
    if refusal.status != 403 or refusal.policy or not graph.tokens.lacks_mail_read():
        return refusal.of_mailbox()
    if config.checkMailbox:
        # Exchange's RBAC gives the permission without telling the token: then this one can be read.
        try:
            _probe(graph, config, RemoteMailbox(config.checkMailbox, config.checkMailbox))
        except Refusal:
            pass
        else:
            return refusal.of_mailbox()
    return NeedsReauth(
        "The permission to read mail is missing. In Entra, give the application the permission"
        " Mail.Read (application, or delegated where a person signs in) and grant admin consent."
        " Where Exchange gives it by RBAC for applications, give checkMailbox.",
        code="no_mail_read",
    )


CONNECTOR = MicrosoftConnector
CONSENT = consent
