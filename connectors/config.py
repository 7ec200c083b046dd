"""How a provider says which configuration it takes: fields, checks, and which fields are secret.

A Config is a frozen dataclass whose fields are made with `field(...)`. The API, the admin's form
and the command line are all derived from it, so that a new provider needs no code in any of them.
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

from connectors.throttle import Local, Throttle


class ConfigError(ValueError):
    """The configuration is wrong. `errors`: camelCase field -> reasons; echoes no secret."""

    def __init__(self, errors: dict[str, list[str]]) -> None:
        self.errors = errors
        super().__init__(", ".join(sorted(errors)))


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field of a provider's configuration. `type` is str, int or bool. `takes_object`: a text
    of JSON that may also be given as the object. `choices`: a text must be one of these.
    `multiline`: a text that may have several lines. `goes_with`: the fields that say where a secret
    is sent and whose it is: where one of them changes, a stored secret is of no use any more."""

    name: str
    label: str
    type: type
    required: bool
    secret: bool
    default: Any
    help: str
    min_value: int | None = None
    max_value: int | None = None
    max_length: int = 1000
    takes_object: bool = False
    choices: tuple[str, ...] = ()
    multiline: bool = False
    goes_with: tuple[str, ...] = ()


def field(
    label: str,
    *,
    default: Any = dataclasses.MISSING,
    secret: bool = False,
    help: str = "",  # noqa: A002 - the word of forms and command lines
    min_value: int | None = None,
    max_value: int | None = None,
    max_length: int = 1000,
    takes_object: bool = False,
    choices: tuple[str, ...] = (),
    multiline: bool = False,
    goes_with: tuple[str, ...] = (),
) -> Any:
    """Declare a configuration field; without a default it is required."""
    about = {
        "label": label,
        "secret": secret,
        "help": help,
        "min_value": min_value,
        "max_value": max_value,
        "max_length": max_length,
        "takes_object": takes_object,
        "choices": choices,
        "multiline": multiline,
        "goes_with": goes_with,
    }
    return dataclasses.field(default=default, repr=not secret, metadata=about)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the deployment, not the source, decides. Made from the settings by the caller."""

    forbid_private_addresses: bool = False
    connections_per_account: int = 2
    timeout_seconds: float = 30.0
    max_message_bytes: int = 1_000_000_000
    extra_ca_file: str = ""
    #: Where a provider's parts are, where not at their public addresses: "google.gmail" -> URL.
    endpoints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: What a provider allows and what its requests cost: "google" -> {name: number}.
    quotas: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    #: Entered to have a secret exchanged for a new one (a refresh token that rotates): gives the
    #: newest ones and keeps what is put in their place, before it is used. Over all processes no
    #: other is in it for this source. By default nobody keeps them.
    exchanging: Callable[[], AbstractContextManager[dict[str, str]]] = dataclasses.field(
        default=lambda: contextlib.nullcontext({}), compare=False
    )
    #: Told what was found out on the way to the mail, for who tries a configuration: the step
    #: ("server", "encryption", "login") and a sentence. The last one told holds.
    found: Callable[[str, str], None] = dataclasses.field(
        default=lambda _step, _said: None, compare=False
    )
    #: Shared by all workers where the engine made it; of this process otherwise.
    throttle: Throttle = dataclasses.field(default_factory=Local, compare=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of every provider's configuration. Field names are the API's, in camelCase."""

    @classmethod
    @functools.cache  # lists ask for each row
    def fields(cls) -> tuple[Field, ...]:
        """Return the fields in the order in which a person fills them in."""
        found = []
        for f in dataclasses.fields(cls):
            missing = f.default is dataclasses.MISSING
            assert isinstance(f.type, type), "Config modules must not postpone annotations"
            found.append(
                Field(
                    name=f.name,
                    type=f.type,
                    required=missing,
                    default=None if missing else f.default,
                    **f.metadata,
                )
            )
        return tuple(found)

    @classmethod
    def in_labels(cls, text: str) -> str:
        """Return a sentence for who sees a form: with labels where it has the API's names."""
        labels = {f.name: f.label for f in cls.fields()}
        return cls._names().sub(lambda name: f"“{labels[name[0]]}”", text)

    @classmethod
    @functools.cache
    def _names(cls) -> re.Pattern[str]:
        # What is written in small letters is a word like others.
        names = [f.name for f in cls.fields() if f.name != f.name.lower()]
        return re.compile(rf"\b({'|'.join(names)})\b" if names else r"(?!)")

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Check a JSON object from outside. Raises ConfigError that names every wrong field."""
        known = {f.name: f for f in cls.fields()}
        errors: dict[str, list[str]] = {}
        for name in given:
            if name not in known:
                errors[str(name)[:100]] = [f"Unknown field. Known fields: {', '.join(known)}."]
        values: dict[str, Any] = {}
        for f in known.values():
            value = given.get(f.name)
            if value is None or value == "":
                if f.required:
                    errors[f.name] = ["This field is required."]
                continue
            if f.takes_object and isinstance(value, Mapping):
                value = json.dumps(value)
            problem = _problem(f, value)
            if problem:
                errors[f.name] = [problem]
            else:
                values[f.name] = value
        if errors:
            raise ConfigError(errors)
        config = cls(**values)
        config.check()
        return config

    #: The secret that the owner of the account may give themselves, where nobody signs in by a
    #: provider's page: the name of a field.
    owners_secret: ClassVar[str] = ""

    #: The field that names the source's only mailbox, where a source is one account: its value is
    #: the remote id that `Connector.mailboxes` yields. "": a source may have any number.
    only_mailbox: ClassVar[str] = ""

    def check(self) -> None:
        """Check what concerns more than one field, or a field's form. Raises ConfigError."""

    def awaits_consent(self) -> bool:
        """Tell whether a person must sign in first: only what `Consent.redeem` gives is missing, or
        `owners_secret`."""
        return False

    @classmethod
    def mended_by(cls, code: str) -> str:
        """Name the field that a person most likely has to correct after an error of this code; ""
        where what is wrong is none of them."""
        _ = code
        return ""

    @classmethod
    def superseded(cls, given: Mapping[str, Any], stored: Mapping[str, Any]) -> frozenset[str]:
        """Name the stored fields that newly given ones replace, where a source has several ways in.

        A change of credentials gives only what changes; of the rest, what is named here is dropped.
        """
        _ = given, stored
        return frozenset()

    @classmethod
    def misdirected(
        cls, given: Mapping[str, Any], stored: Mapping[str, Any]
    ) -> Mapping[str, Sequence[str]]:
        """Return each stored secret that would go to another place, or by a weaker way, than it was
        given for, with the fields that send it there. Whoever may change a configuration must not
        be able to read its secrets by naming a server of their own.
        """
        defaults = {f.name: f.default for f in cls.fields()}
        found = {}
        for f in cls.fields():
            if f.secret and stored.get(f.name) and not given.get(f.name):
                changed = [
                    name
                    for name in f.goes_with
                    if cls.sends_elsewhere(
                        name,
                        before=stored.get(name, defaults[name]),
                        after=given.get(name, stored.get(name, defaults[name])),
                    )
                ]
                if changed:
                    found[f.name] = changed
        return found

    @classmethod
    def expires_on(cls, stored: Mapping[str, Any]) -> dt.date | None:
        """Return on which day (UTC) stored credentials end by themselves, where what is stored
        without the secrets says so."""
        _ = stored
        return None

    def is_elsewhere(self, stored: Mapping[str, Any]) -> bool:
        """Tell whether this names another server than the configuration `stored`, so that the ids
        recorded by that one may be other mailboxes' or messages' here."""
        _ = stored
        return False

    @classmethod
    def account(cls, config: Mapping[str, Any]) -> str:
        """Return a text that configurations share whose mail is the same: one account's, or one
        domain's. "" where nothing can be said. `config` is without secrets."""
        _ = config
        return ""

    @classmethod
    def sends_elsewhere(cls, name: str, *, before: Any, after: Any) -> bool:
        """Tell whether this change of a field that secrets go with takes them elsewhere."""
        _ = name
        return bool(before != after)


_NAMES = {str: "text", int: "a whole number", bool: "true or false"}


def _is_unsafe(character: str, *, lines: bool) -> bool:
    """Tell what no text on one line has: controls, also C1 and those of direction, and lone
    surrogates. `lines`: a PEM key in a secret has line ends, and a password any other character."""
    if not lines:
        return not character.isprintable()
    code = ord(character)
    return character not in "\r\n\t" and (code < 32 or code == 127 or 0xD800 <= code <= 0xDFFF)


def _problem(field: Field, value: Any) -> str:
    if type(value) is not field.type:
        return f"Must be {_NAMES[field.type]}."
    if isinstance(value, str):
        if len(value) > field.max_length:
            return f"Must be at most {field.max_length} characters."
        if any(_is_unsafe(c, lines=field.secret or field.multiline) for c in value):
            return "Must not contain control characters."
        if field.choices and value not in field.choices:
            return f"Must be one of: {', '.join(field.choices)}."
    if isinstance(value, int):
        if field.min_value is not None and value < field.min_value:
            return f"Must be at least {field.min_value}."
        if field.max_value is not None and value > field.max_value:
            return f"Must be at most {field.max_value}."
    return ""
