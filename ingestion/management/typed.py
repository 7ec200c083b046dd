"""Says what services refuse in the words of the command line.

Services name what is wrong as the API does (`providerConfig.host`); who typed `--host` reads that.
"""

import re
from argparse import Action, ArgumentParser
from collections.abc import Iterator, Mapping
from typing import Any

#: Where a field of the API is kept by argparse, see `management.given`.
_PLACES = {"providerConfig": ("field_{}", "field_{}_env"), "options": ("option_{}",)}
#: A field of the API within a sentence: no word of English has such a hump.
_NAMED = re.compile(r"\b[a-z]+[A-Z][A-Za-z]*\b")


class Words:
    """The options and arguments of a command."""

    def __init__(self, parser: ArgumentParser) -> None:
        self._actions = {action.dest: action for action in parser._actions}  # noqa: SLF001 - argparse has no other way to them

    def refusals(
        self, errors: Mapping[str, list[str]], options: Mapping[str, Any]
    ) -> Iterator[str]:
        """Yield a sentence for each field that is wrong."""
        for path, reasons in errors.items():
            yield f"{self._typed(path, options)}: {self._in_options(' '.join(reasons))}"

    def _typed(self, path: str, options: Mapping[str, Any]) -> str:
        """Return what was typed for a field, or would have been."""
        group, _, name = path.rpartition(".")
        if options.get(f"field_{name}_stdin"):
            return _shown(self._actions[f"field_{name}_stdin"])
        action = self._action(group, name)
        if group == "providerConfig" and (action is None or options.get(action.dest) is None):
            for whole in ("config", "config_file"):
                if options.get(whole) is not None:
                    return f"{name} in {_shown(self._actions[whole])}"
        return path if action is None else _shown(action)

    def _action(self, group: str, name: str) -> Action | None:
        places = (place.format(name) for place in _PLACES.get(group, ("{}",)))
        return next((self._actions[dest] for dest in places if dest in self._actions), None)

    def _in_options(self, text: str) -> str:
        def named(found: re.Match[str]) -> str:
            groups = (self._action(group, found[0]) for group in _PLACES)
            return next((_shown(action) for action in groups if action), found[0])

        return _NAMED.sub(named, text)


def _shown(action: Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
