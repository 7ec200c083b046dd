"""What a generic IMAP account needs: where it is, how to encrypt the connection, who logs in."""

import dataclasses
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from connectors.config import Config, ConfigError, field

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9.])?|[0-9A-Fa-f:.]{2,45}")


#: One server's, for STARTTLS and TLS (RFC 9051 section 2.1).
_STANDARD_PORTS = {143, 993}
#: Code of an error -> the field that is wrong, most likely.
_MENDED_BY = {
    "unknown_host": "host",
    "forbidden_address": "host",
    "certificate": "host",
    "unavailable": "host",
    "not_imap": "port",
    "tls": "secure",
    "login_disabled": "secure",
    "needs_reauth": "password",
    "no_oauth": "password",
}
#: By one of these an account logs in.
_CREDENTIALS = ("password", "accessToken", "refreshToken")
_MAIL_SERVER = ("host", "port", "username", "secure", "startTls", "allowInsecureCert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImapConfig(Config):
    host: str = field("Host", help="Name or address of the IMAP server.", max_length=253)
    port: int = field("Port", default=993, min_value=1, max_value=65535)
    secure: bool = field(
        "TLS", default=True, help="Encrypt from the first byte (usual on port 993)."
    )
    startTls: bool = field(
        "STARTTLS",
        default=False,
        help="Upgrade a plain connection (usual on port 143).",
    )
    allowInsecureCert: bool = field(
        "Accept any certificate",
        default=False,
        help="Only for a server of your own: anyone on the way could read the mail.",
    )
    username: str = field("User name", max_length=320)
    password: str = field(
        "Password",
        default="",
        secret=True,
        goes_with=_MAIL_SERVER,
        help="An app password where the provider has them.",
    )
    accessToken: str = field(
        "OAuth access token",
        default="",
        secret=True,
        max_length=20_000,
        goes_with=_MAIL_SERVER,
        help="Instead of a password: logs in with XOAUTH2.",
    )

    refreshToken: str = field(
        "OAuth refresh token",
        default="",
        secret=True,
        max_length=20_000,
        # What it is exchanged for goes to the mail server.
        goes_with=(*_MAIL_SERVER, "tokenUrl", "clientId"),
        help="Instead of an access token: new ones are asked for with it.",
    )
    tokenUrl: str = field(
        "OAuth token URL",
        default="",
        max_length=2_000,
        help="Where access tokens are issued, e.g. https://oauth2.googleapis.com/token.",
    )
    clientId: str = field("OAuth client id", default="")
    clientSecret: str = field(
        "OAuth client secret", default="", secret=True, goes_with=("tokenUrl", "clientId")
    )
    passwordByOwner: bool = field(
        "Its owner gives the password",
        default=False,
        help="Leave the password empty, save, and send the owner a link.",
    )

    owners_secret = "password"  # noqa: S105 - a field's name
    only_mailbox = "username"

    def awaits_consent(self) -> bool:
        return self.passwordByOwner and not self._given()

    def _given(self) -> list[str]:
        return [name for name in _CREDENTIALS if getattr(self, name)]

    @classmethod
    def mended_by(cls, code: str) -> str:
        return _MENDED_BY.get(code, "")

    @classmethod
    def superseded(cls, given: Mapping[str, Any], stored: Mapping[str, Any]) -> frozenset[str]:
        """A new credential of one kind replaces the stored ones of the others."""
        _ = stored
        if not set(given).intersection(_CREDENTIALS):
            return frozenset()
        others = {*_CREDENTIALS, "clientSecret"} - set(given)
        return frozenset(others - ({"clientSecret"} if "refreshToken" in given else set()))

    @classmethod
    def sends_elsewhere(cls, name: str, *, before: Any, after: Any) -> bool:
        """TLS may be made stricter at any time."""
        if name == "allowInsecureCert":
            return not before and bool(after)
        if name in ("secure", "startTls"):
            return bool(before) and not after
        return bool(before != after)

    def is_elsewhere(self, stored: Mapping[str, Any]) -> bool:
        """UIDVALIDITY and UIDs are one server's, and many begin both at 1."""
        if self.host.lower() != str(stored.get("host", "")).lower():
            return True
        ports = {self.port, stored.get("port", 993)}
        return len(ports) > 1 and ports != _STANDARD_PORTS

    @classmethod
    def account(cls, config: Mapping[str, Any]) -> str:
        """Addresses are taken in any case; "Alice" and "alice" may be two users of a machine."""
        host, user = (str(config.get(name) or "") for name in ("host", "username"))
        if not host or not user:
            return ""  # a source recovered from its archive
        port = config.get("port", 993)
        server = host.lower().rstrip(".") + ("" if port in _STANDARD_PORTS else f":{port}")
        return f"{user.casefold() if '@' in user else user} at {server}"

    def check(self) -> None:
        errors: dict[str, list[str]] = {}
        if not _HOST.fullmatch(self.host):
            errors["host"] = ["Must be a host name or an IP address, without a scheme or path."]
        if self.secure and self.startTls:
            errors["startTls"] = ["Choose one: TLS at once (secure) or startTls."]
        given = self._given()
        if not given and not self.passwordByOwner:
            text = "Give a password, an accessToken or a refreshToken, or turn on passwordByOwner."
            errors["password"] = [text]
        for name in given[1:]:
            errors[name] = ["Give a password, an accessToken or a refreshToken, not several."]
        if self.refreshToken:
            if not self.clientId:
                errors["clientId"] = ["Required with a refreshToken."]
            if not _is_https_url(self.tokenUrl):
                errors["tokenUrl"] = ["Required with a refreshToken: an https:// address."]
        if errors:
            raise ConfigError(errors)


def _is_https_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    plain = text.isascii() and not any(c.isspace() for c in text)
    return plain and parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc


LABEL = "IMAP server"
CONFIG = ImapConfig
