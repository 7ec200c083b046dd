"""The options of a source, the same for every provider: what is archived, and how often.

Owns their checks and meaning; the source's row only keeps the JSON.
"""

import dataclasses
import datetime as dt
import fnmatch
import functools
from collections.abc import Mapping
from typing import Any, Self

from connectors.types import MessageRef, RemoteFolder, Wanted
from ingestion.errors import InvalidInput
from ingestion.states import FolderRole

_MAX_GLOBS = 200
_MAX_GLOB_CHARS = 500
MIN_SYNC_INTERVAL_SECONDS = 30
MAX_SYNC_INTERVAL_SECONDS = 7 * 86_400


@dataclasses.dataclass(frozen=True, slots=True)
class OptionField:
    """One option, for forms and help. `type` is bool, int, list (of globs) or dt.date."""

    name: str
    label: str
    type: type
    default: Any
    help: str
    min_value: int | None = None
    max_value: int | None = None


_FIELDS = (
    OptionField(
        "includeMailboxes",
        "Only mailboxes",
        list,
        (),
        "Globs on the address, e.g. *@example.com.",
    ),
    OptionField("excludeMailboxes", "Except mailboxes", list, (), "Globs on the address."),
    OptionField(
        "includeFolders",
        "Only folders",
        list,
        (),
        "Globs on the path, e.g. Projects/*.",
    ),
    OptionField("excludeFolders", "Except folders", list, (), "Globs on the path."),
    OptionField("includeJunk", "Junk too", bool, False, "Archive the junk folder as well."),
    OptionField("includeTrash", "Trash too", bool, False, "Archive deleted items as well."),
    OptionField("includeDrafts", "Drafts too", bool, False, "Archive drafts as well."),
    OptionField(
        "since",
        "Since",
        dt.date,
        None,
        "Only mail received on this day (UTC) or later.",
    ),
    OptionField(
        "syncIntervalSeconds",
        "Sync interval (seconds)",
        int,
        300,
        "How often new mail is looked for; of quiet mailboxes up to four times as long.",
        MIN_SYNC_INTERVAL_SECONDS,
        MAX_SYNC_INTERVAL_SECONDS,
    ),
    OptionField(
        "listen",
        "Listen for new mail",
        bool,
        False,
        "Have new mail told at once: by an IMAP server that has IDLE, or by Google, where the"
        " source has a notification topic.",
    ),
    OptionField(
        "credentialsExpireOn",
        "Credentials expire on",
        dt.date,
        None,
        "When the secret or password ends (UTC). An alert tells 30, 7 and 1 days before. What a"
        " certificate says itself needs no date.",
    ),
)
_SHOWN_DEFAULTS = [(f.name, list(f.default) if f.type is list else f.default) for f in _FIELDS]
_ROLES = {
    FolderRole.JUNK: "includeJunk",
    FolderRole.TRASH: "includeTrash",
    FolderRole.DRAFTS: "includeDrafts",
}


def describe() -> tuple[OptionField, ...]:
    """Return the options in the order in which a form shows them."""
    return _FIELDS


@dataclasses.dataclass(frozen=True)
class Options:
    """The parsed options. `values` has every option of `describe()`, defaults filled in."""

    values: Mapping[str, Any]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Read the JSON of a source's row."""
        return cls({f.name: _parsed(f, stored.get(f.name)) for f in _FIELDS})

    def as_json(self) -> dict[str, Any]:
        """Return all options, with their defaults, as the API shows and the row keeps them."""
        return {
            name: value.isoformat()
            if isinstance(value, dt.date)
            else list(value)
            if isinstance(value, tuple)
            else value
            for name, value in self.values.items()
        }

    @staticmethod
    def shown(stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `as_json` does of the JSON of a source's row: lists ask for each."""
        return {
            name: default if (value := stored.get(name)) is None else value
            for name, default in _SHOWN_DEFAULTS
        }

    @property
    def sync_interval(self) -> dt.timedelta:
        return dt.timedelta(seconds=self.values["syncIntervalSeconds"])

    def wants_mailbox(self, address: str) -> bool:
        return self._chosen("Mailboxes", address)

    def wants_folder(self, folder: RemoteFolder) -> bool:
        option = _ROLES.get(FolderRole(folder.role)) if folder.role else None
        if option is not None and not self.values[option]:
            return False
        return self._chosen("Folders", folder.path)

    def wants_message(self, ref: MessageRef) -> bool:
        """Tell whether a message is recent enough (one without a date always is) and of no role
        that is left out."""
        since = self.wanted.since
        recent = since is None or ref.received_at is None or ref.received_at.date() >= since
        return recent and not (ref.roles and self.wanted.left_out.intersection(ref.roles))

    @functools.cached_property
    def wanted(self) -> Wanted:
        """What the options ask of each message, for connectors."""
        out = (str(role) for role, option in _ROLES.items() if not self.values[option])
        return Wanted(frozenset([*out, "chats"]), self.values["since"])  # chats are no mail

    def _chosen(self, what: str, name: str) -> bool:
        include, exclude = self.values[f"include{what}"], self.values[f"exclude{what}"]
        if include and not _matches(include, name):
            return False
        return not _matches(exclude, name)


def parse(given: Any) -> Options:
    """Check options from outside. Raises InvalidInput that names each wrong one."""
    if not isinstance(given, Mapping):
        raise InvalidInput({"options": ["Must be an object."]})
    known = {f.name: f for f in _FIELDS}
    errors: dict[str, list[str]] = {}
    for name, value in given.items():
        problem = (
            _problem(known[name], value)
            if name in known
            else f"Unknown option. Known options: {', '.join(known)}."
        )
        if problem:
            errors[f"options.{str(name)[:100]}"] = [problem]
    if errors:
        raise InvalidInput(errors)
    return Options.of(given)


def _matches(globs: tuple[str, ...], name: str) -> bool:
    folded = name.casefold()
    return any(fnmatch.fnmatchcase(folded, glob.casefold()) for glob in globs)


def _parsed(field: OptionField, value: Any) -> Any:
    if value is None:
        return field.default
    if field.type is list:
        return tuple(value)
    if field.type is dt.date:
        return dt.date.fromisoformat(value)
    return value


def _problem(field: OptionField, value: Any) -> str:
    if value is None:
        return ""
    if field.type is list:
        return _globs_problem(value)
    if field.type is dt.date:
        return _date_problem(value)
    if type(value) is not field.type:
        return "Must be true or false." if field.type is bool else "Must be a whole number."
    if not isinstance(value, int):
        return ""
    if field.min_value is not None and value < field.min_value:
        return f"Must be at least {field.min_value}."
    if field.max_value is not None and value > field.max_value:
        return f"Must be at most {field.max_value}."
    return ""


def _globs_problem(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(glob, str) for glob in value):
        return "Must be a list of texts."
    if len(value) > _MAX_GLOBS:
        return f"Must have at most {_MAX_GLOBS} entries."
    if any(not 1 <= len(glob) <= _MAX_GLOB_CHARS for glob in value):
        return f"Each entry must have 1 to {_MAX_GLOB_CHARS} characters."
    if any("\0" in glob or any(0xD800 <= ord(c) <= 0xDFFF for c in glob) for glob in value):
        return "Must not contain control characters."
    if any(glob.count("*") > 10 for glob in value):
        return "Each entry may have at most 10 asterisks."
    return ""


def _date_problem(value: Any) -> str:
    if not isinstance(value, str):
        return "Must be a date like 2024-01-31."
    try:
        parsed = dt.date.fromisoformat(value)
    except ValueError:
        return "Must be a date like 2024-01-31."
    return "" if parsed.isoformat() == value else "Must be a date like 2024-01-31."
