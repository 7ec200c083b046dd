"""TCP and TLS for connectors: one deadline, and no connection to where it is forbidden.

The address that was checked is the one that is connected to: a name that resolves to a public
address when checked and to a private one a moment later (DNS rebinding) gains nothing.
"""

import datetime as dt
import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

from connectors.errors import Fatal, Unavailable

_MAX_ADDRESSES = 8

#: IANA's special-purpose registries (RFC 6890 and updates). Not `ipaddress.is_global`: releases of
#: Python disagree on some, and 3.11.7 calls ::127.0.0.1, fec0::/10 and 64:ff9b:1::/48 global.
_SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; the clouds' metadata service is here
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4 carries any IPv4 address
        "3fff::/20",
    )
)
#: Where no mail server is, and where a cloud gives its machines their credentials: link-local
#: (RFC 3927, RFC 4291 section 2.5.6); AWS over IPv6, Alibaba, Azure and Oracle.
_NEVER = tuple(
    ipaddress.ip_network(block)
    for block in (
        *("169.254.0.0/16", "fe80::/10"),
        *("fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
    )
)
#: These carry an IPv4 address in their last 32 bits: mapped, and NAT64 (RFC 6052).
_CARRIES_V4 = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
#: OpenSSL's reasons that no second try will change; any other may be the network's fault.
_NO_TLS_THERE = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "UNSUPPORTED_PROTOCOL",
        "UNKNOWN_PROTOCOL",
        "NO_PROTOCOLS_AVAILABLE",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
    }
)


def connect(
    host: str,
    port: int,
    *,
    timeout_seconds: float,
    forbid_private_addresses: bool,
    found: Callable[[str, str], None] = lambda _step, _said: None,
) -> socket.socket:
    """Open a TCP connection within `timeout_seconds`, name resolution included. `found` is told of
    it, as of `connectors.config.Environment`.

    Link-local addresses and those of the clouds' metadata services are forbidden always. Raises
    Fatal where the host has only forbidden addresses, Unavailable where it has none (code
    "unknown_host") or none answers.
    """
    deadline = time.monotonic() + timeout_seconds
    addresses = [ip for ip in _resolve(host, port, timeout_seconds) if not _is_never_mail(ip)]
    if not addresses:
        raise Fatal(
            f"{host} is a link-local address, or one at which a cloud gives its machines their "
            "credentials. No mail server is there, and it is never connected to. Check the host.",
            code="forbidden_address",
        )
    if forbid_private_addresses:
        addresses = [address for address in addresses if is_public(address)]
        if not addresses:
            raise Fatal(
                f"{host} has only private addresses, which this installation forbids. "
                "Use a public host, or unset FORBID_PRIVATE_ADDRESSES.",
                code="forbidden_address",
            )
    problem = "no address answered"
    addresses = addresses[:_MAX_ADDRESSES]
    for index, address in enumerate(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        # A fair share: one that swallows packets (broken IPv6, mostly) leaves time for the others.
        share = left / (len(addresses) - index)
        try:
            connection = socket.create_connection((address, port), timeout=share)
        except OSError as error:
            problem = error.strerror or "timed out"
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout_seconds)
        found("server", _about_server(host, port, len(addresses)))
        return connection
    raise Unavailable(f"Can't connect to {host}:{port} ({problem}). Check host, port and firewall.")


def _about_server(host: str, port: int, addresses: int) -> str:
    """Say that a server is there. Not at which addresses: they may be a private network's."""
    has = f"{host} has {addresses} addresses, and answers" if addresses > 1 else f"{host} answers"
    return f"{has} on port {port}."


def about_tls(connection: ssl.SSLSocket) -> str:
    """Say in a sentence what an encrypted connection is worth."""
    version = (connection.version() or "TLS").replace("TLSv", "TLS ")
    if connection.context.verify_mode is ssl.CERT_NONE:
        return f"{version}, with whatever certificate the server shows."
    ends = ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"]))
    day = dt.datetime.fromtimestamp(ends, dt.UTC).date()
    return f"{version}, with a certificate that is trusted, and valid until {day}."


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public Internet."""
    ip = _parsed(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _GLOBAL_V6 and not any(ip in network for network in _SPECIAL_V6)
    return not any(ip in network for network in _SPECIAL_V4)


def _is_never_mail(address: str) -> bool:
    ip = _parsed(address)
    return any(ip in network for network in _NEVER)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an IP address: the one of IPv4 where one of IPv6 only carries it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and any(ip in block for block in _CARRIES_V4):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def tls_context(*, verify: bool, extra_ca_file: str = "") -> ssl.SSLContext:
    """Return a client context: verified against the system's authorities unless told otherwise.

    Raises Unavailable where `extra_ca_file` is of no use.
    """
    context = ssl.create_default_context()
    if extra_ca_file:
        try:
            context.load_verify_locations(cafile=extra_ca_file)
        except OSError as error:  # also ssl.SSLError: no certificate is in it
            why = error.strerror or "no certificate is in it"
            raise Unavailable(f"EXTRA_CA_FILE {extra_ca_file} can't be used ({why}).") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def shared_tls_context(*, verify: bool, extra_ca_file: str = "") -> ssl.SSLContext:
    """Return a context as `tls_context` makes it, which others have too: for those who change
    nothing of it (an HTTP client does). Reading the system's authorities takes 20 ms of CPU, ten
    times what a handshake does; they are read again where their files changed."""
    paths = ssl.get_default_verify_paths()
    files = (paths.cafile, paths.capath, extra_ca_file)
    return _shared(verify, extra_ca_file, tuple(_changed_at(path) for path in files))


@functools.lru_cache(maxsize=4)
def _shared(verify: bool, extra_ca_file: str, changed_at: tuple[int, ...]) -> ssl.SSLContext:
    _ = changed_at
    return tls_context(verify=verify, extra_ca_file=extra_ca_file)


def _changed_at(path: str | None) -> int:
    try:
        return Path(path).stat().st_mtime_ns if path else 0
    except OSError:
        return 0


def start_tls(connection: socket.socket, host: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Encrypt an open connection. Raises Fatal where the certificate is not to be trusted."""
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise Fatal(
            f"The certificate of {host} can't be verified ({error.verify_message}). "
            "Correct the host name or the server's certificate; allowInsecureCert accepts any.",
            code="certificate",
        ) from error
    except ssl.SSLError as error:
        reason = error.reason or "TLS failed"
        if reason not in _NO_TLS_THERE:
            raise Unavailable(f"TLS with {host} could not be set up ({reason}).") from error
        raise Fatal(
            f"{host} does not speak TLS on this port ({reason}). Check the port, and TLS (secure,"
            " startTls).",
            code="tls",
        ) from error
    except OSError as error:
        raise Unavailable(f"The connection to {host} was lost while TLS was set up.") from error


def _resolve(host: str, port: int, timeout_seconds: float) -> list[str]:
    """Resolve with a deadline, which getaddrinfo itself does not have."""
    found: list[str] = []
    failed: list[OSError | UnicodeError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            failed.append(error)
        else:
            found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    if found:
        return found
    if failed and isinstance(failed[0], socket.gaierror) and failed[0].errno == socket.EAI_AGAIN:
        raise Unavailable(f"The name {host} can't be resolved now. Check the DNS.")
    if failed:
        # Its code fails a check of the credentials; a source that worked waits for the DNS.
        raise Unavailable(f"There is no host named {host}. Check the host.", code="unknown_host")
    raise Unavailable(f"Resolving {host} took too long. Check the DNS.")
