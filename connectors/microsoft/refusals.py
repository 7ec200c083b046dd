"""What Microsoft's refusals mean: HTTP statuses, Graph's codes, and the login's AADSTS codes."""

import dataclasses
import re
import ssl
from collections.abc import Mapping
from typing import Any

from connectors.errors import (
    ConnectorError,
    CursorExpired,
    Fatal,
    FolderGone,
    MailboxUnavailable,
    MessageGone,
    MessageRefused,
    NeedsReauth,
    RateLimited,
    Unavailable,
)

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")
_AADSTS = re.compile(r"AADSTS(\d{4,8})")
_LONGEST_WAIT_SECONDS = 3600.0

#: learn.microsoft.com/graph/delta-query-overview#synchronization-reset, in lower case.
_STATE_CODES = frozenset({"syncstatenotfound", "syncstateinvalid", "resyncrequired"})
#: No Exchange Online mailbox: unlicensed, a guest, on premises, soft-deleted.
_NO_MAILBOX_CODES = frozenset(
    {
        "mailboxnotenabledforrestapi",
        "mailboxnotsupportedforrestapi",
        "erroraccessdenied.nomailbox",
        "errorinvaliduser",
        "errornonexistentmailbox",
        "request_resourcenotfound",
        "resourcenotfound",
    }
)
_GONE_CODES = frozenset({"erroritemnotfound", "errorfoldernotfound", "itemnotfound"})


class OutOfOrder(Unavailable):
    """Graph answered that something went wrong on its side (5xx)."""


@dataclasses.dataclass
class Refusal(Exception):
    """What Graph refused and what only the caller can judge: below 500, not 401, 408 or 429.

    `code` is Graph's, with nothing in it that could not be shown; `policy` tells that Exchange's
    application access policy refused.
    """

    status: int
    code: str
    policy: bool = False

    def __str__(self) -> str:
        return f"Microsoft refused (HTTP {self.status}, {self.code})."

    @property
    def is_gone(self) -> bool:
        return self.status == 404 and self.code.lower() in _GONE_CODES

    @property
    def is_expired_state(self) -> bool:
        return self.status == 410 or self.code.lower() in _STATE_CODES

    @property
    def has_no_mailbox(self) -> bool:
        return self.status == 404 and self.code.lower() in _NO_MAILBOX_CODES

    def of_mailbox(self) -> ConnectorError:
        """What it means for a mailbox: a state of that one, never an error of the source."""
        if self.policy:
            return MailboxUnavailable(
                "An application access policy in Exchange keeps the application from this mailbox.",
                code="access_policy",
            )
        if self.has_no_mailbox:
            return MailboxUnavailable(
                "There is no mailbox in Exchange Online: no licence, a guest, deleted, or on"
                " premises.",
                code="no_mailbox",
            )
        if self.status == 403:
            return MailboxUnavailable(
                f"Microsoft does not let the application read this mailbox ({self.code}).",
                code="access_denied",
            )
        return MailboxUnavailable(str(self))

    def of_folder(self) -> ConnectorError:
        """What it means for a listing of a folder."""
        if self.is_expired_state:
            return CursorExpired("Microsoft no longer knows how far the folder had been read.")
        if self.is_gone:
            return FolderGone("The folder is gone at the provider.")
        return self.of_mailbox()

    def of_message(self) -> ConnectorError:
        """What it means for one message."""
        if self.is_gone or self.status == 410:
            return MessageGone("The message is gone at the provider.")
        if self.has_no_mailbox or self.policy or self.status == 403:
            return self.of_mailbox()
        return MessageRefused(f"{self} The message is there and its bytes are not given out.")

    def of_directory(self) -> ConnectorError:
        """What it means for the list of users."""
        if self.status == 403:
            return NeedsReauth(
                "The application may not list the users. In Entra, give it the application"
                " permission User.Read.All and grant admin consent.",
                code="no_user_read",
            )
        return Fatal(f"The users can't be listed. {self}")


def of_answer(status: int, headers: Mapping[str, str], body: Any) -> ConnectorError | Refusal:
    """Read an answer that is no success. `body`: its JSON, or None where it is none."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    code = str(error.get("code", ""))
    code = code if _CODE.fullmatch(code) else "no code"
    if status == 429:
        return RateLimited("Microsoft asks to wait.", retry_after_seconds=retry_after(headers))
    if status >= 500 or status in (408, 423, 425):
        kind = OutOfOrder if status >= 500 else Unavailable
        return kind(
            f"Microsoft Graph is out of order (HTTP {status}, {code}).",
            retry_after_seconds=retry_after(headers),
        )
    if status == 401:
        return NeedsReauth(f"Microsoft Graph refuses the access token ({code}).")
    policy = "accesspolicy" in str(error.get("message", "")).lower().replace(" ", "")
    return Refusal(status, code, policy)


def of_connection(error: Exception, what: str) -> ConnectorError:
    """Read why no answer came. Only a certificate that is not to be trusted needs a person."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Fatal(
                f"The certificate of {what} can't be verified ({cause.verify_message}). Where a"
                " proxy decrypts what leaves your network, put its authority into EXTRA_CA_FILE.",
                code="certificate",
            )
        cause = cause.__cause__ or cause.__context__
    name = type(error).__name__
    return Unavailable(f"The connection to {what} failed ({name}).")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; None where there is none."""
    text = headers.get("retry-after", "").strip()
    if not _SECONDS.fullmatch(text):
        return None
    return min(float(text), _LONGEST_WAIT_SECONDS)


# -- the login -----------------------------------------------------------------------------------

#: learn.microsoft.com/entra/identity-platform/reference-error-codes. What a person must do.
_LOGIN: Mapping[int, str] = {
    7000215: "The client secret is wrong. Give its Value, which Entra shows only once, not its"
    " Secret ID.",
    7000222: "The client secret has expired. Make a new one in Entra (certificates & secrets).",
    700016: "This tenant has no application with this client id. Check tenantId and clientId: one"
    " of them belongs to another tenant.",
    90002: "There is no such tenant. Check tenantId and cloud.",
    900023: "There is no such tenant. Check tenantId and cloud.",
    700027: "The certificate is not one of the application's. Upload it in Entra (certificates &"
    " secrets), or give the private key that belongs to it.",
    700024: "The clock of this machine is wrong, or the certificate is not valid now.",
    7000112: "The application is disabled in this tenant. An administrator can enable it in Entra.",
    7000229: "The application is not part of this tenant. An administrator must grant admin"
    " consent.",
    7000218: "Microsoft wants a client secret for this application; or allow public client flows in"
    " Entra (authentication).",
    65001: "Access was not granted. Sign in again and consent; where that is not allowed, an"
    " administrator must grant admin consent.",
    65004: "The person declined to grant access. Sign in again.",
    90094: "Only an administrator may grant this. Ask for admin consent in Entra.",
    700082: "The sign-in was not used for too long. Sign in again.",
    700084: "The sign-in has expired. Sign in again.",
    70000: "The sign-in is of no use any more. Sign in again.",
    70008: "The sign-in has expired. Sign in again.",
    70043: "The tenant's policy asks for signing in again.",
    50173: "The password was changed or the sign-in revoked. Sign in again.",
    50132: "The password was changed or the sign-in revoked. Sign in again.",
    50133: "The password was changed or the sign-in revoked. Sign in again.",
    50057: "The account is disabled.",
    50076: "The tenant asks for another factor. Sign in again.",
    50078: "The tenant asks for another factor. Sign in again.",
    50079: "The person must set up another factor. Sign in again.",
    53003: "A conditional access policy blocks the sign-in. An administrator must allow the"
    " application.",
    53000: "A conditional access policy wants a managed device, which a service has not. An"
    " administrator must allow the application.",
    50194: "The application is of one tenant: give tenantId.",
    50011: "The redirect address is not registered. Add it in Entra (authentication).",
    50020: "The account belongs to another tenant. Check tenantId.",
    500011: "The tenant does not know Microsoft Graph under this address. Check cloud.",
}
_PASSING = frozenset({90033, 90006, 90024, 50196, 900384, 90036})
#: OAuth errors (RFC 6749 section 5.2) that no second try changes, whatever the code.
_STOP_ERRORS = frozenset(
    {
        *("invalid_grant", "invalid_client", "unauthorized_client", "access_denied"),
        *("invalid_tenant", "interaction_required", "consent_required", "invalid_scope"),
    }
)


def of_login(status: int, headers: Mapping[str, str], answer: Mapping[str, Any]) -> ConnectorError:
    """Read what the token endpoint answered instead of a token."""
    code = login_code(answer)
    error = str(answer.get("error", ""))[:40]
    if status == 429:
        wait = retry_after(headers)
        return RateLimited("Microsoft's login asks to wait.", retry_after_seconds=wait)
    if code in _PASSING or error in ("temporarily_unavailable", "server_error"):
        return Unavailable(f"Microsoft's login is out of order (AADSTS{code}).")
    if code in _LOGIN:
        return NeedsReauth(f"{_LOGIN[code]} (AADSTS{code})", code=f"aadsts{code}")
    if error in _STOP_ERRORS or code:
        name = f"AADSTS{code}" if code else error
        return NeedsReauth(f"Microsoft's login refused ({name}). Check the application in Entra.")
    if status >= 500 or status == 408:
        return Unavailable(f"Microsoft's login is out of order (HTTP {status}).")
    return Fatal(f"What answers as Microsoft's login gives no token (HTTP {status}).")


def login_code(answer: Mapping[str, Any]) -> int:
    """Return the number of "AADSTS..."; 0 where there is none."""
    codes = answer.get("error_codes")
    if isinstance(codes, list) and codes and isinstance(codes[0], int):
        return codes[0]
    found = _AADSTS.search(str(answer.get("error_description", "")))
    return int(found[1]) if found else 0
