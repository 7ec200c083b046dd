"""A small honest IMAP4rev1 server (RFC 3501) over the demo's mailbox, on loopback.

It hands out exactly the bytes it holds (pymap turns bare LF into CRLF), never changes a message,
and takes new ones by APPEND. It knows what reading clients ask for, not searching by content,
deleting or STARTTLS.

`python -m ingestion_project.demo.imap_server COUNT` prints its port and serves until it is killed.
"""

import argparse
import datetime as dt
import re
import socketserver
import threading
from collections.abc import Iterable, Iterator

from imapclient.imap_utf7 import encode as utf7

from ingestion_project.demo import mail

USER, PASSWORD = "demo", "only-for-the-demo"
_UID_VALIDITY = 1_700_000_001
_LITERAL = re.compile(rb"\{(\d+)(\+?)\}\r\n$")
_TOKEN = re.compile(
    rb'"((?:[^"\\]|\\.)*)"|([()])|((?:BODY(?:\.PEEK)?\[[^\]]*\])|[^\s()"]+)', re.IGNORECASE
)
_MAX_LITERAL = 50_000_000
_CAPABILITIES = b"IMAP4rev1 LITERAL+ NAMESPACE SPECIAL-USE CHILDREN UNSELECT"


class Folder:
    """Messages in the order of their UIDs, which are their places: nothing is ever removed."""

    def __init__(self, path: str, mails: Iterable[mail.Mail]) -> None:
        self.name = utf7(path)
        self.mails = list(mails)

    def select(self, numbers: bytes) -> Iterator[int]:
        """Yield the UIDs of a sequence set such as 1:3,7,9:*."""
        last = len(self.mails)
        for part in numbers.split(b","):
            ends = [last if end == b"*" else int(end) for end in part.split(b":")]
            yield from range(max(1, min(ends)), min(last, max(ends)) + 1)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, mailbox: dict[str, list[mail.Mail]]) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.folders = {(f := Folder(path, mails)).name: f for path, mails in mailbox.items()}
        self.writing = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Refused(Exception):
    """The command is answered with NO (or BAD) and this text."""

    def __init__(self, text: bytes, *, bad: bool = False) -> None:
        self.line = (b"BAD " if bad else b"NO ") + text


class Session(socketserver.StreamRequestHandler):
    """One client's connection."""

    server: Server
    disable_nagle_algorithm = True
    wbufsize = 256 * 1024

    def setup(self) -> None:
        super().setup()
        self.authenticated = False
        self.folder: Folder | None = None
        self.told = 0

    def handle(self) -> None:
        self._untagged(b"OK [CAPABILITY " + _CAPABILITIES + b"] Demo ready")
        self.wfile.flush()
        try:
            while (words := self._command()) and self._answer(words):
                self.wfile.flush()
        except ConnectionError:
            return  # the client went away

    # -- reading -----------------------------------------------------------------------------------
    def _command(self) -> list[bytes]:
        """Read one command with its literals; return its words, or [] at the end."""
        words: list[bytes] = []
        while line := self.rfile.readline(65_536):
            literal = _LITERAL.search(line)
            text = line[: literal.start()] if literal else line
            for quoted, bracket, atom in _TOKEN.findall(text):
                words.append(
                    re.sub(rb"\\(.)", rb"\1", quoted) if not bracket + atom else bracket + atom
                )
            if not literal:
                return words or [b"*", b"NOOP"]
            if int(literal[1]) > _MAX_LITERAL:
                return []
            if not literal[2]:
                self.wfile.write(b"+ go on\r\n")
                self.wfile.flush()
            words.append(self.rfile.read(int(literal[1])))
        return []

    def _answer(self, words: list[bytes]) -> bool:
        """Carry out one command; return whether the connection goes on."""
        tag, name, arguments = words[0], b"".join(words[1:2]).upper(), words[2:]
        if name == b"UID" and arguments:
            name += b" " + arguments.pop(0).upper()
        verb = _VERBS.get(name)
        try:
            if verb is None:
                raise Refused(b"Unknown command", bad=True)  # noqa: TRY301 - one way to refuse
            if not self.authenticated and name not in _BEFORE_LOGIN:
                raise Refused(b"Log in first")  # noqa: TRY301 - one answer to all refusals
            done = verb(self, arguments)
        except Refused as refusal:
            self._line(tag + b" " + refusal.line)
        except (ValueError, IndexError):
            self._line(tag + b" BAD Can't read the arguments")
        else:
            self._news()
            self._line(tag + b" OK " + (done or name + b" done"))
        return name != b"LOGOUT"

    def _line(self, line: bytes) -> None:
        self.wfile.write(line + b"\r\n")

    def _untagged(self, line: bytes) -> None:
        self._line(b"* " + line)

    def _news(self) -> None:
        if self.folder is not None and len(self.folder.mails) != self.told:
            self.told = len(self.folder.mails)
            self._untagged(b"%d EXISTS" % self.told)

    # -- commands ----------------------------------------------------------------------------------
    def capability(self, arguments: list[bytes]) -> None:
        self._untagged(b"CAPABILITY " + _CAPABILITIES)

    def noop(self, arguments: list[bytes]) -> None:
        pass

    def logout(self, arguments: list[bytes]) -> None:
        self._untagged(b"BYE See you")

    def login(self, arguments: list[bytes]) -> bytes:
        if [a.decode() for a in arguments] != [USER, PASSWORD]:
            raise Refused(b"[AUTHENTICATIONFAILED] Wrong user or password")
        self.authenticated = True
        return b"[CAPABILITY " + _CAPABILITIES + b"] Logged in"

    def namespace(self, arguments: list[bytes]) -> None:
        self._untagged(b'NAMESPACE (("" "/")) NIL NIL')

    def list_folders(self, arguments: list[bytes]) -> None:
        reference, pattern = arguments[0], arguments[1]
        wanted = re.compile(
            re.escape(reference + pattern).replace(rb"\*", b".*").replace(b"%", b"[^/]*"), re.DOTALL
        )
        names = dict.fromkeys(self.server.folders, b"")
        for name in self.server.folders:
            while b"/" in name:
                name = name.rpartition(b"/")[0]  # noqa: PLW2901 - up to the root
                names.setdefault(name, b"\\Noselect \\HasChildren")
        names[b"Sent"] = b"\\Sent"
        for name in sorted(names):
            if wanted.fullmatch(name):
                self._untagged(b'LIST (%s) "/" %s' % (names[name], _quoted(name)))

    def status(self, arguments: list[bytes]) -> None:
        folder = self._folder(arguments[0])
        count = len(folder.mails)
        known = {
            b"MESSAGES": count, b"UIDNEXT": count + 1, b"UIDVALIDITY": _UID_VALIDITY,
            b"RECENT": 0, b"UNSEEN": sum("\\Seen" not in m.flags for m in folder.mails),
        }  # fmt: skip
        items = [item.upper() for item in arguments[1:] if item not in (b"(", b")")]
        if unknown := [item for item in items if item not in known]:
            raise Refused(b"Unknown STATUS item " + unknown[0], bad=True)
        told = b" ".join(b"%s %d" % (item, known[item]) for item in items)
        self._untagged(b"STATUS %s (%s)" % (_quoted(folder.name), told))

    def examine(self, arguments: list[bytes]) -> bytes:
        self.folder = self._folder(arguments[0])
        self.told = len(self.folder.mails)
        self._untagged(b"FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)")
        self._untagged(b"OK [PERMANENTFLAGS ()] No flag can be changed")
        self._untagged(b"%d EXISTS" % self.told)
        self._untagged(b"0 RECENT")
        self._untagged(b"OK [UIDVALIDITY %d] Never changes" % _UID_VALIDITY)
        self._untagged(b"OK [UIDNEXT %d] Next" % (self.told + 1))
        return b"[READ-ONLY] Opened"

    def unselect(self, arguments: list[bytes]) -> None:
        self.folder = None

    def search(self, arguments: list[bytes]) -> None:
        """Answer ALL, `UID set` and `set`; UIDs and sequence numbers are the same here."""
        keys = [a.upper() for a in arguments]
        if keys == [b"ALL"]:
            keys = [b"1:*"]
        if len(keys) == 2 and keys[0] == b"UID":
            keys = keys[1:]
        if len(keys) != 1 or not re.fullmatch(rb"[\d:*,]+", keys[0]):
            raise Refused(b"This server searches by number only", bad=True)
        found = sorted(set(self._opened().select(keys[0])))
        self._untagged(b" ".join([b"SEARCH", *(b"%d" % uid for uid in found)]))

    def fetch(self, arguments: list[bytes]) -> None:
        items = [a.upper() for a in arguments[1:] if a not in (b"(", b")")]
        if b"UID" not in items:
            items.insert(0, b"UID")
        folder = self._opened()
        for uid in folder.select(arguments[0]):
            one = folder.mails[uid - 1]
            parts = b" ".join(_item(item, uid, one) for item in items)
            self.wfile.write(b"* %d FETCH (%s)\r\n" % (uid, parts))

    def append(self, arguments: list[bytes]) -> None:
        folder = self._folder(arguments[0])
        arrived = mail.Mail(arguments[-1], dt.datetime.now(dt.UTC))
        with self.server.writing:
            folder.mails.append(arrived)

    def _folder(self, name: bytes) -> Folder:
        found = self.server.folders.get(b"INBOX" if name.upper() == b"INBOX" else name)
        if found is None:
            raise Refused(b"[NONEXISTENT] No such folder")
        return found

    def _opened(self) -> Folder:
        if self.folder is None:
            raise Refused(b"Open a folder first", bad=True)
        return self.folder


def _item(item: bytes, uid: int, one: mail.Mail) -> bytes:
    if item == b"UID":
        return b"UID %d" % uid
    if item == b"FLAGS":
        return b"FLAGS (%s)" % " ".join(one.flags).encode()
    if item == b"RFC822.SIZE":
        return b"RFC822.SIZE %d" % len(one.body)
    if item == b"INTERNALDATE":
        return b'INTERNALDATE "%s"' % one.received_at.strftime("%d-%b-%Y %H:%M:%S +0000").encode()
    if item in (b"BODY.PEEK[]", b"BODY[]", b"RFC822"):  # \Seen can't be set: all is read-only
        name = b"RFC822" if item == b"RFC822" else b"BODY[]"
        return b"%s {%d}\r\n%s" % (name, len(one.body), one.body)
    raise Refused(b"Unknown FETCH item " + item, bad=True)


def _quoted(name: bytes) -> bytes:
    return b'"' + re.sub(rb'(["\\])', rb"\\\1", name) + b'"'


_VERBS = {
    b"CAPABILITY": Session.capability, b"NOOP": Session.noop, b"CHECK": Session.noop,
    b"LOGOUT": Session.logout, b"LOGIN": Session.login, b"NAMESPACE": Session.namespace,
    b"LIST": Session.list_folders, b"STATUS": Session.status, b"EXAMINE": Session.examine,
    b"SELECT": Session.examine, b"UNSELECT": Session.unselect, b"CLOSE": Session.unselect,
    b"SEARCH": Session.search, b"UID SEARCH": Session.search, b"FETCH": Session.fetch,
    b"UID FETCH": Session.fetch, b"APPEND": Session.append,
}  # fmt: skip
_BEFORE_LOGIN = {b"CAPABILITY", b"NOOP", b"LOGOUT", b"LOGIN"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="about how many messages")
    server = Server(mail.folders(parser.parse_args().count))
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
