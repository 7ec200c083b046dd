"""What may stand where the cursor is, for bash, zsh and fish: commands, options, sources.

argcomplete asks, by the function that `ingestion completion SHELL` prints. Django is loaded only
once a command is typed, whose options only its own parser knows.
"""

import argparse
import os
from collections.abc import Iterable, Mapping

import argcomplete

_MOST_SOURCES = 200


def answer(commands: Mapping[str, str]) -> None:
    """Print what fits to the shell that asks, and end. `commands`: what each one does."""
    typed = os.environ["COMP_LINE"].split()[1:2]
    parser = argparse.ArgumentParser(add_help=False)
    choices = parser.add_subparsers()
    for name, about in commands.items():
        own = [_parser_of(name)] if [name] == typed else []
        choices.add_parser(name, help=about, parents=own, add_help=False)
    argcomplete.autocomplete(parser)


def _parser_of(name: str) -> argparse.ArgumentParser:
    import django  # noqa: PLC0415 - see above
    from django.core.management import (  # noqa: PLC0415 - see above
        get_commands,
        load_command_class,
    )

    django.setup()
    parser: argparse.ArgumentParser
    parser = load_command_class(get_commands()[name], name).create_parser("ingestion", name)
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
        if action.metavar == "SOURCE":
            action.completer = _sources  # type: ignore[attr-defined] # where argcomplete looks
    return parser


def _sources(prefix: str, **_: object) -> Iterable[str]:
    from ingestion.models import IngestionSource  # noqa: PLC0415 - see above

    found = IngestionSource.objects.filter(deleted_at=None, name__startswith=prefix)
    return found.order_by("name").values_list("name", flat=True)[:_MOST_SOURCES]
