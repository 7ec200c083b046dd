"""The bytes of an IMAP connection: deadlines, bounded reads, commands, and the response reader.

Not imaplib, which holds a whole reply before it shows a line, and knows no deadline.
"""

import base64
import contextlib
import itertools
import math
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence

from connectors.errors import Fatal, MessageRefused, Unavailable
from connectors.generic_imap.syntax import Literal, printable
from connectors.types import CHUNK_BYTES, SPOOL_BYTES, Body, SpooledBody

_RECV_BYTES = 1 << 18
#: A line holds no body: only a long SEARCH, LIST or FLAGS reply. Two million UIDs fit.
_MAX_LINE_BYTES = 16_000_000
#: A literal that is no body: a folder name, a label, an address.
MAX_SMALL_LITERAL_BYTES = 1_000_000
#: A reply that comes slower than this is no progress: the deadline of a literal (bytes/second).
_MIN_RATE = 1_000
#: A message that takes longer is given up: a worker that hangs is ended after an hour.
_MAX_LITERAL_SECONDS = 2_400.0
#: How long a command may take without a line of its reply, and with one now and then: Dovecot says
#: "* OK Searched 97% of the mailbox" every 10 s, in a SEARCH of 10 minutes.
_COMMAND_SECONDS = 120.0
_REPLY_SECONDS = 1_800.0
#: How long what is silent is listened to once more, after it was spoken to.
_OVERHEAR_SECONDS = 2.0
#: RFC 7888 section 5: LITERAL- does without the server's "+" up to this size.
SHORT_LITERAL_BYTES = 4_096
#: What one command may answer in all, where the reply is held: LIST of 200,000 folders fits.
MAX_REPLY_BYTES = 64_000_000
#: What Python takes for one response, however short, on top of its bytes (measured on 3.11).
_RESPONSE_BYTES = 130

#: XOAUTH2 asks twice where it refuses; nothing here asks more often.
_MAX_CHALLENGES = 5

_STATUS = re.compile(rb"\* (?:OK|NO|BAD|BYE|PREAUTH)\b", re.IGNORECASE)
_LITERAL = re.compile(rb"~?\{(\d{1,19})\+?\}\r?\n$")
#: What stands for FETCH where no sequence numbers are told (RFC 9586): its number is the UID.
_UIDFETCH = re.compile(rb"\A\* (\d{1,10}) UIDFETCH \(", re.IGNORECASE)


class Wire:
    """One connection. Raises Unavailable (EOF, timeout, deadline) from every read."""

    def __init__(
        self,
        connection: socket.socket,
        *,
        name: str,
        timeout_seconds: float,
        secrets: Iterable[str] = (),
        until: float = math.inf,
    ) -> None:
        """`until` (monotonic) ends the connection whatever it is doing. `secrets` are taken out of
        all that the server says."""
        self.sock, self.name = connection, name
        self._timeout_seconds = timeout_seconds
        self._until = until
        self._secrets = spellings(secrets)
        #: What the server said it has enabled.
        self.enabled: set[bytes] = set()
        #: Of how many bytes a literal may be that is sent without asking.
        self.unasked_literal_bytes = 0
        #: Whether the server can't take a command before it has answered the last one.
        self.one_at_a_time = False
        self._buffer = b""
        self._position = 0
        self._tags = itertools.count(1)
        self._alive = True
        self._shortened = False
        self.sock.settimeout(timeout_seconds)
        self.renew()

    # -- the connection ------------------------------------------------------------------------

    def greeting(self) -> bytes:
        """Read the server's first line; of what is no IMAP, which may have no lines, what came."""
        while not self.has_buffered:
            self._fill()
        first = self._buffer[self._position :]
        return self.readline() if first.startswith(b"*") else first

    def overheard(self) -> bytes:
        """Return what the server says to a command that it did not ask for; b"" where nothing.

        For one that is silent: what speaks first in another protocol answers with an error of it.
        Ends the connection.
        """
        try:
            self.sock.settimeout(min(_OVERHEAR_SECONDS, self._timeout_seconds))
            self.sock.sendall(b"W0 CAPABILITY\r\n\r\n")
            return self.sock.recv(_RECV_BYTES)
        except OSError:
            return b""
        finally:
            self.cut()

    def read(self, size: int) -> bytes:
        """Read a literal that is no body."""
        if size > MAX_SMALL_LITERAL_BYTES:
            raise self._lost(f"announced {size:,} bytes where none were asked for")
        return self.exactly(size)

    def readline(self) -> bytes:
        start = self._position
        while (end := self._buffer.find(b"\n", start)) < 0:
            start = len(self._buffer) - self._position
            if start > _MAX_LINE_BYTES:
                raise self._lost("sent a line without end")
            self._fill()
        line = self._buffer[self._position : end + 1]
        self._position = end + 1
        return _UIDFETCH.sub(rb"* \1 FETCH (UID \1 ", line) if self.uid_only else line

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise self._lost("closed the connection") from error

    def close(self) -> None:
        self.cut()
        self.sock.close()

    def cut(self) -> None:
        """End the connection, from any thread: whoever waits in it gets Unavailable. Idempotent."""
        self._alive = False
        with contextlib.suppress(OSError):  # not connected any more: what is wanted
            # Not SSLSocket.shutdown(), which takes the TLS state from under the reading thread.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    @property
    def alive(self) -> bool:
        """Whether the connection may be used: no command failed half-way."""
        return self._alive

    @property
    def uid_only(self) -> bool:
        """Whether the server takes and tells no sequence numbers any more (RFC 9586)."""
        return b"UIDONLY" in self.enabled

    # -- limits --------------------------------------------------------------------------------

    def renew(self, seconds: float = _COMMAND_SECONDS) -> None:
        """Start the clock of a command, or of a reply that made progress."""
        self.deadline = min(self._until, time.monotonic() + seconds)

    def _renew_for(self, size: int) -> None:
        """Start the clock of a literal of so many bytes."""
        seconds = self._timeout_seconds * 2 + size / _MIN_RATE
        self.renew(min(seconds, _MAX_LITERAL_SECONDS))

    def words(self, said: bytes) -> str:
        """Return a server's text for people, without any secret that it echoes."""
        return without(self._secrets, said)

    # -- reading -------------------------------------------------------------------------------

    def exactly(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        have = len(self._buffer) - self._position
        if have >= size:
            data = self._buffer[self._position : self._position + size]
            self._position += size
            return data
        parts = [self._buffer[self._position :]]
        self._buffer, self._position = b"", 0
        missing = size - have
        while missing > 0:
            part = self._receive(max(missing, _RECV_BYTES))
            if len(part) > missing:
                self._buffer, part = part, part[:missing]
                self._position = missing
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def buffered(
        self, announced: re.Pattern[bytes], ending: bytes, *, limit: int
    ) -> tuple[re.Match[bytes], bytes] | None:
        """Take a response whose only literal, of at most `limit` bytes, is followed by nothing but
        `ending`, where all of it was received. Else return None and take nothing. `announced`
        matches up to the literal; its group "size" is the literal's."""
        match = announced.match(self._buffer, self._position)
        if match is None:
            return None
        end = match.end() + int(match["size"])
        if end - match.end() > limit or not self._buffer.startswith(ending, end):
            return None
        self._position = end + len(ending)
        return match, self._buffer[match.end() : end]

    def body(self, size: int) -> Body:
        """Read the literal of a message: in memory, or spooled where it is large. Raises
        MessageRefused where there is no room; then it is read all the same."""
        self._renew_for(size)
        if size <= SPOOL_BYTES:
            return self.exactly(size)
        left, spool = size, None
        try:
            spool = SpooledBody.begin()
            while left:
                chunk = self.exactly(min(CHUNK_BYTES, left))
                left -= len(chunk)
                spool.write(chunk)
        except BaseException as error:
            if spool is not None:
                spool.close()
            if isinstance(error, MessageRefused):
                self.skip(left)
            raise
        return spool

    def skip(self, size: int) -> None:
        """Read a literal that nobody wants."""
        self._renew_for(size)
        for start in range(0, size, CHUNK_BYTES):
            self.exactly(min(CHUNK_BYTES, size - start))

    @property
    def has_buffered(self) -> bool:
        return self._position < len(self._buffer)

    def _fill(self) -> None:
        self._buffer = self._buffer[self._position :] + self._receive(_RECV_BYTES)
        self._position = 0

    def _receive(self, size: int) -> bytes:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self._lost("answers too slowly") from TimeoutError()
        try:
            if left < self._timeout_seconds:
                self.sock.settimeout(left)
                self._shortened = True
            elif self._shortened:
                self.sock.settimeout(self._timeout_seconds)
                self._shortened = False
            data = self.sock.recv(size)
        except TimeoutError as error:
            raise self._lost("did not answer in time") from error
        except (OSError, ssl.SSLError) as error:
            raise self._lost("dropped the connection") from error
        if not data:
            raise self._lost("closed the connection")
        return data

    def _lost(self, what: str) -> Unavailable:
        self._alive = False
        return Unavailable(f"The server {self.name} {what}.")

    # -- TLS -----------------------------------------------------------------------------------

    def use(self, connection: ssl.SSLSocket) -> None:
        """Go on over an encrypted socket. Raises Fatal where plain bytes came after the OK."""
        if self.has_buffered:
            raise Fatal(f"{self.name} sent more than it may before TLS. Don't use it.", code="tls")
        self.sock = connection

    # -- commands ------------------------------------------------------------------------------

    def command(self, *parts: bytes | Literal, message: Body | None = None) -> bytes:
        """Send one command; return its tag, by which its status is read.

        Where a literal is refused, the status of the command is what says so. `message` is a
        literal of any size, the last argument.
        """
        tag = b"W%d" % next(self._tags)
        self.renew()
        line = tag
        for part in parts:
            if isinstance(part, Literal):
                if len(part.data) <= self.unasked_literal_bytes:
                    line += b" {%d+}\r\n" % len(part.data) + part.data
                    continue
                self.send(line + b" {%d}\r\n" % len(part.data))
                if not self._hear(b"+", tag + b" ").startswith(b"+"):
                    return tag
                line = part.data
            else:
                line += b" " + part
        if message is not None and not self._send_message(tag, line, message):
            return tag
        self.send(b"\r\n" if message is not None else line + b"\r\n")
        return tag

    def _send_message(self, tag: bytes, line: bytes, message: Body) -> bool:
        """Send a command up to the end of a message; False where the server does not want it."""
        size = message.size if isinstance(message, SpooledBody) else len(message)
        asks = size > self.unasked_literal_bytes
        self.send(line + (b" {%d}\r\n" if asks else b" {%d+}\r\n") % size)
        if asks and not self._hear(b"+", tag + b" ").startswith(b"+"):
            return False
        self._renew_for(size)
        for chunk in message.chunks() if isinstance(message, SpooledBody) else (message,):
            self.send(chunk)
        return True

    def converse(
        self, command: bytes, answer: Callable[[int], bytes]
    ) -> tuple[bytes, list[list[bytes]], int]:
        """Run a command that asks back (AUTHENTICATE): `answer` gives what to say to each
        challenge, counted from 0. Return what `run` returns, and how many challenges there were."""
        tag = self.command(command)
        asked = 0
        while self._hear(b"+", tag + b" ").startswith(b"+"):
            if asked >= _MAX_CHALLENGES:
                raise self._lost("asks back without end")
            self.send(base64.b64encode(answer(asked)) + b"\r\n")
            asked += 1
        return (*self._reply(tag), asked)

    def command_ahead(self, *parts: bytes | Literal) -> bytes:
        """Send a command before the answer to the last one is read, where the server takes that."""
        tag = self.command(*parts)
        if self.one_at_a_time:
            self._hear(tag + b" ")
        return tag

    def _hear(self, *starts: bytes) -> bytes:
        """Wait for a line that starts so, and return it. All that came, but a "+", is kept for
        whoever reads next."""
        heard = bytearray()
        while True:
            line = rest = self.readline()
            if line[:6].upper() == b"* BYE ":
                raise self.bye(line[2:])
            if not line.startswith(b"+"):
                heard += line
                while not _STATUS.match(line) and (match := _LITERAL.search(rest)):
                    literal, rest = self.read(int(match[1])), self.readline()
                    heard += literal + rest
            if len(heard) > MAX_REPLY_BYTES:
                raise self._lost("sent a reply without end")
            if line.startswith(starts):
                self._buffer = bytes(heard) + self._buffer[self._position :]
                self._position = 0
                return line

    def complete(self, line: bytes) -> list[bytes]:
        """Return a response as [text, literal, text, ...], reading its small literals."""
        parts = [line]
        if _STATUS.match(line):
            return parts  # words for people, in which "{5}" announces nothing
        size = 0
        while match := _LITERAL.search(parts[-1]):
            parts[-1] = parts[-1][: match.start()]
            parts += [self.read(int(match[1])), self.readline()]
            size += len(parts[-2]) + len(parts[-1])
            if size > _MAX_LINE_BYTES:
                raise self._lost("sent a response without end")
        return parts

    def run(self, *parts: bytes | Literal) -> tuple[bytes, list[list[bytes]]]:
        """Run one command to its end. Returns its status line without the tag, and the untagged
        responses (each as `complete` gives it, without "* ")."""
        return self._reply(self.command(*parts))

    def upload(self, *parts: bytes | Literal, body: Body) -> tuple[bytes, list[list[bytes]]]:
        """Run a command whose last argument is a message, and return what `run` does. A large one
        is sent only once the server wants it."""
        tag = self.command(*parts, message=body)
        return self._reply(tag)

    def _reply(self, tag: bytes) -> tuple[bytes, list[list[bytes]]]:
        statuses, untagged = self.replies([tag])
        return statuses[tag], untagged

    def replies(self, tags: Iterable[bytes]) -> tuple[dict[bytes, bytes], list[list[bytes]]]:
        """Read until all of these commands are answered. Returns their status lines without the
        tag, and the untagged responses as `run` does."""
        missing, statuses = set(tags), dict[bytes, bytes]()
        untagged: list[list[bytes]] = []
        size = 0
        ends = time.monotonic() + _REPLY_SECONDS
        while missing:
            line = self.readline()
            self.renew(min(_COMMAND_SECONDS, ends - time.monotonic()))
            if line.startswith(b"* "):
                response = self.complete(line)
                response[0] = response[0][2:]
                if response[0][:4].upper() == b"BYE ":
                    raise self.bye(response[0])
                if response[0][:8].upper() == b"ENABLED ":
                    self.enabled |= set(response[0].upper().split()[1:])
                untagged.append(response)
                size += held_bytes(response)
                if size > MAX_REPLY_BYTES:
                    raise self._lost("sent a reply without end")
            elif (parts := line.partition(b" "))[0] in missing:
                missing.discard(parts[0])
                statuses[parts[0]] = parts[2].strip()
        return statuses, untagged

    def idle(self) -> bytes:
        """Begin IDLE (RFC 2177); return its tag. Raises Unavailable where the server refuses."""
        tag = self.command(b"IDLE")
        line = self._hear(b"+", tag + b" ")
        if not line.startswith(b"+"):
            raise Unavailable(f"The server {self.name} takes no IDLE: {self.words(line.strip())}")
        return tag

    def done(self, tag: bytes) -> list[list[bytes]]:
        """End IDLE; return what the server said until then."""
        self.renew()
        self.send(b"DONE\r\n")
        return self._reply(tag)[1]

    def speaks_within(self, seconds: float) -> bool:
        """Tell whether the server says something within so long."""
        if self.has_buffered or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def bye(self, line: bytes) -> Unavailable:
        """The error for an untagged BYE."""
        self._alive = False
        return Unavailable(f"The server {self.name} said goodbye: {self.words(line[4:].strip())}")


def held_bytes(response: Sequence[bytes]) -> int:
    """Return how much memory a response takes that is kept."""
    return _RESPONSE_BYTES + sum(map(len, response))


def without(secrets: Iterable[bytes], said: bytes) -> str:
    """Return a server's text for people, without these spellings of secrets."""
    for secret in secrets:
        said = said.replace(secret, b"***")
    return printable(said)


def spellings(secrets: Iterable[str]) -> list[bytes]:
    """Return how secrets can come back: as they are, quoted, and in base64; longest first."""
    found: set[bytes] = set()
    for secret in secrets:
        if secret:
            raw = secret.encode()
            quoted = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
            found |= {raw, quoted, base64.b64encode(raw)}
    return sorted(found, key=len, reverse=True)
