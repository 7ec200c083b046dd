"""A source's configuration as commands take it: single options, a JSON object, a file.

A secret comes from an environment variable, from standard input or from a file, so that it need not
stand on the command line, where others on the machine see it.
"""

import argparse
import contextlib
import json
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from connectors.config import Field
from connectors.registry import PROVIDERS
from ingestion.management.base import UsageError
from ingestion.services.sources import options as source_options


def add_arguments(parser: ArgumentParser) -> None:
    """Add all options of a configuration, and of what is archived and how often."""
    whole = parser.add_argument_group("configuration as a whole")
    whole.add_argument("--config", metavar="JSON", help="a JSON object, e.g. '{\"port\": 143}'")
    whole.add_argument(
        "--config-file", metavar="FILE", help="the same in a file, or - for standard input"
    )
    single = parser.add_argument_group("configuration by single options")
    add_options(parser)
    for field, providers in _config_fields():
        # A plug-in's field may be called as an option above: it is given by --config.
        with contextlib.suppress(argparse.ArgumentError):
            _add_config_option(single, field, providers)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of what is archived and how often."""
    archived = parser.add_argument_group("what is archived, and how often")
    for option in source_options.describe():
        _add_source_option(archived, option)


def config(options: dict[str, Any], provider: str, warn: Callable[[str], None]) -> dict[str, Any]:
    """Return the configuration that was given, single options before the whole. `warn` is told of
    a secret that stood on the command line. Raises UsageError."""
    fields = list(PROVIDERS[provider].config.fields())
    own = {f.name for f in fields}
    found = _whole_config(options, fields, warn)
    for field, _ in _config_fields():
        value = _given(field, options)
        if value is None:
            continue
        if field.name not in own:
            raise UsageError(f"{_flag(field.name)} is no option of {provider}.")
        found[field.name] = value
    return found


def chosen_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return what was said of what is archived and how often."""
    given = {o.name: options[f"option_{o.name}"] for o in source_options.describe()}
    return {name: value for name, value in given.items() if value is not None}


def _whole_config(
    options: dict[str, Any], fields: list[Field], warn: Callable[[str], None]
) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if options["config_file"] is not None:
        config |= _json_object(_read(options["config_file"]), "--config-file")
    if options["config"] is not None:
        given = _json_object(options["config"], "--config")
        secret = [f.name for f in fields if f.secret and given.get(f.name)]
        if secret:
            warn(
                f"{' and '.join(secret)} stood on the command line, where others on this "
                "machine can see it. --config-file or the -env and -stdin options avoid that."
            )
        config |= given
    return config


def _config_fields() -> Iterator[tuple[Field, list[str]]]:
    """Yield every provider's fields once, with the providers that have them."""
    found: dict[str, tuple[Field, list[str]]] = {}
    for provider in PROVIDERS.values():
        for field in provider.config.fields():
            found.setdefault(field.name, (field, []))[1].append(provider.slug)
    yield from found.values()


def _flag(name: str) -> str:
    """Return the option of a camelCase field: "--start-tls"."""
    return "--" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _dest(name: str) -> str:
    return f"field_{name}"


def _add_config_option(group: Any, field: Field, providers: list[str]) -> None:
    about = f"{field.label}. {field.help}".strip().replace("%", "%%")
    if field.default not in (None, ""):
        about = f"{about} Default: {json.dumps(field.default)}."
    if len(providers) < len(PROVIDERS):
        about = f"{about} ({', '.join(providers)})"
    flag, dest = _flag(field.name), _dest(field.name)
    if field.secret:
        group.add_argument(
            f"{flag}-env", dest=f"{dest}_env", metavar="VAR", help=f"{about} From this variable."
        )
        group.add_argument(
            f"{flag}-stdin",
            dest=f"{dest}_stdin",
            action="store_true",
            help=f"The same from {_what_of_stdin(field)} standard input.",
        )
    elif field.type is bool:
        group.add_argument(flag, dest=dest, action=argparse.BooleanOptionalAction, help=about)
    elif field.choices:
        group.add_argument(flag, dest=dest, choices=field.choices, help=about)
    else:
        group.add_argument(flag, dest=dest, type=field.type, metavar="VALUE", help=about)


def _what_of_stdin(field: Field) -> str:
    return "all of" if field.multiline else "the first line of"


def _given(field: Field, options: dict[str, Any]) -> Any:
    dest = _dest(field.name)
    if not field.secret:
        return options.get(dest)
    variable = options.get(f"{dest}_env")
    if variable is not None:
        if not os.environ.get(variable):
            raise UsageError(f"The environment variable {variable} is not set, or is empty.")
        return os.environ[variable]
    if options.get(f"{dest}_stdin"):
        given = sys.stdin.read() if field.multiline else sys.stdin.readline().rstrip("\r\n")
        if not given:
            raise UsageError(f"{_flag(field.name)}-stdin: standard input was empty.")
        return given
    return None


def _add_source_option(group: Any, option: source_options.OptionField) -> None:
    about = option.help.replace("%", "%%")
    flag, dest = _flag(option.name), f"option_{option.name}"
    if option.type is list:
        group.add_argument(
            flag, dest=dest, action="append", metavar="GLOB", help=f"{about} May be repeated."
        )
    elif option.type is bool:
        group.add_argument(flag, dest=dest, action="store_const", const=True, help=about)
    elif option.type is int:
        text = f"{about} Default: {option.default}."
        group.add_argument(flag, dest=dest, type=int, metavar="N", help=text)
    else:
        group.add_argument(flag, dest=dest, metavar="YYYY-MM-DD", help=about)


def _read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--config-file {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config-file {path} can't be read: it is no UTF-8 text.") from error


def _json_object(text: str, where: str) -> dict[str, Any]:
    """Parse without repeating the text in an error: it may hold a secret."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f'{where} must be a JSON object such as {{"host": "imap.example.com"}}.')
    return value
