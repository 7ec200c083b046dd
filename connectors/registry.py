"""Which providers there are: our own, and those of other packages.

Public surface: PROVIDERS, LEFT_OUT (what of others is no good, and why), get, build, consent.

A provider is a package with the same file names as any other: config.py has LABEL and CONFIG,
connector.py has CONNECTOR, and CONSENT where people can sign in. One of ours is a row in _OWN. That
of another distribution is found by its entry point: docs/adding-a-provider.md.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any, cast

from connectors.base import Connector, Consent
from connectors.config import Config, Environment
from connectors.errors import Fatal

#: The entry points that name providers: `slug = "package"`.
GROUP = "ingestion.connectors"

#: In URLs, forms, option names and a column of 32 characters. Words that begin with a letter, so
#: that no two have the same name in camelCase.
_SLUG = re.compile(r"(?=.{1,32}$)[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*")
_FIELD = re.compile(r"[a-z][A-Za-z0-9]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """`slug` is the API's name; `package` holds connector.py and config.py, loaded when needed."""

    slug: str
    package: str

    @property
    def label(self) -> str:
        """What people call it."""
        return str(self._load("config", "LABEL"))

    @property
    def config(self) -> type[Config]:
        """The provider's Config class: its fields, which of them are secret, and its checks."""
        return cast("type[Config]", self._load("config", "CONFIG"))

    def connector(self, config: Config, environment: Environment) -> Connector:
        return cast("Connector", self._load("connector", "CONNECTOR")(config, environment))

    def consent(self, config: Config, environment: Environment) -> Consent | None:
        make = self._load("connector", "CONSENT", None)
        return cast("Consent", make(config, environment)) if make else None

    def _load(self, module: str, *name_and_default: Any) -> Any:
        return getattr(_module(f"{self.package}.{module}"), *name_and_default)


#: Lists ask for each row.
_module = functools.cache(importlib.import_module)


class _Absent(Provider):
    """Stands in for a provider that is not here any more, so that its sources can still be shown,
    changed and deleted. It has no fields, and whoever connects is told why that can't be."""

    __slots__ = ()

    @property
    def label(self) -> str:
        return f"{self.slug} (not installed)"

    @property
    def config(self) -> type[Config]:
        return _Anything

    def connector(self, config: Config, environment: Environment) -> Connector:
        _ = config, environment
        raise Fatal(
            f"The provider {self.slug} is not installed here, or is left out. Install its package "
            "for every process (manage.py check says what is left out and why), restart them, and "
            "verify the source.",
            code="provider_missing",
        )

    def consent(self, config: Config, environment: Environment) -> None:
        _ = config, environment


class _Anything(Config):
    """The configuration of which nothing is known."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "_Anything":
        _ = given
        return cls()


def find(own: Mapping[str, str]) -> tuple[dict[str, Provider], list[str]]:
    """Return the providers by slug, our own first, and a sentence for each plug-in left out.

    A plug-in is loaded once here, whole, so that what is wrong with it shows at the start and
    nowhere else. Whoever claims a name first has it, in the order of distributions' names.
    """
    providers = {slug: Provider(slug, package) for slug, package in own.items()}
    left_out = []
    entries = importlib.metadata.entry_points(group=GROUP)
    for entry in sorted(entries, key=lambda entry: (_distribution(entry), entry.name)):
        provider = Provider(entry.name, entry.value)
        if provider.slug in providers:
            problem = f"there is a provider of that name, {providers[provider.slug].package}"
        else:
            problem = _problem(provider)
        if problem:
            about = f"The provider {entry.name!r} of the package {_distribution(entry)}"
            left_out.append(f"{about} is left out: {problem}.")
        else:
            providers[provider.slug] = provider
    return providers, left_out


def _distribution(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _problem(provider: Provider) -> str:
    """Return what is wrong with a plug-in, or ""."""
    if not _SLUG.fullmatch(provider.slug):
        return "a name has lower-case words joined by _, and at most 32 characters"
    try:
        fields = list(provider.config.fields())
        connector = provider._load("connector", "CONNECTOR")  # noqa: SLF001 - this module's own
        if not isinstance(connector, type) or not issubclass(connector, Connector):
            return "its CONNECTOR is no subclass of connectors.base.Connector"
        _ = provider.label
    except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code: whatever it is, the others go on
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    for field in fields:
        if field.name == "type" or not _FIELD.fullmatch(field.name):
            return (
                f"no field can be called {field.name}: names are camelCase, and type is the API's"
            )
        if field.type not in (str, int, bool):
            return f"the field {field.name} is neither a text nor a whole number nor a flag"
    return ""


_OWN = {
    "generic_imap": "connectors.generic_imap",
    "google": "connectors.google",
    "microsoft": "connectors.microsoft",
}

PROVIDERS, LEFT_OUT = find(_OWN)


def get(slug: str) -> Provider:
    """Return a stored source's provider, also where its package is not installed any more."""
    return PROVIDERS.get(slug) or _Absent(slug, "")


def build(slug: str, config: Mapping[str, Any], environment: Environment) -> Connector:
    """Make the connector of a checked providerConfig. Opens no connection yet. Raises Fatal where
    the provider is not there."""
    provider = get(slug)
    return provider.connector(provider.config.parse(config), environment)


def consent(slug: str, config: Mapping[str, Any], environment: Environment) -> Consent | None:
    """Return how a person signs in for a providerConfig; None where nobody does for this one."""
    provider = get(slug)
    return provider.consent(provider.config.parse(config), environment)
