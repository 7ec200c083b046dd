"""IDLE (RFC 2177): the server tells what comes to the INBOX, as it comes."""

import re
import time
from collections.abc import Sequence

from connectors.base import Watch
from connectors.generic_imap.client import Login
from connectors.types import RemoteMailbox

#: RFC 2177: begun anew at least every 29 minutes. Sooner, for the sake of routers that forget who
#: is silent.
_BEGIN_ANEW_SECONDS = 9 * 60.0
_CHANGE = re.compile(rb"(\* )?(\d+ (EXISTS|EXPUNGE|FETCH)|VANISHED)\b", re.IGNORECASE)


class Idling(Watch):
    """One connection that has the INBOX open and idles."""

    def __init__(self, login: Login, mailboxes: Sequence[RemoteMailbox]) -> None:
        self._login, self._mailboxes = login, mailboxes
        self._is_new = True
        self._tag, self._begun = login.wire.idle(), time.monotonic()

    def close(self) -> None:
        self._login.close()

    def wait(self, seconds: float) -> Sequence[RemoteMailbox]:
        if self._is_new:  # whatever came while nobody listened
            self._is_new = False
            return self._mailboxes
        return self._mailboxes if self._has_changed(seconds) else ()

    def _has_changed(self, seconds: float) -> bool:
        wire, until = self._login.wire, time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if now - self._begun >= _BEGIN_ANEW_SECONDS:
                said = wire.done(self._tag)
                self._tag, self._begun = wire.idle(), now
                if any(_CHANGE.match(response[0]) for response in said):
                    return True
            if now >= until or not wire.speaks_within(until - now):
                return False
            wire.renew()
            if self._is_change(wire.complete(wire.readline())[0]):
                return True

    def _is_change(self, line: bytes) -> bool:
        if line[:6].upper() == b"* BYE ":
            raise self._login.wire.bye(line[2:])
        if line.startswith(self._tag + b" "):  # it ends by itself
            self._tag, self._begun = self._login.wire.idle(), time.monotonic()
        return bool(_CHANGE.match(line))
