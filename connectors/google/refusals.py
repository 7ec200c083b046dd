"""What Google's refusals mean: one place from status, reason and description to our errors.

Texts for people have the exact line to add or page to open in Google's consoles. Nothing here
repeats a secret: of Google's own words only a few printable ones are shown.
"""

import dataclasses
import datetime as dt
import json
import re
import ssl
from typing import Any

from google.auth.exceptions import RefreshError
from googleapiclient.errors import HttpError

from connectors.errors import (
    ConnectorError,
    Fatal,
    MailboxUnavailable,
    NeedsReauth,
    RateLimited,
    Unavailable,
)
from connectors.web import retry_after_seconds

MAIL_SCOPE = "https://www.googleapis.com/auth/gmail.readonly"
TOPIC_SCOPE = "https://www.googleapis.com/auth/pubsub"
USERS_SCOPE = "https://www.googleapis.com/auth/admin.directory.user.readonly"
DELEGATION_PAGE = "https://admin.google.com/ac/owl/domainwidedelegation"
DENIED = "denied"  # 403 for a reason that Google's documentation does not have
_LIBRARY = "https://console.cloud.google.com/apis/library"
_RATE_REASONS = frozenset(
    {
        "ratelimitexceeded",
        "userratelimitexceeded",
        "quotaexceeded",
        "dailylimitexceeded",
        "rate_limit_exceeded",
        "resource_exhausted",
    }
)
_LONGEST_WAIT_SECONDS = 3_600.0
_SETTINGS = {
    "gmail": "GOOGLE_GMAIL_URL",
    "admin": "GOOGLE_DIRECTORY_URL",
    "pubsub": "GOOGLE_PUBSUB_URL",
}
_NAMES = {"gmail": "Gmail API", "admin": "Admin SDK API", "pubsub": "Cloud Pub/Sub API"}
#: What Gmail says of a topic, and of nothing else.
_OF_TOPIC = re.compile("Cloud PubSub|topicName")
#: google-auth's own words in the place of the answer invalid_grant, invalid_rapt.
_PROVE_ANEW = "Reauthentication is needed"
_TOO_FEW_SCOPES = frozenset({"insufficientPermissions", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"})


@dataclasses.dataclass(frozen=True, slots=True)
class Asker:
    """Who asks Google, for the texts. `client_id` is the service account's number, or "" for one
    account; `project` is the Cloud project; `mailbox`: a domain's user, of whom there are others.
    """

    person: str
    client_id: str = ""
    project: str = ""
    mailbox: bool = False

    @property
    def is_domain(self) -> bool:
        return bool(self.client_id)


class Absent(Fatal):
    """404: what was asked for is not there. Who asks for a message or a history knows what it
    means; where it is anything else, Google is not at the address of the settings."""

    code = "not_found"


class BadRequest(Fatal):
    """400: the request was not understood: a page token or an id that is none, or a bug."""

    code = "bad_request"


class OutOfOrder(Unavailable):
    """5xx: Google failed, perhaps only at this one request. Or something else answered."""


class PreconditionFailed(OutOfOrder):
    """400 failedPrecondition: passing for some, once in a hundred requests (google-api-php-client
    #2558); where the profile can't be had either, the person has no Gmail, as `no_gmail` says."""

    def __init__(self, no_gmail: MailboxUnavailable) -> None:
        super().__init__(
            "Google is out of order (HTTP 400, failedPrecondition). It is tried again."
        )
        self.no_gmail = no_gmail


class NoAnswer(Unavailable):
    """Nothing came in time."""


class Refused(RateLimited):
    """Too much was asked. `whose`: "user" or "project"."""

    def __init__(self, whose: str, *, retry_after_seconds: float | None) -> None:
        super().__init__(
            "Google asks to slow down. Nothing is lost: it goes on by itself.",
            retry_after_seconds=retry_after_seconds,
        )
        self.whose = whose


def other_account(actual: str, wanted: str) -> ConnectorError:
    return NeedsReauth(
        f"The sign-in is for {actual}, and this source is for {wanted}. Sign in with that account,"
        " or change the source's account first.",
        code="other_account",
    )


def delegation_line(client_id: str) -> str:
    """Say what to add in the Google admin console."""
    return (
        f"In the Google admin console (Security > API controls > Domain-wide delegation,"
        f" {DELEGATION_PAGE}) add client ID {client_id} with the scopes {USERS_SCOPE},{MAIL_SCOPE}"
    )


# -- answers of the APIs -----------------------------------------------------------------------


def of_answer(error: HttpError, asker: Asker, *, api: str) -> Exception:
    """Return what a refusal means: a ConnectorError, Absent or BadRequest.

    `api` is "gmail", "admin" or "pubsub".
    developers.google.com/workspace/gmail/api/guides/handle-errors.
    """
    status, reasons, text = int(error.resp.status), *_reasons(error)
    folded = {reason.lower() for reason in reasons}
    if status == 429 or (status == 403 and folded & _RATE_REASONS):
        whose = "user" if "user" in " ".join([*folded, text.lower()]) else "project"
        header = retry_after_seconds(error.resp.get("retry-after", ""))
        return Refused(whose, retry_after_seconds=_told(text) if header is None else header)
    # Of no reason in JSON: a gateway that is deployed anew, a page of a proxy.
    if status >= 500 or status == 408 or (status in (403, 404) and not reasons):
        return _out_of_order(status, api)
    if _OF_TOPIC.search(text):
        return _of_topic(status, text)
    if status == 404:
        return _missing(api)
    if status == 401:
        return _not_accepted(asker)
    if status == 403:
        return _forbidden(reasons, text, asker, api)
    if "failedPrecondition" in reasons or "FAILED_PRECONDITION" in reasons:
        return PreconditionFailed(
            MailboxUnavailable(
                f"{asker.person} has no Gmail: the user has no Workspace licence for it, or the"
                " service is turned off for them. Assign one, or exclude the mailbox.",
                code="no_gmail",
            )
        )
    return BadRequest(f"Google refuses the request (HTTP {status}: {_shown(text)}).")


def _out_of_order(status: int, api: str) -> ConnectorError:
    text = f"Google is out of order (HTTP {status}). It is tried again."
    if status in (403, 404):
        text = (
            f"Something else answers in Google's place (HTTP {status}). It is tried again. Where"
            f" that lasts, check {_SETTINGS[api]}, and the proxies on the way."
        )
    return OutOfOrder(text)


def _not_accepted(asker: Asker) -> ConnectorError:
    if asker.mailbox:
        return MailboxUnavailable(
            f"Google refuses access to {asker.person}, though not to others: the user may be"
            " suspended or new. The next sync tries again."
        )
    return NeedsReauth("Google no longer accepts this access. Sign in again, or store a new key.")


def _forbidden(reasons: set[str], text: str, asker: Asker, api: str) -> ConnectorError:
    name = _NAMES[api]
    if reasons & {"accessNotConfigured", "SERVICE_DISABLED"}:
        page = f"{_LIBRARY}/{api}.googleapis.com?project={asker.project}"
        return Fatal(
            f"The {name} is not enabled in the Cloud project {asker.project}. Enable it at {page}"
            " and wait a few minutes.",
            code="api_disabled",
        )
    if api == "pubsub":
        return subscription_denied(asker)
    if reasons & _TOO_FEW_SCOPES:
        return _scope_missing(asker)
    if "domainPolicy" in reasons:
        return MailboxUnavailable(
            f"The domain's administrators turned off Gmail's API for {asker.person}. Turn it on"
            " (Apps > Google Workspace > Gmail), or exclude the mailbox.",
            code="domain_policy",
        )
    if api == "admin":
        return Fatal(
            f"{asker.person} may not read the domain's users. impersonatedAdminEmail must be an"
            " administrator with the privilege Users > Read (a super administrator has it).",
            code="wrong_admin",
        )
    kind = MailboxUnavailable if asker.mailbox else Fatal
    return kind(f"Google denies access to the mail of {asker.person}: {_shown(text)}", code=DENIED)


def _scope_missing(asker: Asker) -> ConnectorError:
    if asker.is_domain:
        return NeedsReauth(
            f"The service account lacks a scope. {delegation_line(asker.client_id)}",
            code="scope_not_delegated",
        )
    return scope_not_granted()


def scope_not_granted() -> ConnectorError:
    return NeedsReauth(
        "Reading mail was not granted. Sign in again and leave the box at Gmail ticked.",
        code="scope_not_granted",
    )


def _of_topic(status: int, text: str) -> ConnectorError:
    """Return why Gmail tells a topic nothing: users.watch publishes a message on trial."""
    if status == 403:
        return Fatal(
            "Gmail may not publish to the notification topic. Grant"
            " gmail-api-push@system.gserviceaccount.com the role Pub/Sub Publisher on it.",
            code="topic_not_granted",
        )
    if status == 404:
        return Fatal(
            "There is no such notification topic. Create it, or correct notificationTopic.",
            code="topic_missing",
        )
    return Fatal(
        "Gmail does not take the notification topic: it must lie in the Cloud project of the"
        f" service account or of the OAuth client ({_shown(text)}).",
        code="topic_elsewhere",
    )


def _missing(api: str) -> ConnectorError:
    if api == "pubsub":
        return Fatal(
            "The notification topic has no subscription of its name with -sub behind it. Create it,"
            " of type pull.",
            code="subscription_missing",
        )
    return Absent(f"Google does not have what was asked for (404). Check {_SETTINGS[api]}.")


def subscription_denied(asker: Asker) -> ConnectorError:
    again = "" if asker.is_domain else ", and sign in again if that was before there was a topic"
    return Fatal(
        f"{asker.person} may not read the topic's subscription. Grant it the role Pub/Sub"
        f" Subscriber on the subscription{again}.",
        code="subscription_denied",
    )


def of_connection(error: Exception) -> ConnectorError:
    """Return what a failure below HTTP means."""
    if isinstance(error, TimeoutError):
        return NoAnswer("Google did not answer in time.")
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fatal(
            "The certificate of Google's server can't be verified. Where a proxy of yours stands"
            " between, name its authority in EXTRA_CA_FILE.",
            code="certificate",
        )
    return Unavailable(f"The connection to Google was lost ({type(error).__name__}).")


def no_json() -> ConnectorError:
    """Return what a success means that is none of Google's: a proxy's page, say."""
    return Unavailable("What answers in Google's place answers with no JSON object.")


# -- answers of the token endpoint -------------------------------------------------------------


def of_token(error: RefreshError, asker: Asker, *, scope: str) -> ConnectorError:
    """Return what a refused token means.

    developers.google.com/identity/protocols/oauth2/service-account#error-codes.
    """
    answer = next((a for a in error.args if isinstance(a, dict)), {})
    name, about = str(answer.get("error", "")), str(answer.get("error_description", ""))
    if _PROVE_ANEW in str(error):
        name = "invalid_grant"
    elif error.retryable or not name:
        return Unavailable(f"Google issues no tokens now ({_shown(name) or 'no OAuth answer'}).")
    if not asker.is_domain:
        return _of_refresh_token(name)
    if name == "unauthorized_client":
        return NeedsReauth(
            f"The scope {scope} is not delegated to the service account."
            f" {delegation_line(asker.client_id)} and wait: it may take minutes, at times a day.",
            code="scope_not_delegated",
        )
    if "JWT Signature" in about:
        return NeedsReauth(
            "Google does not know this key: it was deleted or disabled. Create a new key of the"
            " service account and store it.",
            code="key_unknown",
        )
    if "reasonable timeframe" in about:
        return Fatal(
            "Google says that this machine's clock is wrong. Set it (NTP), then verify again.",
            code="clock_skew",
        )
    if asker.mailbox:
        return MailboxUnavailable(
            f"Google gives no access to {asker.person} ({_shown(about or name)}): suspended,"
            " deleted or new. The next sync tries again."
        )
    if name == "invalid_grant":
        return Fatal(
            f"{asker.person} is no user of the domain ({_shown(about)}). impersonatedAdminEmail"
            " must be the primary address of an administrator who is not suspended.",
            code="wrong_admin",
        )
    return NeedsReauth(f"Google refuses the service account: {_shown(name)}, {_shown(about)}.")


def unreadable_key() -> ConnectorError:
    return NeedsReauth(
        "The private key in serviceAccountKeyJson can't be read. Store the file as Google's console"
        " downloaded it.",
        code="key_unreadable",
    )


def _of_refresh_token(name: str) -> ConnectorError:
    if name == "invalid_client":
        return NeedsReauth(
            "Google does not know this clientId with this clientSecret. Correct them.",
            code="wrong_client",
        )
    if name == "invalid_grant":
        return NeedsReauth(
            "Google no longer accepts this sign-in: it was revoked or has expired (after 7 days"
            " where the consent screen is still in testing). Sign in again.",
            code="sign_in_again",
        )
    return NeedsReauth(f"Google refuses this sign-in ({_shown(name)}). Sign in again.")


def of_code(name: str) -> ConnectorError:
    """Return what a refused authorization code means."""
    if name == "invalid_client":
        return _of_refresh_token(name)
    return NeedsReauth(
        f"Google refuses the sign-in's code ({_shown(name)}): it was used before or is too old."
        " Sign in again."
    )


# -- reading them ------------------------------------------------------------------------------


def _reasons(error: HttpError) -> tuple[set[str], str]:
    """Return every reason that an error's body names, and its text. No reason, where the body is
    none of Google's."""
    try:
        body = json.loads(error.content)["error"]
        found: list[Any] = [*body.get("errors", ()), *body.get("details", ())]
        reasons = {str(each["reason"]) for each in found if "reason" in each}
        return reasons | {str(body.get("status", ""))}, str(body.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return set(), ""


def _told(text: str) -> float | None:
    """Read how long to wait from "User-rate limit exceeded.  Retry after 2026-11-25T09:00:00.000Z",
    which Gmail says instead of a header. At most an hour; None where it says no time."""
    found = re.search(r"Retry after (\S+)", text)
    try:
        at = dt.datetime.fromisoformat(found[1]) if found else None
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        return None
    return min(_LONGEST_WAIT_SECONDS, max(0.0, (at - dt.datetime.now(dt.UTC)).total_seconds()))


def _shown(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:200].rstrip(".")
