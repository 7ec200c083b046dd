"""What a generic IMAP account needs: where it is, how to encrypt the connection, who logs in."""

import dataclasses
import re

from connectors.config import Config, ConfigError, field

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9.])?|[0-9A-Fa-f:.]{2,45}")


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
        help="An app password where the provider has them.",
    )
    accessToken: str = field(
        "OAuth access token",
        default="",
        secret=True,
        max_length=20_000,
        help="Instead of a password: logs in with XOAUTH2.",
    )

    def check(self) -> None:
        errors: dict[str, list[str]] = {}
        if not _HOST.fullmatch(self.host):
            errors["host"] = ["Must be a host name or an IP address, without a scheme or path."]
        if self.secure and self.startTls:
            errors["startTls"] = ["Choose one: secure (TLS at once) or startTls."]
        if not self.password and not self.accessToken:
            errors["password"] = ["Give a password or an accessToken."]
        if self.password and self.accessToken:
            errors["accessToken"] = ["Give a password or an accessToken, not both."]
        if errors:
            raise ConfigError(errors)


CONFIG = ImapConfig
