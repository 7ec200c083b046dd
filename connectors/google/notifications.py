"""Gmail's notifications by Cloud Pub/Sub: a doorbell that is pulled, so nothing here is public.

developers.google.com/workspace/gmail/api/guides/push. Gmail publishes to a topic that a mailbox
changed; all mailboxes of a source share one topic and its one subscription, which keeps what nobody
pulled for seven days. What a notification names as the history's place is not looked at: where the
archive stands, its own cursor says. Anybody whom the topic's owner lets may publish anything.
"""

import base64
import binascii
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from connectors.base import Watch
from connectors.config import Environment
from connectors.errors import MailboxUnavailable, RateLimited, Unavailable
from connectors.google import client, refusals
from connectors.google.client import Caller, Unpaced
from connectors.google.config import GoogleConfig
from connectors.google.refusals import TOPIC_SCOPE, Asker, NoAnswer
from connectors.google.tokens import access
from connectors.google.transport import Http
from connectors.types import RemoteMailbox

log = structlog.get_logger(__name__)

#: Google answers a pull when there is something, or after a time of its own; so long is waited.
_PULL_SECONDS = 10.0
#: So long Pub/Sub is left alone after it failed several times.
_PAUSE_SECONDS = 10.0
#: Of a few hundred bytes each, as Gmail publishes them.
_MOST = 100
_MOST_BYTES = 10_000_000
_PERMISSION = "pubsub.subscriptions.consume"


class Notifications(Watch):
    """`tell` has Gmail tell of one mailbox, for seven days; it is called for each of `mailboxes`
    bit by bit, beside the pulls. Who wants them told for longer opens another."""

    def __init__(
        self,
        config: GoogleConfig,
        environment: Environment,
        stop: threading.Event,
        mailboxes: Sequence[RemoteMailbox],
        *,
        tell: Callable[[RemoteMailbox], None],
    ) -> None:
        seconds = min(_PULL_SECONDS, environment.timeout_seconds)
        own = dataclasses.replace(
            environment, timeout_seconds=seconds, max_message_bytes=_MOST_BYTES
        )
        self._http = Http(own, one_large=threading.Lock())
        self._caller = Caller(
            self._http,
            access(config, own, person="", scope=TOPIC_SCOPE),
            _asker(config),
            Unpaced(),
            "pubsub",
            stop,
        )
        self._subscription = config.subscription
        self._subscriptions = client.pubsub(own.endpoints["google.pubsub"]).subscriptions
        self._mailboxes = {mailbox.address.casefold(): mailbox for mailbox in mailboxes}
        self._untold, self._tell = list(mailboxes), tell
        self._pulled: list[str] = []
        self._paused_until = 0.0

    def close(self) -> None:
        self._http.close()

    def check(self) -> None:
        """Prove that notifications can be pulled. Raises ConnectorError."""
        request = self._subscriptions.testIamPermissions(
            resource=self._subscription, body={"permissions": [_PERMISSION]}
        )
        if _PERMISSION not in self._caller.call(request).get("permissions", ()):
            raise refusals.subscription_denied(self._caller.asker)

    def wait(self, seconds: float) -> Sequence[RemoteMailbox]:
        """Trouble that passes is waited out here: another Watch has all mailboxes told of again."""
        if (left := self._paused_until - time.monotonic()) > 0:
            self._caller.stop.wait(min(left, seconds))
            return ()
        try:
            return self._heard(seconds)
        except (RateLimited, Unavailable) as error:
            log.info("notifications_not_pulled", code=error.code)
            wait = max(error.retry_after_seconds or 0.0, _PAUSE_SECONDS)
            self._paused_until = time.monotonic() + wait
            return ()

    def _heard(self, seconds: float) -> Sequence[RemoteMailbox]:
        self._acknowledge()
        self._have_told(seconds)
        rang = {}
        for received in self._pull():
            self._pulled.append(str(received.get("ackId", "")))
            address = address_in(received.get("message"))
            if mailbox := self._mailboxes.get(address):
                rang[address] = mailbox
        return list(rang.values())

    def _pull(self) -> Sequence[dict[str, Any]]:
        body = {"maxMessages": _MOST}
        if self._untold:
            body["returnImmediately"] = True
        request = self._subscriptions.pull(
            subscription=self._subscription,
            body=body,
            fields="receivedMessages(ackId,message/data)",
        )
        try:
            found: Sequence[dict[str, Any]] = self._caller.call(request).get("receivedMessages", ())
        except NoAnswer:
            return ()
        return found

    def _acknowledge(self) -> None:
        """What is not acknowledged comes again, after a time that the subscription has."""
        if self._pulled:
            request = self._subscriptions.acknowledge(
                subscription=self._subscription, body={"ackIds": self._pulled}
            )
            self._caller.call(request)
            self._pulled = []

    def _have_told(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._untold and time.monotonic() < until:
            mailbox = self._untold.pop()
            try:
                self._tell(mailbox)
            except (MailboxUnavailable, Unavailable) as error:  # the others are told of
                log.info("mailbox_not_told_of", code=error.code)
            except RateLimited:
                self._untold.append(mailbox)
                return


def address_in(message: Any) -> str:
    """Return the address that a notification names, as it is compared; "" where it names none."""
    try:
        data = base64.b64decode(message["data"], altchars=b"-_")
        return str(json.loads(data)["emailAddress"]).casefold()
    except (binascii.Error, ValueError, TypeError, LookupError, RecursionError):
        return ""


def _asker(config: GoogleConfig) -> Asker:
    if not config.is_domain:
        return Asker(config.email, project=config.project.partition("-")[0])
    key = config.key
    return Asker(key["client_email"], key["client_id"], key["project_id"])
