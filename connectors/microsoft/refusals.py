"""What Microsoft's refusals mean: HTTP statuses, Graph's codes, and the login's AADSTS codes."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from connectors.errors import (
    ConnectorError,
    Fatal,
    MailboxUnavailable,
    MessageGone,
    MessageRefused,
    NeedsReauth,
    RateLimited,
    Unavailable,
)
from connectors.web import retry_after_seconds

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,80}")
_AADSTS = re.compile(r"AADSTS(\d{4,8})")

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
_GONE_CODES = frozenset(
    {"erroritemnotfound", "errorfoldernotfound", "errorsyncfoldernotfound", "itemnotfound"}
)
#: Exchange can't handle this one item, whatever the HTTP status: no second try changes that.
_ITEM_CODES = frozenset(
    {
        "errormimecontentconversionfailed",
        "errorcontentconversionfailed",
        "errorcorruptdata",
        "erroritemcorrupt",
        "errorinvalidrecipients",
        "errorcannotopenfileattachment",
    }
)
#: A full mailbox: delta query, which keeps its state there, is refused; plain listings are not.
_FULL_CODE = "errorquotaexceeded"


class OutOfOrder(Unavailable):
    """Graph answered that something went wrong on its side (5xx)."""

    @property
    def is_own(self) -> bool:
        """Whether it may be about what was asked for alone: who asks to wait means everything."""
        return self.retry_after_seconds is None


class TokenRefused(NeedsReauth):
    """401. After a new token it may be about one mailbox: then `refusal` is what it means."""

    def __init__(self, graph_code: str) -> None:
        super().__init__(f"Microsoft Graph refuses the access token ({graph_code}).")
        self.refusal = Refusal(401, graph_code)
        self.is_of_token = "token" in graph_code.lower()


@dataclasses.dataclass
class Refusal(Exception):
    """What Graph refused and what only the caller can judge: not 401, 408 or 429, and of the 5xx
    only those that are about an item.

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
    def is_of_item(self) -> bool:
        return self.code.lower() in _ITEM_CODES

    @property
    def is_full(self) -> bool:
        return self.status == 403 and self.code.lower() == _FULL_CODE

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
        if self.status == 401:
            return MailboxUnavailable(
                f"Microsoft refuses access to this mailbox, though not to others ({self.code}). The"
                " next sync tries again.",
                code="access_denied",
            )
        return MailboxUnavailable(str(self))

    def of_message(self) -> MessageGone | MessageRefused:
        """What it means for one message of a mailbox that can be read."""
        if self.is_gone or self.status == 410:
            return MessageGone("The message is gone at the provider.")
        if self.is_of_item:
            return MessageRefused(
                f"Exchange can't convert this message into MIME ({self.code}): it is damaged there,"
                " or encrypted or signed (S/MIME) in a form that is never given out. Export it with"
                " Outlook if it is needed.",
                of_item=True,
            )
        return MessageRefused(f"{self} The message is there and its bytes are not given out.")

    def of_directory(self) -> ConnectorError:
        """What it means for the list of users."""
        if self.status == 401:
            return TokenRefused(self.code)
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
    if code.lower() in _ITEM_CODES:
        return Refusal(status, code)
    if status >= 500 or status in (408, 423, 425):
        kind = OutOfOrder if status >= 500 else Unavailable
        return kind(
            f"Microsoft Graph is out of order (HTTP {status}, {code}).",
            retry_after_seconds=retry_after(headers),
        )
    if status == 401:
        return TokenRefused(code)
    policy = "accesspolicy" in str(error.get("message", "")).lower().replace(" ", "")
    return Refusal(status, code, policy)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; None where there is none."""
    return retry_after_seconds(headers.get("retry-after", ""))


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
    50034: "There is no such person in this tenant. Check the address and tenantId.",
    50053: "The account is locked after too many sign-ins, or this address is blocked. Wait, then"
    " sign in again.",
    50105: "The person is not assigned to the application. An administrator must assign them in"
    " Entra (enterprise applications, users and groups).",
    530003: "A conditional access policy wants a managed device, which a service has not. An"
    " administrator must allow the application.",
    700030: "The certificate is not accepted: its subject or issuer is not allowed for the"
    " application. Upload another in Entra (certificates & secrets).",
    500014: "Microsoft Graph is disabled in this tenant. An administrator can enable it in Entra"
    " (enterprise applications).",
    900384: "The tenant is in another cloud of Microsoft's. Check cloud.",
    90038: "The tenant is in another cloud of Microsoft's. Check cloud.",
    90043: "The tenant is in another cloud of Microsoft's. Check cloud.",
    90036: "Microsoft's directory fails for this application, and says that trying again does not"
    " help. Check the application in Entra, or ask Microsoft.",
    500011: "The tenant does not know Microsoft Graph under this address. Check cloud.",
}
_PASSING = frozenset({90033, 90006, 90024, 50196, 90012, 70012, 90055, 90025, 90090})
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
    if code in _LOGIN:
        return NeedsReauth(f"{_LOGIN[code]} (AADSTS{code})", code=f"aadsts{code}")
    if code in _PASSING or status >= 500 or error in ("temporarily_unavailable", "server_error"):
        what = f"AADSTS{code}" if code else f"HTTP {status}"
        return Unavailable(f"Microsoft's login is out of order ({what}).")
    if error in _STOP_ERRORS or code:
        name = f"AADSTS{code}" if code else error
        return NeedsReauth(f"Microsoft's login refused ({name}). Check the application in Entra.")
    if not error:
        return no_login(f"HTTP {status}")
    return Fatal(f"Microsoft's login gives no token (HTTP {status}).")


def no_login(what: str) -> ConnectorError:
    """Return what an answer means that is none of the login's: a proxy's page, say."""
    return Unavailable(
        f"Something else answers in the place of Microsoft's login ({what}). It is tried again."
        " Where that lasts, check MICROSOFT_LOGIN_URL, and the proxies on the way."
    )


def login_code(answer: Mapping[str, Any]) -> int:
    """Return the number of "AADSTS..."; 0 where there is none."""
    codes = answer.get("error_codes")
    if isinstance(codes, list) and codes and isinstance(codes[0], int):
        return codes[0]
    found = _AADSTS.search(str(answer.get("error_description", "")))
    return int(found[1]) if found else 0
