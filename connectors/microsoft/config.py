"""What Microsoft 365 needs: an application of a tenant, or one that a person signs in to."""

import dataclasses
import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from connectors.config import Config, ConfigError, Environment, field

_PEM_CHARACTERS = 30_000
#: A tenant is named by its GUID or one of its domains.
_TENANT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?")
#: These mean no tenant but whoever signs in.
_SHARED_TENANTS = frozenset({"common", "organizations", "consumers"})


@dataclasses.dataclass(frozen=True, slots=True)
class Cloud:
    """Where people sign in and where Graph is. No trailing slash. `has_delta`: whether Graph there
    has delta query of messages."""

    login: str
    graph: str
    has_delta: bool = True


#: learn.microsoft.com/graph/deployments#microsoft-graph-and-graph-explorer-service-root-endpoints
CLOUDS: Mapping[str, Cloud] = {
    "global": Cloud("https://login.microsoftonline.com", "https://graph.microsoft.com"),
    "usgov": Cloud("https://login.microsoftonline.us", "https://graph.microsoft.us"),
    "usgovdod": Cloud("https://login.microsoftonline.us", "https://dod-graph.microsoft.us"),
    # learn.microsoft.com/graph/api/message-delta says that China does not have it.
    "china": Cloud(
        "https://login.chinacloudapi.cn", "https://microsoftgraph.chinacloudapi.cn", has_delta=False
    ),
}


_APPLICATION = ("tenantId", "clientId", "cloud")
#: Code of an error (of the login: AADSTS and its number) -> the field that is wrong, most likely.
_MENDED_BY = {
    "aadsts7000215": "clientSecret",
    "aadsts7000222": "clientSecret",
    "aadsts7000218": "clientSecret",
    "aadsts700016": "clientId",
    "aadsts90002": "tenantId",
    "aadsts900023": "tenantId",
    "aadsts50194": "tenantId",
    "aadsts50020": "tenantId",
    "aadsts50034": "email",
    "aadsts700027": "certificatePrivateKeyPem",
    "access_policy": "checkMailbox",
    "other_person": "email",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicrosoftConfig(Config):
    tenantId: str = field(
        "Tenant",
        default="",
        max_length=255,
        help="The directory (tenant) id, or a domain of it. Optional where one person signs in.",
    )
    clientId: str = field(
        "Application (client) id", max_length=100, help="From the application's overview in Entra."
    )
    clientSecret: str = field(
        "Client secret",
        default="",
        secret=True,
        goes_with=_APPLICATION,
        help="The secret's Value, not its Secret ID. Or give a certificate.",
    )
    certificatePem: str = field(
        "Certificate (PEM)",
        default="",
        multiline=True,
        max_length=_PEM_CHARACTERS,
        help="As uploaded to the application. Used instead of a client secret.",
    )
    certificatePrivateKeyPem: str = field(
        "Private key of the certificate (PEM)",
        default="",
        secret=True,
        goes_with=_APPLICATION,
        multiline=True,
        max_length=_PEM_CHARACTERS,
    )
    cloud: str = field(
        "Cloud",
        default="global",
        choices=tuple(CLOUDS),
        help="global, usgov (GCC High), usgovdod or china (21Vianet).",
    )
    email: str = field(
        "Only the mailbox of",
        default="",
        max_length=320,
        help="The address of the one person who signs in; empty for a whole tenant.",
    )
    refreshToken: str = field(
        "Refresh token",
        default="",
        secret=True,
        max_length=20_000,
        help="Of the person named above. Signing in stores it by itself.",
    )
    checkMailbox: str = field(
        "Check with",
        default="",
        max_length=320,
        help="A tenant: an address whose mail the application may read, to prove that it works."
        " Needed only where a policy limits it to few mailboxes.",
    )
    includeSharedMailboxes: bool = field(
        "Shared mailboxes",
        default=True,
        help="A tenant: shared, room and equipment mailboxes too, those without a licence.",
    )
    includeRecoverableItems: bool = field(
        "Recoverable items",
        default=False,
        help="Also what was deleted from Deleted Items and can still be recovered.",
    )

    @property
    def signs_in(self) -> bool:
        """Whether this is one person's mailbox, not a tenant."""
        return bool(self.email)

    @property
    def audience(self) -> str:
        """Whom tokens are for: Graph as its cloud names it, also where a gateway leads there."""
        return CLOUDS[self.cloud].graph

    def where(self, environment: Environment) -> Cloud:
        """Return the cloud's addresses, or those that the deployment gives instead."""
        cloud, given = CLOUDS[self.cloud], environment.endpoints
        return Cloud(
            (given.get("microsoft.login") or cloud.login).rstrip("/"),
            (given.get("microsoft.graph") or cloud.graph).rstrip("/"),
            cloud.has_delta,
        )

    def awaits_consent(self) -> bool:
        return self.signs_in and not self.refreshToken

    @classmethod
    def mended_by(cls, code: str) -> str:
        return _MENDED_BY.get(code, "")

    @classmethod
    def superseded(cls, given: Mapping[str, Any], stored: Mapping[str, Any]) -> frozenset[str]:
        """A client secret replaces a certificate, and the other way round; another person, or
        application, needs another refresh token."""
        dropped: set[str] = set()
        if given.get("clientSecret"):
            dropped |= {"certificatePem", "certificatePrivateKeyPem"}
        elif given.get("certificatePem"):
            dropped.add("clientSecret")
        for name in ("email", *_APPLICATION):
            if name in given and given[name] != stored.get(name, ""):
                dropped.add("refreshToken")
        return frozenset(dropped)

    @classmethod
    def account(cls, config: Mapping[str, Any]) -> str:
        return str(config.get("email") or config.get("tenantId", "")).casefold()

    @classmethod
    def expires_on(cls, stored: Mapping[str, Any]) -> dt.date | None:
        """The certificate says it itself; of a client secret only Entra knows."""
        try:
            pem = str(stored.get("certificatePem") or "").encode()
            return x509.load_pem_x509_certificate(pem).not_valid_after_utc.date()
        except ValueError:
            return None

    def check(self) -> None:
        errors: dict[str, list[str]] = {}
        if not self.tenantId and not self.signs_in:
            errors["tenantId"] = ["Required for a tenant (or give the email of one person)."]
        elif self.tenantId and not _TENANT.fullmatch(self.tenantId):
            errors["tenantId"] = ["Must be the tenant's id (a GUID) or one of its domains."]
        elif self.tenantId.lower() in _SHARED_TENANTS and not self.signs_in:
            errors["tenantId"] = ["Must name one tenant; this is only for one person's mailbox."]
        if self.refreshToken and not self.signs_in:
            errors["email"] = ["Required with a refreshToken: whose mailbox it is for."]
        errors |= self._wrong_credential()
        if errors:
            raise ConfigError(errors)

    def _wrong_credential(self) -> dict[str, list[str]]:
        has_certificate = bool(self.certificatePem or self.certificatePrivateKeyPem)
        if self.clientSecret and has_certificate:
            return {"clientSecret": ["Give a client secret or a certificate, not both."]}
        if not has_certificate:
            if self.clientSecret or self.signs_in:
                return {}
            return {"clientSecret": ["Give a client secret or a certificate."]}
        if not self.certificatePem:
            return {"certificatePem": ["Required with a private key."]}
        if not self.certificatePrivateKeyPem:
            return {"certificatePrivateKeyPem": ["Required with a certificate."]}
        return _wrong_pair(self.certificatePem, self.certificatePrivateKeyPem)


def _wrong_pair(certificate_pem: str, key_pem: str) -> dict[str, list[str]]:
    """Tell what is wrong with a certificate and its key. Repeats neither."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError:
        text = "Must be a certificate in PEM (-----BEGIN CERTIFICATE-----)."
        return {"certificatePem": [text]}
    try:
        key = load_pem_private_key(key_pem.encode(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        text = "Must be a private key in PEM (-----BEGIN PRIVATE KEY-----), without a passphrase."
        return {"certificatePrivateKeyPem": [text]}
    if not isinstance(key, RSAPrivateKey):
        return {"certificatePrivateKeyPem": ["Must be an RSA key: Entra takes no other."]}
    if key.public_key() != certificate.public_key():
        return {"certificatePrivateKeyPem": ["Does not belong to the certificate."]}
    return {}


LABEL = "Microsoft 365"
CONFIG = MicrosoftConfig
