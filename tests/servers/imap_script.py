"""A small IMAP server on a real socket that misbehaves on demand.

Owns an account in memory (`Box`, `Mail`) and the faults of servers that a real Dovecot does not have.
Without them it follows RFC 3501 and the RFCs of the extensions it offers; what only some providers do
has their name beside the switch (Yahoo, Gmail).
It is strict about what it is sent: an unknown command is BAD, as is a line too long for it.
"""

import contextlib
import dataclasses
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

DATE = b"17-Jul-2024 02:44:25 -0700"
PLAIN = ("IMAP4REV1", "LITERAL+")
MODERN = (*PLAIN, "ENABLE", "ESEARCH", "CONDSTORE", "QRESYNC", "LIST-STATUS", "SPECIAL-USE")


@dataclasses.dataclass
class Mail:
    """`size` is what RFC822.SIZE claims. `answer`, where given, replaces the body's literal.
    `refusal` answers who asks for the body, `unlisted` who asks for the date."""

    body: bytes
    flags: tuple[bytes, ...] = ()
    size: int | None = None
    modseq: int = 1
    email_id: bytes = b""
    gmail_id: int = 0
    labels: bytes = b""
    answer: bytes | None = None
    refusal: bytes = b""
    unlisted: bytes = b""


@dataclasses.dataclass
class Box:
    """One folder. `exists` overrides the count that EXAMINE tells."""

    validity: int = 1
    mails: dict[int, Mail] = dataclasses.field(default_factory=dict)
    next_uid: int = 1
    attributes: bytes = b""
    modseq: int = 1
    vanished: dict[int, int] = dataclasses.field(default_factory=dict)
    object_id: bytes = b""
    refusal: bytes = b""
    status_refusal: bytes = b""

    def deliver(self, body: bytes, *, uid: int | None = None, **about: object) -> int:
        uid = self.next_uid if uid is None else uid
        self.modseq += 1
        self.mails[uid] = Mail(body, modseq=self.modseq, **about)  # type: ignore[arg-type] # keywords in a dict
        self.next_uid = max(self.next_uid, uid + 1)
        return uid

    def flag(self, uid: int, *flags: bytes) -> None:
        self.modseq += 1
        self.mails[uid].flags, self.mails[uid].modseq = flags, self.modseq

    def expunge(self, uid: int, *, silent: bool = False) -> None:
        """Remove a message. `silent`: HIGHESTMODSEQ stays, as RFC 7162 lets servers without QRESYNC."""
        if not silent:
            self.modseq += 1
            self.vanished[uid] = self.modseq
        del self.mails[uid]


Hook = Callable[["Client", bytes, bytes], bool]


class ImapScript:
    """`boxes` is the account; `commands` is all it was asked; `hooks` see each command first and
    answer it themselves where they return True."""

    host = "127.0.0.1"

    def __init__(self, *, capabilities: Sequence[str] = MODERN) -> None:
        self.capabilities = list(capabilities)
        self.name, self.password = "me@example.com", "s3cret-canary"
        self.boxes: dict[bytes, Box] = {b"INBOX": Box()}
        self.delimiter = b'"/"'
        self.greeting = b"* OK ready\r\n"
        self.commands: list[bytes] = []
        self.hooks: list[Hook] = []
        self.logins = 0
        self.max_connections = 100
        self.turned_away = 0
        self.search_cap: int | None = None
        #: To how many messages, the highest, one command applies (RFC 9738), and how it says so.
        self.message_limit: int | None = None
        self.message_limit_status = b"OK"
        #: How many messages of a folder, the highest, are shown to who counts in sequence numbers
        #: (Yahoo). A client that has enabled UIDONLY (RFC 9586) sees all of them.
        self.view_limit: int | None = None
        #: Whether a UIDFETCH repeats the UID among its items.
        self.repeats_uids = False
        self.max_line = 8_192
        #: Who idles (RFC 2177), in the order in which they began.
        self.idling: list[Client] = []
        self.refuses_literals = False
        self.before_each_mail: Callable[[Client, int], None] = lambda _client, _uid: None
        #: In which order the items of a message are answered.
        self.arranged: Callable[[Sequence[bytes]], Sequence[bytes]] = lambda items: items
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._clients: list[Client] = []
        self._lock = threading.Lock()

    @property
    def inbox(self) -> Box:
        return self.boxes[b"INBOX"]

    def has(self, capability: str) -> bool:
        return capability in self.capabilities

    def asked(self, word: bytes) -> list[bytes]:
        """Return the commands that contain `word`."""
        return [command for command in self.commands if word in command]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="imap-script", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._clients:
            client.end()
            client.thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # it sends in pieces
            client = Client(self, connection)
            with self._lock:
                self._clients.append(client)
            client.thread.start()

    def end_all_but_the_first(self) -> None:
        """End the connections that were idle for too long, say, and wait until they are."""
        for client in self._clients[1:]:
            client.send(b"* BYE Idle for too long\r\n")
            client.end()
            client.thread.join(5)

    @property
    def open_connections(self) -> int:
        return sum(client.thread.is_alive() for client in self._clients)


class Client:
    """One connection, in a thread of its own."""

    def __init__(self, server: ImapScript, connection: socket.socket) -> None:
        self.server, self.socket = server, connection
        self.box: Box | None = None
        self.uid_only = False
        self.file = connection.makefile("rb")
        self.thread = threading.Thread(target=self._serve, name="imap-client", daemon=True)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hang_up(self) -> None:
        """Send nothing more. What was sent before arrives."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Hang up and hear nothing more. Ends the thread."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.server.open_connections > self.server.max_connections:
                self.server.turned_away += 1
                self.send(b"* BYE Too many simultaneous connections\r\n")
            else:
                self.send(self.server.greeting)
                while line := self._command():
                    self._answer(line)
        with contextlib.suppress(OSError):
            self.file.read()  # to its end: what nobody reads takes back what was sent (RST)
        with contextlib.suppress(OSError):
            self.file.close()
            self.socket.close()

    def _command(self) -> bytes:
        line = self.file.readline(1_000_000)
        while found := re.search(rb"\{(\d+)(\+?)\}\r\n$", line):
            if not found[2] and self.server.refuses_literals:
                self.send(line.partition(b" ")[0] + b" BAD no literals here\r\n")
                line = self.file.readline(1_000_000)
                continue
            if not found[2]:
                self.send(b"+ go on\r\n")
            line = line[: found.start()] + b"<" + self.file.read(int(found[1])) + b">"
            line += self.file.readline()
        return line.rstrip(b"\r\n") + (b"\n" if line else b"")

    def _answer(self, line: bytes) -> None:
        tag, _, command = line.rstrip(b"\n").partition(b" ")
        self.server.commands.append(command)
        if any(hook(self, tag, command) for hook in self.server.hooks):
            return
        if len(line) > self.server.max_line:
            self.send(tag + b" BAD Command line too long\r\n")
            return
        words = command.upper().split(b" ")
        name = b"_".join(words[:2]) if words[0] == b"UID" else words[0]
        method = getattr(self, "_do_" + name.decode("ascii", "replace").lower(), None)
        if method is None:
            self.send(tag + b" BAD Unknown command\r\n")
        else:
            self.send(tag + b" " + (method(command) or b"OK done") + b"\r\n")

    # -- the login -------------------------------------------------------------------------------

    def _do_capability(self, _: bytes) -> None:
        self.send(b"* CAPABILITY " + " ".join(self.server.capabilities).encode() + b"\r\n")

    def _do_login(self, command: bytes) -> bytes:
        words = re.findall(rb'"((?:[^"\\]|\\.)*)"|<([^>]*)>|(\S+)', command)[1:]
        given = [(re.sub(rb"\\(.)", rb"\1", a) or b or c).decode() for a, b, c in words]
        return self._logged_in(given == [self.server.name, self.server.password])

    def _do_authenticate(self, command: bytes) -> bytes:
        import base64

        self.send(b"+ \r\n")
        given = base64.b64decode(self.file.readline()).decode()
        if b"XOAUTH2" in command.upper():
            if f"auth=Bearer {self.server.password}\1" in given:
                return self._logged_in(True)
            self.send(b"+ " + base64.b64encode(b'{"status":"401"}') + b"\r\n")
            answer = self.file.readline()
            return b"NO SASL failed" if answer == b"\r\n" else b"BAD an empty line was due"
        return self._logged_in(given == f"\0{self.server.name}\0{self.server.password}")

    def _logged_in(self, good: bool) -> bytes:
        self.server.logins += good
        return b"OK welcome" if good else b"NO [AUTHENTICATIONFAILED] Invalid credentials"

    def _do_enable(self, command: bytes) -> None:
        self.uid_only = b"UIDONLY" in command and self.server.has("UIDONLY")
        self.send(b"* ENABLED " + command.partition(b" ")[2] + b"\r\n")

    def _do_id(self, _: bytes) -> None:
        self.send(b"* ID NIL\r\n")

    def _do_noop(self, _: bytes) -> None:
        pass

    def _do_idle(self, _: bytes) -> bytes:
        if not self.server.has("IDLE"):
            return b"BAD Unknown command"
        self.send(b"+ idling\r\n")
        self.server.idling.append(self)
        done = self.file.readline()
        self.server.idling.remove(self)
        return b"OK done" if done.upper() == b"DONE\r\n" else b"BAD DONE was due"

    def _do_logout(self, _: bytes) -> None:
        self.send(b"* BYE see you\r\n")

    # -- folders ---------------------------------------------------------------------------------

    def _do_list(self, command: bytes) -> None:
        status = re.search(rb"STATUS \(([^)]*)\)", command)
        for name, box in list(self.server.boxes.items()):
            self.send(
                b"* LIST (%s) %s %s\r\n" % (box.attributes, self.server.delimiter, _string(name))
            )
            if status and b"\\No" not in box.attributes and not box.status_refusal:
                self._send_status(name, box, status[1])

    def _do_status(self, command: bytes) -> bytes:
        found = re.match(rb"STATUS (.*) \(([^)]*)\)$", command, re.IGNORECASE)
        assert found
        name = _unstring(found[1])
        box = self.server.boxes.get(name)
        if box is None or box.status_refusal:
            return box.status_refusal if box else b"NO [NONEXISTENT] no such folder"
        self._send_status(name, box, found[2])
        return b"OK"

    def _send_status(self, name: bytes, box: Box, items: bytes) -> None:
        values = {
            b"MESSAGES": b"%d" % len(self._shown(box)),
            b"UIDNEXT": b"%d" % box.next_uid,
            b"UIDVALIDITY": b"%d" % box.validity,
            b"HIGHESTMODSEQ": b"%d" % box.modseq,
            b"UNSEEN": b"%d" % sum(b"\\Seen" not in mail.flags for mail in box.mails.values()),
            b"MAILBOXID": b"(%s)" % box.object_id,
        }
        told = b" ".join(item + b" " + values[item] for item in items.upper().split())
        self.send(b"* STATUS %s (%s)\r\n" % (_string(name), told))

    def _do_examine(self, command: bytes) -> bytes:
        name = _unstring(re.sub(rb" \(CONDSTORE\)$", b"", command[8:]))
        box = self.server.boxes.get(name)
        if box is None or box.refusal:
            self.box = None
            return box.refusal if box else b"NO [NONEXISTENT] no such folder"
        self.box = box
        self.send(b"* FLAGS (\\Seen)\r\n* %d EXISTS\r\n" % len(self._shown(box)))
        self.send(b"* 0 RECENT\r\n")
        self.send(b"* OK [UIDVALIDITY %d] ok\r\n" % box.validity)
        self.send(b"* OK [UIDNEXT %d] ok\r\n" % box.next_uid)
        if self.server.has("CONDSTORE"):
            self.send(b"* OK [HIGHESTMODSEQ %d] ok\r\n" % box.modseq)
        return b"OK [READ-ONLY] done"

    def _do_select(self, _: bytes) -> bytes:
        return b"BAD this server is for readers: EXAMINE"

    # -- messages --------------------------------------------------------------------------------

    def _do_uid_search(self, command: bytes) -> bytes:
        assert self.box is not None
        wanted = re.search(rb" UID ([0-9:,*]+)$", command)
        uids = self._uids(wanted[1]) if wanted else self._shown(self.box)
        uids, status = self._limited(uids)
        if self.server.search_cap is not None:
            uids = uids[: self.server.search_cap]
        if b"RETURN" in command.upper():
            if not self.server.has("ESEARCH"):
                return b"BAD no ESEARCH here"
            found = b" ALL " + ",".join(map(str, uids)).encode() if uids else b""
            self.send(b'* ESEARCH (TAG "x") UID' + found + b"\r\n")
        else:
            self.send(b"* SEARCH " + " ".join(map(str, uids)).encode() + b"\r\n")
        return status

    def _limited(self, uids: list[int]) -> tuple[list[int], bytes]:
        """Return which of these a command applies to, and how it ends (RFC 9738 section 3.1)."""
        limit = self.server.message_limit
        if limit is None or len(uids) <= limit:
            return uids, b"OK"
        uids = uids[-limit:]
        status = self.server.message_limit_status
        return uids, status + b" [MESSAGELIMIT %d %d] partial" % (limit, uids[0])

    def _do_fetch(self, command: bytes) -> bytes:
        assert self.box is not None
        if self.uid_only:
            return b"BAD [UIDREQUIRED] no sequence numbers any more"
        found = re.match(rb"FETCH (\S+) \((.*)\)$", command)
        assert found
        ordered = self._shown(self.box)
        numbers = _numbers(found[1], len(ordered))
        uids, status = self._limited([ordered[n - 1] for n in numbers if n <= len(ordered)])
        refusal = self._fetch(uids, found[2])
        return refusal if refusal != b"OK" else status

    def _do_uid_fetch(self, command: bytes) -> bytes:
        assert self.box is not None
        found = re.match(rb"UID FETCH (\S+) \((.*?)\)(?: \((.*)\))?$", command)
        assert found, command
        uids = self._uids(found[1])
        changed = re.search(rb"CHANGEDSINCE (\d+)( VANISHED)?", found[3] or b"")
        if changed:
            since = int(changed[1])
            gone = [uid for uid, modseq in self.box.vanished.items() if modseq > since]
            if changed[2] and gone:
                listed = ",".join(map(str, sorted(gone))).encode()
                self.send(b"* VANISHED (EARLIER) " + listed + b"\r\n")
            uids = [uid for uid in uids if self.box.mails[uid].modseq > since]
        uids, status = self._limited(uids)
        refusal = self._fetch(uids, found[2])
        return refusal if refusal != b"OK" else status

    def _fetch(self, uids: Sequence[int], items: bytes) -> bytes:
        assert self.box is not None
        wants_body = b"BODY" in items
        numbers = {uid: number for number, uid in enumerate(self._shown(self.box), 1)}
        for uid in uids:
            mail = self.box.mails.get(uid)
            if mail is None:
                continue
            refusal = (wants_body and mail.refusal) or (b"INTERNALDATE" in items and mail.unlisted)
            if refusal:
                return refusal
            if wants_body:
                self.server.before_each_mail(self, uid)
            told = self._items(uid, mail, items)
            if not self.uid_only:
                self.send(b"* %d FETCH (%s)\r\n" % (numbers[uid], told))
                continue
            if not self.server.repeats_uids:
                told = re.sub(rb"^UID \d+ ?", b"", told)
            self.send(b"* %d UIDFETCH (%s)\r\n" % (uid, told))
        return b"OK"

    def _items(self, uid: int, mail: Mail, items: bytes) -> bytes:
        size = len(mail.body) if mail.size is None else mail.size
        body = b"{%d}\r\n%s" % (len(mail.body), mail.body)
        values = {
            b"UID": b"UID %d" % uid,
            b"RFC822.SIZE": b"RFC822.SIZE %d" % size,
            b"INTERNALDATE": b'INTERNALDATE "' + DATE + b'"',
            b"FLAGS": b"FLAGS (" + b" ".join(mail.flags) + b")",
            b"EMAILID": b"EMAILID (" + mail.email_id + b")",
            b"THREADID": b"THREADID NIL",
            b"X-GM-MSGID": b"X-GM-MSGID %d" % mail.gmail_id,
            b"X-GM-THRID": b"X-GM-THRID %d" % mail.gmail_id,
            b"X-GM-LABELS": b"X-GM-LABELS (" + mail.labels + b")",
            b"BODY.PEEK[]": b"BODY[] " + (body if mail.answer is None else mail.answer),
        }
        if part := re.search(rb"BODY\.PEEK\[\]<0\.(\d+)>", items):
            begin = mail.body[: int(part[1])]
            values[part[0]] = b"BODY[]<0> {%d}\r\n%s" % (len(begin), begin)
        return b" ".join(values[item] for item in self.server.arranged(items.split()))

    def _uids(self, text: bytes) -> list[int]:
        assert self.box is not None
        shown = self._shown(self.box)
        wanted = _ranges(text, max(shown, default=0))
        return [uid for uid in shown if any(low <= uid <= high for low, high in wanted)]

    def _shown(self, box: Box) -> list[int]:
        """Return the UIDs that this client sees, in order."""
        uids = sorted(box.mails)
        return (
            uids if self.uid_only or not self.server.view_limit else uids[-self.server.view_limit :]
        )


def _ranges(text: bytes, highest: int) -> list[tuple[int, int]]:
    found = []
    for part in text.split(b","):
        ends = [highest if end == b"*" else int(end) for end in part.split(b":")]
        found.append((min(ends), max(ends)))
    return found


def _numbers(text: bytes, highest: int) -> Iterator[int]:
    for low, high in _ranges(text, highest):
        yield from range(low, min(high, highest) + 1)


def _string(name: bytes) -> bytes:
    if re.search(rb"[\x00\r\n\x80-\xff]", name):
        return b"{%d}\r\n%s" % (len(name), name)
    return b'"' + name.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def _unstring(text: bytes) -> bytes:
    if text.startswith(b"<"):
        return text[1:-1]
    return re.sub(rb"\\(.)", rb"\1", text.strip(b'"')) if text.startswith(b'"') else text
