"""Which providers there are. Public surface: PROVIDERS, build, consent.

A provider is a folder with the same file names in each: connector.py, client.py, config.py.
Adding one is adding a row here.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, cast

from connectors.base import Connector, Consent
from connectors.config import Config, Environment


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """`slug` is the API's name, `label` for people, `package` holds connector.py and config.py."""

    slug: str
    label: str
    package: str

    @property
    def config(self) -> type[Config]:
        """The provider's Config class: its fields, which of them are secret, and its checks."""
        return cast("type[Config]", importlib.import_module(f"{self.package}.config").CONFIG)


PROVIDERS: Mapping[str, Provider] = {
    p.slug: p
    for p in (
        Provider("generic_imap", "IMAP server", "connectors.generic_imap"),
        Provider("google", "Google", "connectors.google"),
        Provider("microsoft", "Microsoft 365", "connectors.microsoft"),
    )
}


def build(slug: str, config: Mapping[str, Any], environment: Environment) -> Connector:
    """Make the connector of a checked providerConfig. Opens no connection yet."""
    provider = PROVIDERS[slug]
    module = importlib.import_module(f"{provider.package}.connector")
    return cast("Connector", module.CONNECTOR(provider.config.parse(config), environment))


def consent(slug: str, config: Mapping[str, Any], environment: Environment) -> Consent | None:
    """Return how a person signs in for a providerConfig; None where nobody does for this one."""
    provider = PROVIDERS[slug]
    module = importlib.import_module(f"{provider.package}.connector")
    make = getattr(module, "CONSENT", None)
    if make is None:
        return None
    return cast("Consent | None", make(provider.config.parse(config), environment))
