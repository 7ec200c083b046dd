"""The ways to connect an account: what is asked for, what is known already, what to do before.

A way is a provider with some of its fields filled in. Steps are of the consoles as they are today;
docs/google.md and docs/microsoft.md say more.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from connectors.registry import PROVIDERS
from ingestion import expiry

_GMAIL_READ = "https://www.googleapis.com/auth/gmail.readonly"
_USERS_READ = "https://www.googleapis.com/auth/admin.directory.user.readonly"
#: Stands in a step for the address that a provider sends people back to.
REDIRECT_URI = "{redirect_uri}"


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Something to do at the provider: in words, where, and what to copy there."""

    text: str
    url: str = ""
    copy: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """`fields` are asked for; `preset` is given without asking, or filled in where it is asked.
    `needs`: fields that it can't do without, though their provider can, connected otherwise.
    `options` of a source stand beside the fields, because they are about them."""

    slug: str
    title: str
    about: str
    provider: str
    fields: tuple[str, ...]
    preset: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    options: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()


def _imap(slug: str, title: str, host: str, *steps: Step, **preset: Any) -> Way:
    given = {"host": host, "port": 993, "secure": True, **preset}
    return Way(
        slug, title, host, "generic_imap", ("username", "password", "passwordByOwner"), given, steps
    )


_CLOUD_PROJECT = Step(
    "Make a Cloud project, or choose one.", "https://console.cloud.google.com/projectcreate"
)
_GMAIL_API = Step(
    "Enable the Gmail API.",
    "https://console.cloud.google.com/apis/library/gmail.googleapis.com",
)
_REGISTER = "https://entra.microsoft.com/#view/Microsoft_AAD_RegisteredApps/CreateApplicationBlade"

#: Bridge's own: nobody is on the way.
_ANY_CERTIFICATE = {"allowInsecureCert": True}

_BUILT_IN = (
    Way(
        "gmail",
        "One Gmail account",
        "Its owner signs in with Google",
        "google",
        ("clientId", "clientSecret", "email"),
        needs=frozenset({"clientId", "clientSecret"}),
        steps=(
            _CLOUD_PROJECT,
            _GMAIL_API,
            Step(
                "Google Auth Platform: Get started; under Data access add this scope.",
                "https://console.cloud.google.com/auth/scopes",
                _GMAIL_READ,
            ),
            Step(
                "Clients > Create client > Web application, with this redirect URI. The secret is"
                " shown once.",
                "https://console.cloud.google.com/auth/clients",
                REDIRECT_URI,
            ),
            Step("Save here, then press Sign in with Google."),
        ),
    ),
    Way(
        "workspace",
        "Google Workspace",
        "All mailboxes of a domain",
        "google",
        ("serviceAccountKeyJson", "impersonatedAdminEmail"),
        needs=frozenset({"serviceAccountKeyJson", "impersonatedAdminEmail"}),
        steps=(
            _CLOUD_PROJECT,
            _GMAIL_API,
            Step(
                "Enable the Admin SDK API.",
                "https://console.cloud.google.com/apis/library/admin.googleapis.com",
            ),
            Step(
                "Make a service account, without a role; then Keys > Add key > JSON. Where keys are"
                " disabled, docs/google.md says how to allow one.",
                "https://console.cloud.google.com/iam-admin/serviceaccounts",
            ),
            Step(
                "Domain-wide delegation > Add new: the account's Unique ID, and these scopes.",
                "https://admin.google.com/ac/owl/domainwidedelegation",
                f"{_USERS_READ},{_GMAIL_READ}",
            ),
        ),
    ),
    Way(
        "tenant",
        "Microsoft 365",
        "All mailboxes of a tenant",
        "microsoft",
        (
            *("tenantId", "clientId", "clientSecret", "certificatePem"),
            *("certificatePrivateKeyPem", "cloud", "includeSharedMailboxes", "checkMailbox"),
        ),
        options=(expiry.OPTION,),
        needs=frozenset({"tenantId"}),
        steps=(
            Step("Register an application in this directory, without a redirect URI.", _REGISTER),
            Step(
                "API permissions > Microsoft Graph > Application permissions: these two. Then Grant"
                " admin consent.",
                copy="Mail.Read User.Read.All",
            ),
            Step(
                "Certificates & secrets: a secret (copy its Value, note when it expires), or better"
                " a certificate."
            ),
        ),
    ),
    Way(
        "mailbox365",
        "One Microsoft mailbox",
        "Its owner signs in: work, school or outlook.com",
        "microsoft",
        ("email", "tenantId", "clientId", "clientSecret"),
        options=(expiry.OPTION,),
        needs=frozenset({"email"}),
        steps=(
            Step("Register an application; for outlook.com with personal accounts.", _REGISTER),
            Step(
                "API permissions > Microsoft Graph > Delegated permissions: these. An administrator"
                " may have to consent.",
                copy="Mail.Read User.Read offline_access",
            ),
            Step("Authentication > Add Redirect URI > Web, with this address.", copy=REDIRECT_URI),
            Step(
                "Certificates & secrets > New client secret: copy its Value, note when it expires."
            ),
            Step("Save here, then press Sign in."),
        ),
    ),
    _imap(
        "icloud",
        "iCloud",
        "imap.mail.me.com",
        Step(
            "Make an app-specific password (Sign-In and Security).",
            "https://account.apple.com/account/manage",
        ),
        Step("The user name is your iCloud address without @icloud.com; else the whole address."),
    ),
    _imap(
        "yahoo",
        "Yahoo",
        "imap.mail.yahoo.com",
        Step("Make an app password.", "https://login.yahoo.com/account/security"),
    ),
    _imap(
        "fastmail",
        "Fastmail",
        "imap.fastmail.com",
        Step(
            "Make an app password with access to mail by IMAP.",
            "https://app.fastmail.com/settings/security/integrations",
        ),
    ),
    _imap(
        "gmx",
        "GMX",
        "imap.gmx.net",
        Step("Turn on POP3/IMAP access in Settings > E-mail.", "https://www.gmx.net/mail/"),
        Step("With two-factor sign-in: an app-specific password."),
    ),
    Way(
        "proton",
        "Proton Mail",
        "Through Proton Mail Bridge",
        "generic_imap",
        ("host", "port", "username", "password"),
        {"host": "127.0.0.1", "port": 1143, "startTls": True, "secure": False, **_ANY_CERTIFICATE},
        (
            Step("Run Proton Mail Bridge where this service reaches it, and sign in there."),
            Step("Bridge shows a user name and a password of its own: give those, not Proton's."),
        ),
    ),
    Way(
        "imap",
        "Any IMAP server",
        "Host, user name, password",
        "generic_imap",
        (
            "host",
            "port",
            "secure",
            "startTls",
            "allowInsecureCert",
            "username",
            "password",
            "passwordByOwner",
        ),
    ),
)


def all_ways() -> list[Way]:
    """Return the ways in the order in which they are shown; of each plug-in there is one."""
    known = {way.provider for way in _BUILT_IN}
    others = [
        Way(
            provider.slug,
            provider.label,
            "From an installed package",
            provider.slug,
            tuple(field.name for field in provider.config.fields()),
        )
        for provider in PROVIDERS.values()
        if provider.slug not in known
    ]
    return [*(way for way in _BUILT_IN if way.provider in PROVIDERS), *others]


def get(slug: str) -> Way | None:
    return next((way for way in all_ways() if way.slug == slug), None)


def steps(way: Way, *, redirect_uri: str) -> list[Step]:
    """Return the steps with the address of this service in its place."""
    return [
        dataclasses.replace(step, copy=step.copy.replace(REDIRECT_URI, redirect_uri))
        for step in way.steps
    ]
