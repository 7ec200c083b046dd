"""Who may try a password or a code now: a brake on guessing, and on the CPU time of a guess.

It counts tries in the cache, of one user name and of one address, before the password is hashed.
Codes of the second step are counted by themselves: the right password must not begin them anew.
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

PASSWORD, CODE = "user", "code"
WINDOW_SECONDS = 300
TRIES_PER_USER = 10
TRIES_PER_ADDRESS = 30  # an office behind one address
_IPV6_NETWORK_BITS = 64  # what one subscriber has


def wait_seconds(username: str, address: str | None, *, step: str = PASSWORD) -> int:
    """Count one try; return 0 where it may be made, else the seconds until one may.

    Tries made at the same time are counted one by one: none slips through while others are hashed.
    """
    tries = [_count(_user_key(username, step), limit=TRIES_PER_USER)]
    if address:
        tries.append(_count(_address_key(address), limit=TRIES_PER_ADDRESS))
    return max(tries)


def wait_seconds_for(what: str, *, limit: int) -> int:
    """Count one try of something else that is to be braked; return what `wait_seconds` does."""
    return _count(_key("other", what), limit=limit)


def succeeded(username: str, address: str | None, *, step: str = PASSWORD) -> None:
    """Begin anew for a user who signed in; for their address, take back this one try alone."""
    try:
        key = _user_key(username, step)
        cache.delete_many([key, f"{key}:ends"])
        if address:
            cache.decr(_address_key(address))
    except RedisError:
        log.warning("sign_in_brake_unavailable")
    except ValueError:
        pass  # its window ended meanwhile


def _count(key: str, *, limit: int) -> int:
    """Count in the window that the first try began; return how long to wait for the next one."""
    now = time.time()
    try:
        cache.add(f"{key}:ends", now + WINDOW_SECONDS, timeout=WINDOW_SECONDS)
        cache.add(key, 0, timeout=WINDOW_SECONDS)
        if cache.incr(key) > limit:
            ends: float = cache.get(f"{key}:ends", now)
            if ends - now <= 2 * WINDOW_SECONDS:  # clocks of machines differ by less
                return math.ceil(max(1, ends - now))
            # The clock was set back, by which the cache keeps both for as much longer.
            cache.delete_many([key, f"{key}:ends"])
    except RedisError:
        log.warning("sign_in_brake_unavailable")
    except ValueError:
        log.warning("sign_in_brake_counter_lost")  # it ended between the two commands
    return 0


def _user_key(username: str, step: str) -> str:
    return _key(step, username.casefold())


def _address_key(address: str) -> str:
    return _key("address", network(address))


def _key(kind: str, of: str) -> str:
    return f"sign-in:{kind}:{hashlib.sha256(of.encode(errors='surrogatepass')).hexdigest()}"


def network(address: str) -> str:
    """Return what one subscriber has, with whom an address is counted."""
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return address
    return str(ipaddress.ip_network((int(ip), _IPV6_NETWORK_BITS), strict=False))
