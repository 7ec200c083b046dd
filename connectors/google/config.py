"""What Google needs: a service account's key for a whole domain, or a client for one account."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from connectors.config import Config, ConfigError, field

_ADDRESS = re.compile(r"[^@\s]{1,64}@[^@\s]{1,255}")
#: cloud.google.com/pubsub/docs/pubsub-basics#resource_names.
_TOPIC = re.compile(r"projects/[a-z0-9.:-]{1,100}/topics/[A-Za-z][\w.~+%-]{2,250}", re.ASCII)
#: What of a key is needed; where its tokens are issued is a setting, never the key's word.
_KEY_PARTS = ("client_email", "private_key", "private_key_id", "client_id", "project_id")
_DOMAIN_FIELDS = frozenset({"serviceAccountKeyJson", "impersonatedAdminEmail"})
_ACCOUNT_FIELDS = frozenset({"clientId", "clientSecret", "refreshToken", "email"})
#: Code of an error -> the field that is wrong, most likely.
_MENDED_BY = {
    "key_unknown": "serviceAccountKeyJson",
    "key_unreadable": "serviceAccountKeyJson",
    "wrong_admin": "impersonatedAdminEmail",
    "wrong_client": "clientSecret",
    "other_account": "email",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoogleConfig(Config):
    serviceAccountKeyJson: str = field(
        "Service account key",
        default="",
        secret=True,
        takes_object=True,
        max_length=50_000,
        help="For a whole Workspace domain: the JSON file of a key of a service account with "
        "domain-wide delegation.",
    )
    impersonatedAdminEmail: str = field(
        "Administrator",
        default="",
        max_length=320,
        help="With a service account key: an administrator of the domain who may read its users.",
    )
    clientId: str = field(
        "OAuth client id",
        default="",
        help="For one account: of an OAuth client of type Web application.",
    )
    clientSecret: str = field(
        "OAuth client secret", default="", secret=True, goes_with=("clientId",)
    )
    refreshToken: str = field(
        "OAuth refresh token",
        default="",
        secret=True,
        max_length=20_000,
        help="Leave empty and sign in with Google on the source's page.",
    )
    email: str = field(
        "Account",
        default="",
        max_length=320,
        help="For one account: its address. Signing in fills it.",
    )
    notificationTopic: str = field(
        "Notification topic",
        default="",
        max_length=400,
        help="To listen for new mail: projects/PROJECT/topics/NAME, of Cloud Pub/Sub. Its"
        " subscription is NAME-sub. See docs/google.md.",
    )

    @property
    def is_domain(self) -> bool:
        """Whether this is a whole domain, not one account."""
        return bool(self.serviceAccountKeyJson)

    @property
    def key(self) -> dict[str, str]:
        """The parts of the service account's key that are used."""
        whole = json.loads(self.serviceAccountKeyJson)
        return {name: whole[name] for name in _KEY_PARTS}

    @property
    def project(self) -> str:
        """Whose quota it is: the Cloud project's id, or the client's id, which begins with it."""
        return self.key["project_id"] if self.is_domain else self.clientId

    @property
    def subscription(self) -> str:
        """The subscription that Google's console makes with a topic."""
        return self.notificationTopic.replace("/topics/", "/subscriptions/") + "-sub"

    def awaits_consent(self) -> bool:
        return not self.is_domain and not self.refreshToken

    @classmethod
    def mended_by(cls, code: str) -> str:
        return _MENDED_BY.get(code, "")

    @classmethod
    def superseded(cls, given: Mapping[str, Any], stored: Mapping[str, Any]) -> frozenset[str]:
        """A key replaces an account and the other way round; another client has no old token."""
        if given.get("serviceAccountKeyJson"):
            return _ACCOUNT_FIELDS
        other = given.get("clientId", stored.get("clientId")) != stored.get("clientId")
        dropped = frozenset({"refreshToken"}) if other else frozenset()
        account = {"clientSecret", "refreshToken"} & set(given)
        return dropped | _DOMAIN_FIELDS if account else dropped

    @classmethod
    def account(cls, config: Mapping[str, Any]) -> str:
        """An account's address is as Gmail itself spells it, once somebody signed in."""
        domain = str(config.get("impersonatedAdminEmail", "")).rpartition("@")[2]
        return (domain or str(config.get("email", ""))).casefold()

    def check(self) -> None:
        errors = self._domain_errors() if self.is_domain else self._account_errors()
        if self.notificationTopic and not _TOPIC.fullmatch(self.notificationTopic):
            errors["notificationTopic"] = ["Must be as projects/PROJECT/topics/NAME."]
        if errors:
            raise ConfigError(errors)

    def _domain_errors(self) -> dict[str, list[str]]:
        given = [name for name in sorted(_ACCOUNT_FIELDS) if getattr(self, name)]
        errors = {name: ["Leave it out with a serviceAccountKeyJson."] for name in given}
        if problem := _key_problem(self.serviceAccountKeyJson):
            errors["serviceAccountKeyJson"] = [problem]
        if not _ADDRESS.fullmatch(self.impersonatedAdminEmail):
            errors["impersonatedAdminEmail"] = ["Give the address of an administrator."]
        return errors

    def _account_errors(self) -> dict[str, list[str]]:
        errors: dict[str, list[str]] = {}
        if not any(getattr(self, name) for name in _ACCOUNT_FIELDS):
            errors["serviceAccountKeyJson"] = [
                "Give a serviceAccountKeyJson for a domain, or clientId and clientSecret."
            ]
            return errors
        for name in ("clientId", "clientSecret"):
            if not getattr(self, name):
                errors[name] = ["This field is required for one account."]
        if self.impersonatedAdminEmail:
            errors["impersonatedAdminEmail"] = ["Only with a serviceAccountKeyJson."]
        if self.refreshToken and not self.email:
            errors["email"] = ["Required with a refreshToken."]
        elif self.email and not _ADDRESS.fullmatch(self.email):
            errors["email"] = ["Must be an address."]
        return errors


def _key_problem(text: str) -> str:
    try:
        key = json.loads(text)
    except ValueError:
        return "Must be the JSON file that Google's console downloads for a key."
    if not isinstance(key, dict) or key.get("type") != "service_account":
        return 'Must be the key of a service account: its "type" is "service_account".'
    for name in _KEY_PARTS:
        if not isinstance(key.get(name), str) or not key[name]:
            return f"The key has no {name}. Download a new key of the service account."
    if "-----BEGIN PRIVATE KEY-----" not in key["private_key"]:
        return "The key's private_key is no PEM private key. Download a new key."
    return ""


LABEL = "Google"
CONFIG = GoogleConfig
