"""Where a request comes from: the one answer for the audit, the log and the sign-in brake."""

import ipaddress
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.http import HttpRequest

_MAX_HOPS = 20


def client_address(request: HttpRequest) -> str | None:
    """Return the client's IP address; None where there is none (a Unix socket).

    X-Forwarded-For is anybody's to write, so it is read from its end, each hop only as long as
    the one that wrote it is in settings.TRUSTED_PROXIES.
    """
    return _of(request.META)


def _of(meta: Mapping[str, Any]) -> str | None:
    here = _parsed(meta.get("REMOTE_ADDR", ""))
    hops = str(meta.get("HTTP_X_FORWARDED_FOR", "")).rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]
    while here is not None and hops and _trusted(here):
        before = _parsed(hops.pop())
        if before is None:
            break  # no address: the proxy's own is the last that is known
        here = before
    return str(here) if here else None


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address without port or zone, IPv4 also where it is mapped into IPv6."""
    try:
        ip = ipaddress.ip_address(text.strip().split("%", 1)[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def _trusted(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(ip in ipaddress.ip_network(known) for known in settings.TRUSTED_PROXIES)
