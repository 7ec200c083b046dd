"""A throwaway Dovecot 2.3 on loopback, as root or not. Needs Debian's dovecot-imapd and openssl.

It offers CONDSTORE, QRESYNC, ESEARCH, LIST-STATUS, SPECIAL-USE, TLS and XOAUTH2 (tokens are checked
offline). It has no OBJECTID.
"""

import base64
import contextlib
import dataclasses
import grp
import hashlib
import hmac
import imaplib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers.stack import free_port

_TOKEN_KEY = b"dovecot-test-hs256-key"
_ACCOUNTS = 300
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"

_CONFIG = """
protocols = imap
base_dir = {root}/run
state_dir = {root}/state
instance_name = {root.name}
log_path = {root}/dovecot.log
listen = 127.0.0.1
default_internal_user = {internal}
default_internal_group = {internal_group}
default_login_user = {login}
first_valid_uid = 0
first_valid_gid = 0
mail_location = maildir:~/Maildir:LAYOUT=fs
mail_fsync = never
disable_plaintext_auth = no
ssl = yes
ssl_cert = <{root}/cert.pem
ssl_key = <{root}/key.pem
auth_mechanisms = plain login xoauth2
auth_failure_delay = 0
mail_max_userip_connections = 50
passdb {{
  driver = passwd-file
  args = username_format=%u {root}/users
  mechanisms = plain login
}}
passdb {{
  driver = oauth2
  args = {root}/oauth2.conf.ext
  mechanisms = xoauth2
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {root}/users
}}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Sent {{
    special_use = \\Sent
  }}
  mailbox Drafts {{
    special_use = \\Drafts
  }}
  mailbox Trash {{
    special_use = \\Trash
  }}
  mailbox Junk {{
    special_use = \\Junk
  }}
}}
service imap-login {{
  chroot =
  process_min_avail = 1
  inet_listener imap {{
    address = 127.0.0.1
    port = {port}
  }}
  inet_listener imaps {{
    address = 127.0.0.1
    port = {tls_port}
    ssl = yes
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
service auth {{
  unix_listener auth-userdb {{
    mode = 0666
  }}
}}
"""


@dataclasses.dataclass
class Account:
    """An account, and how to get in."""

    host: str
    port: int
    name: str
    password: str


class Dovecot:
    """`user()` and `account()` hand out accounts, each new and empty."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dovecot-", dir="/tmp"))  # short: socket paths
        self.port, self.tls_port = free_port(), free_port()
        root = os.getuid() == 0
        me = pwd.getpwnam("nobody") if root else pwd.getpwuid(os.getuid())
        group = grp.getgrgid(me.pw_gid).gr_name
        self._uid, self._gid = me.pw_uid, me.pw_gid
        self._internal = (
            ("dovecot", "dovecot", "dovenull") if root else (me.pw_name, group, me.pw_name)
        )
        # All at once: Dovecot looks at most once a second whether its list of users changed.
        self._passwords = {f"user{n}@example.com": f"pass-{n}" for n in range(_ACCOUNTS)}
        self._fresh = iter(list(self._passwords))
        self._process: subprocess.Popen[bytes] | None = None

    # -- accounts and mail ---------------------------------------------------------------------

    def user(self) -> tuple[str, str]:
        """Return the name and password of an account that nobody used yet."""
        name = next(self._fresh)
        return name, self._passwords[name]

    def account(self, *bodies: bytes) -> Account:
        """Return an account that nobody used yet, with these messages in its inbox."""
        account = Account(self.host, self.port, *self.user())
        if bodies:
            self.append(account.name, "INBOX", *bodies)
        return account

    def set_password(self, name: str, password: str) -> None:
        """Change the password; logins from now on need it."""
        self._passwords[name] = password
        self._write_users()
        self.doveadm("reload")

    def connect(self, name: str) -> imaplib.IMAP4:
        """Log in with the standard library, independent of the code under test."""
        client = imaplib.IMAP4(self.host, self.port, timeout=120)
        client.login(name, self._passwords[name])
        return client

    def append(self, name: str, folder: str, *bodies: bytes) -> None:
        """Deliver messages, making the folder (a modified UTF-7 name) where it is missing."""
        client = self.connect(name)
        try:
            client.create(_quoted(folder))
            for body in bodies:
                status, answer = client.append(_quoted(folder), "", "", body)
                assert status == "OK", answer
        finally:
            client.logout()

    def contents(self, name: str) -> dict[tuple[str, str], bytes]:
        """Read everything with the standard library: (folder, "uidvalidity:uid") -> bytes."""
        return dict(self.each(name))

    def each(self, name: str) -> Iterator[tuple[tuple[str, str], bytes]]:
        """Yield what `contents` returns; holds one folder at a time."""
        client = self.connect(name)
        try:
            for line in client.list()[1]:
                assert isinstance(line, bytes)
                folder = line.rpartition(b' "/" ')[2].decode().removeprefix('"').removesuffix('"')
                folder = folder.replace('\\"', '"').replace("\\\\", "\\")
                if client.select(_quoted(folder), readonly=True)[0] != "OK":
                    continue
                validity = client.response("UIDVALIDITY")[1][0].decode()
                for item in client.uid("FETCH", "1:*", "(UID BODY.PEEK[])")[1]:
                    if isinstance(item, tuple):
                        uid = item[0].split(b"UID ")[1].split()[0].decode()
                        yield (folder, f"{validity}:{uid}"), item[1]
        finally:
            client.logout()

    def maildir(self, name: str) -> Path:
        return self.root / "mail" / name / "Maildir"

    def deliver(self, name: str, file_name: str, body: bytes) -> None:
        """Put a file into the inbox as a delivery agent does: served as it is, but for bare line
        feeds. The account's inbox exists once something was appended."""
        path = self.maildir(name) / "new" / file_name
        path.write_bytes(body)
        os.chown(path, self._uid, self._gid)

    def preload(self, name: str, folder: str, bodies: Iterable[bytes]) -> None:
        """Put messages into a folder (a modified UTF-7 name) that nobody opened yet, as files: a
        hundred times as fast as `append`. Bare line feeds are served as CRLF, the rest as it is."""
        root = self.maildir(name)
        directory = root if folder == "INBOX" else root / folder
        for part in ("cur", "new", "tmp"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        for number, body in enumerate(bodies):
            lines = body.count(b"\n") - body.count(b"\r\n")
            size = f"S={len(body)},W={len(body) + lines}"
            (directory / "cur" / f"1600000000.M{number:09}P1.host,{size}:2,").write_bytes(body)
        for path in (root, *root.rglob("*")):
            os.chown(path, self._uid, self._gid)

    def doveadm(self, *arguments: str) -> str:
        """Run doveadm; return what it printed. Raises CalledProcessError."""
        done = subprocess.run(
            ["doveadm", "-c", str(self.root / "dovecot.conf"), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PATH": _PATH},
        )
        return done.stdout

    def kick(self, name: str) -> int:
        """Kill the account's IMAP processes, as a crash would; return how many there were."""
        lines = self.doveadm("-f", "tab", "who", "-1", name).splitlines()[1:]
        pids = [int(line.split("\t")[2]) for line in lines if line]
        killed = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it ended since it was listed
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    def token(self, name: str, *, lifetime_seconds: int = 3600) -> str:
        """Return an OAuth access token for XOAUTH2."""
        now = int(time.time())
        claims: dict[str, object] = {"iat": now, "nbf": now - 5, "exp": now + lifetime_seconds}
        claims |= {"email": name, "sub": name}
        parts = [
            _b64(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)
        ]
        signature = hmac.new(_TOKEN_KEY, ".".join(parts).encode(), hashlib.sha256).digest()
        return ".".join([*parts, _b64(signature)])

    # -- the process ---------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, again where it was stopped: on the same ports, with all that it holds."""
        self._process = subprocess.Popen(
            ["dovecot", "-F", "-c", str(self.root / "dovecot.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": _PATH},
        )
        deadline = time.monotonic() + 240
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError("Dovecot does not start:\n" + self._log())
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it, and keep its mail: who connects is refused."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self._configure()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 1) as probe:
                return probe.recv(64).startswith(b"* OK")
        except OSError:
            return False

    def _log(self) -> str:
        path = self.root / "dovecot.log"
        return path.read_text() if path.exists() else ""

    def _configure(self) -> None:
        for name in ("run", "mail", "state", "keys/default/HS256"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        os.chown(self.root / "mail", self._uid, self._gid)
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "30",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-keyout",
                str(self.root / "key.pem"),
                "-out",
                str(self.root / "cert.pem"),
            ],
            check=True,
            capture_output=True,
        )
        key = base64.b64encode(_TOKEN_KEY).decode()
        (self.root / "keys/default/HS256/default").write_text(key)
        (self.root / "oauth2.conf.ext").write_text(
            f"introspection_mode = local\nlocal_validation_key_dict = fs:posix:prefix={self.root}"
            "/keys/\nusername_attribute = email\n"
        )
        internal, internal_group, login = self._internal
        self._write_users()
        (self.root / "dovecot.conf").write_text(
            _CONFIG.format(
                root=self.root,
                port=self.port,
                tls_port=self.tls_port,
                internal=internal,
                internal_group=internal_group,
                login=login,
            )
        )
        for path in self.root.rglob("*"):  # its users are others than ours, whose umask is 077
            path.chmod(0o755 if path.is_dir() else 0o644)

    def _write_users(self) -> None:
        lines = []
        for name, password in self._passwords.items():
            home = self.root / "mail" / name
            if not home.exists():
                home.mkdir(parents=True)
                os.chown(home, self._uid, self._gid)
            lines.append(f"{name}:{{PLAIN}}{password}:{self._uid}:{self._gid}::{home}::\n")
        partial = self.root / "users.new"
        partial.write_text("".join(lines))
        partial.chmod(0o644)
        partial.rename(self.root / "users")


def _quoted(folder: str) -> str:
    return '"' + folder.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
