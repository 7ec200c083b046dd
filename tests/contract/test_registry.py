"""Every provider of the registry has a test class here that inherits the contract."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from connectors import registry
from connectors.base import Connector
from connectors.config import Environment
from tests.contract.suite import ConnectorContract


def _contracts() -> list[type[ConnectorContract]]:
    found: list[type[ConnectorContract]] = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem == Path(__file__).stem:
            continue
        module = importlib.import_module(f"tests.contract.{path.stem}")
        for value in vars(module).values():
            is_class = isinstance(value, type) and issubclass(value, ConnectorContract)
            if is_class and value is not ConnectorContract:
                found.append(value)
    return found


EXAMPLES = [
    pytest.param(contract.slug, example, id=f"{contract.slug}-{number}")
    for contract in _contracts()
    for number, example in enumerate(contract.examples, 1)
]


def test_every_provider_keeps_the_contract() -> None:
    assert set(registry.PROVIDERS) <= {contract.slug for contract in _contracts()}


@pytest.mark.parametrize(("slug", "given"), EXAMPLES)
def test_a_provider_can_be_built_without_a_connection(slug: str, given: dict[str, Any]) -> None:
    assert isinstance(registry.build(slug, given, Environment()), Connector)


@pytest.mark.parametrize(("slug", "given"), EXAMPLES)
def test_no_secret_of_a_configuration_is_in_its_repr(slug: str, given: dict[str, Any]) -> None:
    config = registry.PROVIDERS[slug].config
    secrets = [field.name for field in config.fields() if field.secret]
    assert any("canary" in str(given.get(name)) for name in secrets)
    assert "canary" not in repr(config.parse(given))
