"""Asks a person on a terminal which account to connect, way by way, and tries it.

What is asked, with the steps to do at the provider first, is `sources.ways`: the admin's form asks
the same. Secrets are not shown while they are typed; long ones come from a file.
"""

import dataclasses
import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.urls import reverse
from rich.console import Console
from rich.prompt import Confirm, IntPrompt, Prompt

from connectors.config import Field
from connectors.registry import PROVIDERS
from ingestion.errors import InvalidInput
from ingestion.management.presentation import printable
from ingestion.services.sources import configuration, trial, ways
from ingestion.services.sources.ways import Way

#: What a longer secret is, people have in a file: a key's JSON.
_ONE_LINE_CHARACTERS = 20_000
#: Asked for only where the secret itself was not given.
_BY_OWNER = "passwordByOwner"


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What a person wants to have added."""

    name: str
    provider: str
    config: Mapping[str, Any] = dataclasses.field(repr=False)
    auto_import: bool
    awaits_consent: bool


class Interview:
    """One conversation. Questions go to stderr: stdout is for what comes of it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def account(self) -> Answers | None:
        """Ask until it works, or the person saves it all the same; None where they leave it.

        Raises KeyboardInterrupt, also at the end of the input.
        """
        try:
            way = self._way()
            self._show_steps(way)
            return self._settled(way)
        except EOFError:
            raise KeyboardInterrupt from None

    def _settled(self, way: Way) -> Answers | None:
        config = dict(way.preset)
        while True:
            config = self._fields(way, config)
            try:
                checked = configuration.checked_config(way.provider, config)
            except InvalidInput as error:
                for path, reasons in error.errors.items():
                    why = PROVIDERS[way.provider].config.in_labels(" ".join(reasons))
                    self._say(f"✗ {self._label(way, path)}: {why}", "red")
                continue
            if checked.awaits_consent():
                self._say("It is tried once its owner has granted access.")
            elif not self._works(way, config):
                choice = self._choose("Change it, save it all the same, or leave it", "change")
                if choice == "leave":
                    return None
                if choice == "change":
                    continue
            account = str(config.get("username") or config.get("email") or way.title)
            return Answers(
                name=self._name(account),
                provider=way.provider,
                config=config,
                auto_import=self._confirm("Import as soon as the credentials work", default=True),
                awaits_consent=checked.awaits_consent(),
            )

    # -- the parts ---------------------------------------------------------------------------------

    def _way(self) -> Way:
        found = ways.all_ways()
        for number, way in enumerate(found, 1):
            self._console.print(f"{number:>3}  {way.title}  [dim]{way.about}[/dim]")
        numbers = [str(number) for number in range(1, len(found) + 1)]
        return found[
            IntPrompt.ask("Which is it", console=self._console, choices=numbers, show_choices=False)
            - 1
        ]

    def _show_steps(self, way: Way) -> None:
        base = settings.PUBLIC_URL or f"http://localhost:{settings.PORT}"
        steps = ways.steps(way, redirect_uri=base + reverse("oauth-callback"))
        if steps:
            self._say(f"\n{way.title}: what to do there first", "bold")
        for number, step in enumerate(steps, 1):
            self._say(f"{number:>3}. {step.text}")
            for line in (step.url, step.copy):
                if line:
                    self._say(f"     {line}", "cyan")

    def _fields(self, way: Way, before: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for each field of a way; what was said before is offered again."""
        kind = PROVIDERS[way.provider].config
        fields = {field.name: field for field in kind.fields()}
        config = dict(before)
        self._console.print()
        for name in way.fields:
            if name == _BY_OWNER and config.get(kind.owners_secret):
                config.pop(name, None)
                continue
            given = self._value(fields[name], config.get(name))
            if given in (None, ""):
                config.pop(name, None)
            else:
                config[name] = given
        return config

    def _value(self, field: Field, before: Any) -> Any:
        label = field.label
        if field.help:
            self._say(field.help, "dim")
        default = field.default if before is None else before
        if field.type is bool:
            return self._confirm(label, default=bool(default))
        if field.multiline or (field.secret and field.max_length > _ONE_LINE_CHARACTERS):
            return self._file(label, before)
        if field.secret:
            kept = " (empty keeps what you gave)" if before else ""
            # getpass asks once nothing is shown any more: rich asks first, and shows a fast answer.
            return getpass.getpass(f"{label}{kept}: ") or before
        while True:
            said = self._ask(label, "" if default is None else str(default))
            if field.type is not int:
                return said
            if said.isascii() and said.isdigit():
                return int(said)
            self._say("Must be a whole number.", "red")

    def _name(self, account: str) -> str:
        while True:
            name = self._ask("What is it called", account)
            try:
                configuration.check_name(name)
            except InvalidInput as error:
                self._say(" ".join(error.errors["name"]), "red")
            else:
                return name

    def _file(self, label: str, before: Any) -> Any:
        """Ask for a file and return what is in it."""
        while True:
            path = self._ask(f"A file with: {label} (empty: none)", "")
            if not path:
                return before
            try:
                return Path(path).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                self._say(f"{path} can't be read.", "red")

    def _works(self, way: Way, config: Mapping[str, Any]) -> bool:
        works = False
        steps = iter(trial.steps(provider=way.provider, provider_config=config))
        while True:
            with self._console.status("Trying it…"):
                step = next(steps, None)
            if step is None:
                return works
            works = step.ok
            mark = "✓" if step.ok else "✗"
            self._say(f"{mark} {step.title}: {step.text}", "green" if step.ok else "red")

    # -- saying and asking -------------------------------------------------------------------------

    def _say(self, text: str, style: str = "") -> None:
        shown = "\n".join(map(printable, text.split("\n")))
        self._console.print(shown, style=style, markup=False, soft_wrap=True)

    def _ask(self, question: str, default: str) -> str:
        said = Prompt.ask(
            question, console=self._console, default=default, show_default=bool(default)
        )
        return said.strip()

    def _confirm(self, question: str, *, default: bool) -> bool:
        return Confirm.ask(question, console=self._console, default=default)

    def _choose(self, question: str, default: str) -> str:
        choices = ["change", "save", "leave"]
        return Prompt.ask(question, console=self._console, choices=choices, default=default)

    @staticmethod
    def _label(way: Way, path: str) -> str:
        name = path.removeprefix("providerConfig.")
        fields = PROVIDERS[way.provider].config.fields()
        return next((field.label for field in fields if field.name == name), name)
