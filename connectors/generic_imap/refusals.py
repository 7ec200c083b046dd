"""What the server's refusals mean."""

import re
from collections.abc import Callable

from connectors.errors import (
    ConnectorError,
    Fatal,
    FolderGone,
    FolderRefused,
    MessageRefused,
    NeedsReauth,
    RateLimited,
    Unavailable,
)

#: RFC 5530 section 3 and RFC 9051 section 7.1: response code -> what the caller must do.
_CODES: dict[str, Callable[[str], ConnectorError]] = {
    "UNAVAILABLE": Unavailable,
    "INUSE": Unavailable,
    "SERVERBUG": Unavailable,
    "LIMIT": lambda text: RateLimited(text, retry_after_seconds=60),
    "OVERQUOTA": lambda text: RateLimited(text, retry_after_seconds=300),
    "THROTTLED": lambda text: RateLimited(text, retry_after_seconds=60),
    "AUTHENTICATIONFAILED": NeedsReauth,
    "AUTHORIZATIONFAILED": NeedsReauth,
    "EXPIRED": NeedsReauth,
    "PRIVACYREQUIRED": Fatal,
    "CONTACTADMIN": Fatal,
    "NONEXISTENT": FolderGone,
    "NOPERM": FolderRefused,
    "CORRUPTION": MessageRefused,
}
_CODE = re.compile(r"\[([A-Za-z0-9-]+)[^\]]*\]")
#: Exchange Online: "Request is throttled. Suggested Backoff Time: 299961 milliseconds".
_BACKOFF = re.compile(r"Backoff Time:? (\d{1,9}) milliseconds", re.IGNORECASE)
_LONGEST_WAIT_SECONDS = 3600.0
#: Codes for a wrong password that servers also send where it was not looked at: words that ask to
#: wait win over these.
_REAUTH_CODES = frozenset(code for code, make in _CODES.items() if make is NeedsReauth)
#: Words of servers that send no code. Passing trouble must not look like a wrong password.
_PHRASES: tuple[tuple[re.Pattern[str], Callable[[str], ConnectorError]], ...] = tuple(
    (re.compile(phrase, re.IGNORECASE), make)
    for phrase, make in (
        (r"throttled|rate limit", RateLimited),
        (
            r"too many (\w+ ){0,3}(connections|requests|commands|sessions|logins|attempts)",
            RateLimited,
        ),
        (r"(connection|rate|bandwidth|command) limits? (was )?(exceeded|reached)", RateLimited),
        # "Account exceeded command or bandwidth limits" (Gmail). Not a message's "size limit".
        (r"exceeded (\w+ )*(connection|rate|bandwidth|command)\b[\w ]* limits?\b", RateLimited),
        (r"maximum number of connections", RateLimited),  # Dovecot
        (r"authenticated but not connected", Unavailable),  # Outlook.com, passing
        (r"temporar|try again (later|in|after|shortly|soon)|try later", Unavailable),
        # But "Invalid password, please try again" is about what was typed in.
        (r"^(?!.*\b(invalid|incorrect|wrong|bad)\b).*try again", Unavailable),
        (r"unavailable|internal (server )?error|server (is )?busy|lookup failed", Unavailable),
        (r"system (error|problem)|i/o error|timed? ?out", Unavailable),
        (r"(mailbox|maildrop|inbox|folder)\b.*\blocked|locked by", Unavailable),  # by POP, say
        (r"(no such|unknown|non-?existent) (mailbox|folder)", FolderGone),
        (r"(mailbox|folder)\b.*\b(does not exist|doesn't exist|not found)", FolderGone),
    )
)


def refusal(
    text: str,
    *,
    otherwise: Callable[[str], ConnectorError],
    allowed: tuple[type[ConnectorError], ...] = (ConnectorError,),
) -> ConnectorError:
    """Return the error for a server's NO, BAD or BYE.

    `otherwise` makes it where no code and no phrase says what it is, or says what makes no sense
    there (not `allowed`: a folder's error at the login). `text` holds no secret (Wire.words).
    """
    error = _by_code_or_phrase(text)
    if error is None or not isinstance(error, allowed):
        return otherwise(f"The server says: {text}")
    return error


def _by_code_or_phrase(text: str) -> ConnectorError | None:
    message = f"The server says: {text}"
    if backoff := _BACKOFF.search(text):
        wait = min(int(backoff[1]) / 1000, _LONGEST_WAIT_SECONDS)
        return RateLimited(message, retry_after_seconds=wait)
    found = _CODE.search(text)
    code = found[1].upper() if found else ""
    make = _CODES.get(code)
    if make is None or code in _REAUTH_CODES:
        make = next((by_words for phrase, by_words in _PHRASES if phrase.search(text)), make)
    return make(message) if make is not None else None


def must_wait(error: ConnectorError) -> bool:
    """Tell whether a refusal concerns the account and the moment, whatever it was said about.

    Not so "unavailable" and "server bug": servers say those of one message that they can't read.
    """
    return isinstance(error, RateLimited)
