"""Every provider of the registry has a test class here that inherits the contract."""

import importlib
from pathlib import Path

import pytest

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from tests.contract.suite import ConnectorContract


def _tested() -> set[str]:
    found: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        module = importlib.import_module(f"tests.contract.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, ConnectorContract):
                found.add(getattr(value, "slug", ""))
    return found


def test_every_provider_keeps_the_contract() -> None:
    assert set(registry.PROVIDERS) <= _tested()


@pytest.mark.parametrize("slug", sorted(registry.PROVIDERS))
def test_a_provider_can_be_built_without_a_connection(slug: str) -> None:
    config = registry.PROVIDERS[slug].config
    given = {field.name: "x" for field in config.fields() if field.required}
    secrets = {field.name: "x" for field in config.fields() if field.secret}
    first = dict(list(secrets.items())[:1])
    assert isinstance(registry.build(slug, given | first, Environment()), Connector)


@pytest.mark.parametrize("slug", sorted(registry.PROVIDERS))
def test_no_secret_of_a_configuration_is_in_its_repr(slug: str) -> None:
    config = registry.PROVIDERS[slug].config
    secrets = [field.name for field in config.fields() if field.secret]
    assert secrets
    given = {field.name: "x" for field in config.fields() if field.required}
    assert "canary" not in repr(config.parse(given | {secrets[0]: "canary"}))
