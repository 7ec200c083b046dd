"""nginx and Caddy, as deploy/ has them, between the API and its clients, with TLS."""

import contextlib
import dataclasses
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User

from ingestion.models import AuditEvent
from ingestion_project.supervisor import end_with_parent
from tests.deploy.files import DEPLOY, procfile, program
from tests.servers import imap_source
from tests.servers.imap_script import ImapScript
from tests.servers.stack import ROOT, free_port, wait_for

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "mail.example.com"
#: As many threads as `web` has, and some.
SLOW_CLIENTS = 70


@contextlib.contextmanager
def running(command: list[str], log: Path, **environ: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=out,
            stderr=out,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - only a prctl
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of a `web` that believes a proxy on this machine, on the test database."""
    root, port = tmp_path_factory.mktemp("web"), free_port()
    where = django_settings.DATABASES["default"]
    environ = {
        "VAR_DIR": str(root),
        "PORT": str(port),
        "DATABASE_URL": f"postgres://postgres@/{where['HOST']}/{where['NAME']}",
        "REDIS_URL": django_settings.REDIS_URL,
        "SECRET_KEY": django_settings.SECRET_KEY,
        "ENCRYPTION_KEYS": ",".join(django_settings.ENCRYPTION_KEYS),
        "HTTPS": "true",
        "ALLOWED_HOSTS": NAME,
        "TRUSTED_PROXIES": "127.0.0.1",
    }
    [first, *rest] = procfile()["web"]
    with running([program(first), *rest], root / "log", **environ):
        wait_for(lambda: listens(port))
        yield port


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


@contextlib.contextmanager
def nginx(root: Path, port: int, web: int) -> Iterator[None]:
    key, certificate = root / "key.pem", root / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    make += ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run(
        [*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    changes = {
        "443": f"127.0.0.1:{port}",
        "/etc/ssl/mail.example.com.pem": str(certificate),
        "/etc/ssl/mail.example.com.key": str(key),
        "127.0.0.1:8000": f"127.0.0.1:{web}",
    }
    (root / "ingestion.conf").write_text(changed("nginx.conf", changes))
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{place}_temp_path {root / place};" for place in places)
    # Its workers are another user, to whom pytest's directory is closed.
    who = "user root;" if os.getuid() == 0 else ""
    (root / "nginx.conf").write_text(
        f"daemon off; {who} pid {root / 'pid'}; error_log stderr; events {{}}"
        f" http {{ access_log off; {temporary} include ingestion.conf; }}"
    )
    command = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert command, "This test needs nginx: apt-get install nginx-light"
    with running([command, "-p", str(root), "-c", "nginx.conf"], root / "log"):
        yield


@contextlib.contextmanager
def caddy(root: Path, port: int, web: int) -> Iterator[None]:
    changes = {
        "{\n\tservers": "{\n\tadmin off\n\tlocal_certs\n\tskip_install_trust\n"
        f"\tauto_https disable_redirects\n\thttps_port {port}\n\tservers",
        "mail.example.com {": "mail.example.com {\n\tbind 127.0.0.1",
        "127.0.0.1:8000": f"127.0.0.1:{web}",
    }
    (root / "Caddyfile").write_text(changed("Caddyfile", changes))
    command = [program("caddy"), "run", "--config", str(root / "Caddyfile")]
    home = {"HOME": str(root), "XDG_DATA_HOME": str(root), "XDG_CONFIG_HOME": str(root)}
    with running(command, root / "log", **home):
        yield


def changed(name: str, changes: dict[str, str]) -> str:
    """Return a file with what is another in this test, each of which must be there."""
    text = (DEPLOY / name).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@dataclasses.dataclass
class Proxy:
    port: int
    key: str

    def client(self, *, address: str = "127.0.0.1") -> httpx.Client:
        """A client at an address of its own, which knows the proxy by its public name."""
        transport = httpx.HTTPTransport(verify=False, local_address=address)
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": NAME, "Authorization": f"Bearer {self.key}"},
            transport=_Named(transport),
            timeout=60,
        )

    def connect(self) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which reads no authorities
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return context.wrap_socket(plain, server_hostname=NAME)


class _Named(httpx.BaseTransport):
    """Asks for a certificate by the public name (SNI)."""

    def __init__(self, below: httpx.HTTPTransport) -> None:
        self._below = below

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": NAME}
        return self._below.handle_request(request)

    def close(self) -> None:
        self._below.close()


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def port(
    request: pytest.FixtureRequest, web: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    root, port = tmp_path_factory.mktemp("proxy"), free_port()
    with request.param(root, port, web):
        try:
            wait_for(lambda: answers(port))
        except AssertionError:
            pytest.fail((root / "log").read_text())
        yield port


def answers(port: int) -> bool:
    with contextlib.suppress(OSError, httpx.TransportError), Proxy(port, "none").client() as client:
        return client.get("/healthz").status_code == 200
    return False


@pytest.fixture
def proxy(port: int, admin_user: User, make_key: Callable[..., str]) -> Proxy:
    return Proxy(port, make_key(admin_user))


def test_a_client_is_known_by_its_address_and_not_by_what_it_says(
    proxy: Proxy,
) -> None:
    body = {
        "name": "Mail",
        "provider": "generic_imap",
        "providerConfig": {"host": "127.0.0.1", "username": "a", "password": "p"},
    }
    with proxy.client(address="127.0.0.2") as client:
        lies = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "http"}
        made = client.post("/api/v1/ingestion", json=body, headers=lies)
    assert made.status_code == 201, made.text
    assert AuditEvent.objects.get(action="source.create").address == "127.0.0.2"


def test_events_and_changes_come_at_once(proxy: Proxy) -> None:
    with ImapScript() as server, proxy.client() as client:
        source = imap_source.create(server)
        imap_source.start(source)  # which nobody works on, so that the stream stays open
        with client.stream("GET", f"/api/v1/ingestion/{source.pk}/events") as events:
            assert events.status_code == 200
            assert any("event: progress" in line for line in events.iter_lines())
        cursor = client.get("/api/v1/changes", params={"after": "now"}).json()["cursor"]
        wait = {"after": cursor, "wait": 1}
        assert client.get("/api/v1/changes", params=wait).json()["changes"] == []


def connections(port: int) -> int:
    """Return how many a server on this machine has accepted, or will."""
    wanted = f"0100007F:{port:04X}"  # linux/Documentation/networking/proc_net_tcp.rst
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local == wanted and state == "01" for _, local, _, state, *_ in lines)


@pytest.mark.parametrize(
    "end",
    [b"", b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"],
    ids=["in the head", "in the body", "in a chunked body"],
)
def test_slow_clients_take_no_thread_away(proxy: Proxy, web: int, end: bytes) -> None:
    head = (
        f"POST /api/v1/ingestion HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {proxy.key}\r\n"
    )
    with contextlib.ExitStack() as stack, proxy.client() as client:
        for _ in range(SLOW_CLIENTS):
            slow = stack.enter_context(proxy.connect())
            slow.sendall(head.encode() + end)
        assert client.get("/api/v1/ingestion").status_code == 200
        assert connections(web) < SLOW_CLIENTS / 2


def breaks_off(listening: socket.socket) -> None:
    """Answer a request as gunicorn does whose process ends meanwhile: in chunks, by HTTP/1.1 alone."""
    connection, _ = listening.accept()
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        chunked = b" HTTP/1.1\r\n" in request
        how = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + how + b"\r\n\r\n")
        connection.sendall(b"5\r\nhalf\n\r\n" if chunked else b"half\n")


def has_certificate(proxy: Proxy) -> bool:
    with contextlib.suppress(OSError):
        proxy.connect().close()
        return True
    return False


@pytest.mark.parametrize("make", [nginx, caddy])
def test_an_answer_that_breaks_off_does_not_look_whole(
    make: Callable[[Path, int, int], contextlib.AbstractContextManager[None]], tmp_path: Path
) -> None:
    """Who saves a log, or waits for a list to be done, would take half of it for all."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as web:
        with make(tmp_path, port, web.getsockname()[1]), Proxy(port, "none").client() as client:
            wait_for(lambda: has_certificate(Proxy(port, "none")))
            thread = threading.Thread(target=breaks_off, args=[web], daemon=True)
            thread.start()
            with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
                client.get("/admin/history.csv")
        thread.join()


def test_what_is_too_large_is_refused_before_it_is_taken(proxy: Proxy) -> None:
    with proxy.client() as client:
        refused = client.post(
            "/api/v1/ingestion",
            content=b"{" * 2_000_000,
            headers={"Content-Type": "application/json"},
        )
    assert refused.status_code == 413
    assert "X-Request-ID" not in refused.headers, "it came to the service"
