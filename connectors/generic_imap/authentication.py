"""Proving to an IMAP server who logs in: by OAuth token, AUTH=PLAIN or LOGIN."""

import re
from collections.abc import Sequence

from connectors.errors import ConnectorError, Fatal, NeedsReauth, Retryable
from connectors.generic_imap import syntax
from connectors.generic_imap.config import ImapConfig
from connectors.generic_imap.refusals import refusal
from connectors.generic_imap.wire import Wire

#: Words for a mechanism that a server lists and does not have. Not "unknown user".
_NOT_HAD = re.compile(
    r"\[CANNOT\]|not? support|unsupported|unimplemented|not implemented"
    r"|(unknown|unrecogni[sz]ed|invalid) (\w+ )?(command|mechanism|method)"
    r"|(mechanism|method|PLAIN)( is)? (not|disabled)",
    re.IGNORECASE,
)
_ADVICE = "check user name and password (many providers want an app password)."
_ADVICE_OF_OAUTH = (
    "check that the token is for this user name and allows IMAP, or connect the account again."
)
#: Not a name with a Windows domain or another's mailbox in it ("corp\\me\\shared"), which Exchange
#: takes at LOGIN alone.
_SIMPLE = re.compile(r"[^/\\]*")


def authenticate(
    opened: Wire, config: ImapConfig, token: str, capabilities: frozenset[str]
) -> frozenset[str]:
    """Log in; return the capabilities that the server tells with its OK, none where it doesn't.

    Raises NeedsReauth, Fatal (there is no way in) or Retryable.
    """
    if token:
        return _by_token(opened, config, token, capabilities)
    if "AUTH=PLAIN" in capabilities:
        status, untagged, asked = opened.converse(
            b"AUTHENTICATE PLAIN",
            lambda turn: b"" if turn else f"\0{config.username}\0{config.password}".encode(),
        )
        if _is_ok(status) or not _may_try_login(opened, config, capabilities, status, asked):
            return _logged_in(opened, status, untagged)
    elif "LOGINDISABLED" in capabilities:
        raise _no_password(config, capabilities)
    name, password = config.username.encode(), config.password.encode()
    return _logged_in(opened, *opened.run(b"LOGIN", syntax.string(name), syntax.string(password)))


def spoken(config: ImapConfig, token: str) -> tuple[str, ...]:
    """Return what a login says in base64, which a server may echo."""
    if token:
        return tuple(_bearer(m, config.username, token) for m in ("XOAUTH2", "OAUTHBEARER"))
    return (f"\0{config.username}\0{config.password}",)


def _may_try_login(
    opened: Wire, config: ImapConfig, capabilities: frozenset[str], status: bytes, asked: int
) -> bool:
    """Tell whether LOGIN may get in where AUTH=PLAIN was refused: it is not had, though it is
    listed, or the name is one for LOGIN. Never after a plain wrong password, which would count
    twice."""
    if "LOGINDISABLED" in capabilities:
        return False
    said = opened.words(status)
    if isinstance(refusal(said, otherwise=NeedsReauth), Retryable | Fatal):
        return False
    password_was_seen = asked > 0  # else no attempt was counted
    return (
        not password_was_seen
        or said[:3].upper() == "BAD"
        or bool(_NOT_HAD.search(said))
        or not _SIMPLE.fullmatch(config.username)
    )


def _by_token(
    opened: Wire, config: ImapConfig, token: str, capabilities: frozenset[str]
) -> frozenset[str]:
    mechanism = "XOAUTH2" if "AUTH=XOAUTH2" in capabilities else "OAUTHBEARER"
    if f"AUTH={mechanism}" not in capabilities:
        raise Fatal(f"{config.host} takes no OAuth token. Give a password.", code="no_oauth")
    # A refusal comes as a second challenge with an error document, which wants an answer before the
    # NO: an empty one, or %x01 (RFC 7628 section 3.2.3).
    end = b"" if mechanism == "XOAUTH2" else b"\1"
    bearer = _bearer(mechanism, config.username, token).encode()
    status, untagged, _ = opened.converse(
        f"AUTHENTICATE {mechanism}".encode(), lambda turn: end if turn else bearer
    )
    return _logged_in(opened, status, untagged, advice=_ADVICE_OF_OAUTH)


def _bearer(mechanism: str, name: str, token: str) -> str:
    """XOAUTH2 as Google and Microsoft document it, or its standard form (RFC 7628)."""
    if mechanism == "XOAUTH2":
        return f"user={name}\1auth=Bearer {token}\1\1"
    return f"n,a={name.replace('=', '=3D').replace(',', '=2C')},\1auth=Bearer {token}\1\1"


def _logged_in(
    opened: Wire,
    status: bytes,
    untagged: Sequence[Sequence[bytes]],
    *,
    advice: str = _ADVICE,
) -> frozenset[str]:
    """Return the capabilities that came with an OK. Raises what a refusal means."""
    if not _is_ok(status):
        raise _refusal(opened.words(status), advice)
    return syntax.capabilities([status, *(response[0] for response in untagged)])


def _is_ok(status: bytes) -> bool:
    return status.upper().startswith(b"OK")


def _refusal(said: str, advice: str) -> ConnectorError:
    error = refusal(said, otherwise=NeedsReauth, allowed=(NeedsReauth, Fatal, Retryable))
    if not isinstance(error, NeedsReauth):
        return error
    return NeedsReauth(f"{error} The login was refused: {advice}")


def _no_password(config: ImapConfig, capabilities: frozenset[str]) -> Fatal:
    if not (config.secure or config.startTls):
        advice = "takes no password on a connection in the clear. Turn on TLS (secure or startTls)."
    elif any(name in capabilities for name in ("AUTH=XOAUTH2", "AUTH=OAUTHBEARER")):
        advice = (
            "takes no passwords any more, only OAuth. Give an accessToken or a refreshToken; for"
            " Microsoft 365 or Gmail add the account as a Microsoft or Google source."
        )
    else:
        advice = "takes no password in any way that is known here. Ask who runs it how to log in."
    return Fatal(f"{config.host} {advice}", code="login_disabled")
