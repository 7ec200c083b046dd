"""Who may try a password now: a brake on guessing, and on the CPU time that a guess costs.

It counts tries in the cache, of one user name and of one address, before the password is hashed.
Where the cache is away everybody is let in, as in the API: it must not lock the operators out.
Sessions, API keys and manage.py are not concerned.
"""

import hashlib
import ipaddress
import math
import time

import structlog
from django.core.cache import cache
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

WINDOW_SECONDS = 300
TRIES_PER_USER = 10
TRIES_PER_ADDRESS = 30  # an office behind one address
_IPV6_NETWORK_BITS = 64  # what one subscriber has


def wait_seconds(username: str, address: str | None) -> int:
    """Count one try; return 0 where it may be made, else the seconds until one may.

    Tries made at the same time are counted one by one: none slips through while others are hashed.
    """
    now = time.time()
    window = int(now // WINDOW_SECONDS)
    tries = [(_user_key(username, window), TRIES_PER_USER)]
    if address:
        tries.append((_address_key(address, window), TRIES_PER_ADDRESS))
    if all([_count(key) <= limit for key, limit in tries]):  # noqa: C419 - each is counted
        return 0
    return math.ceil((window + 1) * WINDOW_SECONDS - now)


def succeeded(username: str, address: str | None) -> None:
    """Begin anew for a user who signed in; for their address, take back this one try alone."""
    window = int(time.time() // WINDOW_SECONDS)
    try:
        cache.delete(_user_key(username, window))
        if address:
            cache.decr(_address_key(address, window))
    except RedisError:
        log.warning("sign_in_brake_unavailable")
    except ValueError:
        pass  # a window began meanwhile


def _count(key: str) -> int:
    try:
        cache.add(key, 0, timeout=2 * WINDOW_SECONDS)
        return int(cache.incr(key))
    except RedisError:
        log.warning("sign_in_brake_unavailable")
    except ValueError:
        log.warning("sign_in_brake_counter_lost")  # evicted between the two commands
    return 0


def _user_key(username: str, window: int) -> str:
    return _key("user", username.casefold(), window)


def _address_key(address: str, window: int) -> str:
    return _key("address", _network(address), window)


def _key(kind: str, of: str, window: int) -> str:
    digest = hashlib.sha256(of.encode(errors="surrogatepass")).hexdigest()
    return f"sign-in:{kind}:{digest}:{window}"


def _network(address: str) -> str:
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return address
    return str(ipaddress.ip_network((int(ip), _IPV6_NETWORK_BITS), strict=False))
