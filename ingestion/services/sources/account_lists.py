"""Many accounts from one CSV file: read with each line's faults, tried side by side, stored.

A file has one head and one line for each account. Columns are `name`, `way` (one of `ways`, or a
provider) and the fields of all providers, in any case and order. No text here repeats a secret.
"""

import csv
import dataclasses
import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as TooLate
from typing import Any

from django.contrib.auth.models import User
from django.db import connection

from connectors.config import Config, Field
from connectors.registry import PROVIDERS
from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration, trial, ways
from ingestion.services.sources.same_account import Known
from ingestion.services.sources.ways import Way

MAX_BYTES = 1_000_000
MAX_ACCOUNTS = 1_000
#: Tried side by side by one process, whoever asks. Each waits for a server most of the time.
PARALLEL = 8
#: What was not begun by then is not tried. A try itself ends by the connectors' own deadlines.
TRY_SECONDS = 900
TEMPLATE = (
    "name,way,host,port,username,password\r\n"
    "Ada,imap,imap.example.com,993,ada@example.com,an app password\r\n"
    "Grace,icloud,,,grace,an app password\r\n"
)

_DEFAULT_WAY = "imap"
_OWN_COLUMNS = ("name", "way")
_DELIMITERS = ",;\t"
_YES, _NO = frozenset({"true", "yes", "1", "x"}), frozenset({"false", "no", "0"})
_pool = ThreadPoolExecutor(max_workers=PARALLEL, thread_name_prefix="account-list")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One account. `line` is where it begins in the file; with `faults` it can't be stored."""

    line: int
    name: str
    provider: str
    account: str
    config: Mapping[str, Any] = dataclasses.field(repr=False)
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    awaits_consent: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Tried:
    """What came of a row: `code` is "ok", the trouble's, or says why it was not tried."""

    row: Row
    ok: bool
    code: str
    text: str


def columns() -> dict[str, str]:
    """Return every column with what it is, in the order in which people fill them in."""
    about = {
        "name": "What the source is called; by default the account.",
        "way": f"One of {_slugs()}; by default {_DEFAULT_WAY}.",
    }
    for provider in PROVIDERS.values():
        for field in provider.config.fields():
            about.setdefault(field.name, f"{field.label}. {field.help}".strip())
    return about


def read(content: bytes, *, user: User | None) -> list[Row]:
    """Return the accounts of a file, with what is wrong with each. Raises InvalidInput where the
    file as a whole can't be read. `user`: who is warned of accounts that are archived already."""
    text = _decoded(content)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    known, first_lines = Known(user), dict[tuple[str, str], int]()
    rows: list[Row] = []
    head: list[str] | None = None
    begins = 1
    try:
        for cells in lines:
            line, begins = begins, lines.line_num + 1
            if not any(cell.strip() for cell in cells) or _is_hint(cells):
                continue
            if head is None:
                head = _head(cells)
                continue
            if len(rows) == MAX_ACCOUNTS:
                raise _wrong(f"It has more than {MAX_ACCOUNTS:,} accounts. Make several files.")
            rows.append(_row(line, head, cells, known, first_lines))
    except csv.Error as error:
        raise _wrong(f"It is no CSV from line {begins} on: {error}.") from None
    if not rows:
        raise _wrong("It has no account: the first line names the columns, each other an account.")
    return rows


def tried(rows: Iterable[Row], options: Mapping[str, Any] | None = None) -> Iterator[Tried]:
    """Try rows without storing anything, several at a time; yield each as it is done.

    What a person must sign in for can't be tried, and counts as good.
    """
    until = time.monotonic() + TRY_SECONDS
    waiting: dict[Future[Tried], Row] = {}
    for row in rows:
        if row.awaits_consent:
            yield Tried(row, ok=True, code="consent_needed", text="Its owner grants access later.")
        else:
            waiting[_pool.submit(_try, row, options, until)] = row
    try:
        for done in as_completed(waiting, timeout=TRY_SECONDS + 120):
            yield done.result()
            del waiting[done]
    except TooLate:
        for row in waiting.values():
            yield _too_late(row)
    finally:  # also where nobody listens any more
        for future in waiting:
            future.cancel()


def store(
    rows: Iterable[Row],
    *,
    owner: User,
    options: Mapping[str, Any] | None = None,
    auto_import: bool = False,
    actor: Actor,
) -> Iterator[tuple[Row, IngestionSource | InvalidInput]]:
    """Store rows without faults, each in a transaction of its own; yield what came of each."""
    for row in rows:
        try:
            made = configuration.create(
                owner=owner,
                name=row.name,
                provider=row.provider,
                provider_config=row.config,
                options=options,
                auto_import=auto_import,
                actor=actor,
            )
        except InvalidInput as refusal:
            yield row, refusal
        else:
            yield row, made


# -- reading -----------------------------------------------------------------------------------


def _wrong(text: str) -> InvalidInput:
    return InvalidInput({"file": [text]})


def _decoded(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise _wrong(f"It is larger than {MAX_BYTES // 1_000_000} MB. Make several files.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\ufffd"
    if "\ufffd" in text or "\0" in text:
        raise _wrong(
            "It is not in UTF-8, and a password must not be guessed. In Excel save it as "
            "“CSV UTF-8 (comma delimited)”."
        )
    return text


def _delimiter(text: str) -> str:
    """Return what separates the columns of the head: Excel writes what its country uses."""
    lines = (line for line in text.splitlines() if line.strip() and not _is_hint([line]))
    head = next(lines, "")
    return max(_DELIMITERS, key=head.count)


def _is_hint(cells: Sequence[str]) -> bool:
    """Tell whether this is Excel's own first line, which names the separator."""
    return cells[0].strip().lower() in ("sep=", "sep=,", "sep=;")


def _head(cells: Sequence[str]) -> list[str]:
    """Return the columns by their own names. Raises InvalidInput."""
    known = {_plain(name): name for name in columns()}
    found = [known.get(_plain(cell), "") for cell in cells]
    unknown = [cell.strip()[:40] for cell, name in zip(cells, found, strict=True) if not name]
    if not any(found):  # an account, most likely, with its secret
        raise _wrong(f"Unknown columns alone in its first line. Known: {', '.join(columns())}.")
    if unknown:
        shown = ", ".join(f"“{cell}”" for cell in unknown[:10])
        raise _wrong(f"Unknown columns in its first line: {shown}. Known: {', '.join(columns())}.")
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise _wrong(f"A column stands there twice: {', '.join(twice)}.")
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()


def _row(
    line: int,
    head: Sequence[str],
    cells: Sequence[str],
    known: Known,
    first_lines: dict[tuple[str, str], int],
) -> Row:
    if len(cells) > len(head):
        told = (
            f"{len(cells)} cells, and the head has {len(head)}: quote what has a separator in it."
        )
        return Row(line, "", "", "", {}, faults=(told,))
    given = {name: cell for name, cell in zip(head, cells, strict=False) if cell.strip()}
    name, way_name = (given.pop(column, "").strip() for column in _OWN_COLUMNS)
    way = _way(way_name.lower() or _DEFAULT_WAY)
    if way is None:
        return Row(line, name, "", "", {}, faults=(f"way: must be one of {_slugs()}.",))
    config, faults = _config(way, given)
    account = str(config.get("username") or config.get("email") or config.get("tenantId") or "")
    name = name or account or way.title
    checked = _checked(way.provider, name, config, faults)
    if checked is None:
        return Row(line, name, way.provider, account, config, faults=tuple(faults))
    public = {f.name: getattr(checked, f.name) for f in checked.fields() if not f.secret}
    key = (way.provider, checked.account(public))
    first = first_lines.setdefault(key, line) if key[1] else line
    if first != line:
        faults.append(f"The same account as in line {first}.")
    return Row(
        line,
        name,
        way.provider,
        account,
        config,
        faults=tuple(faults),
        warnings=tuple(known.warnings(way.provider, public)),
        awaits_consent=checked.awaits_consent(),
    )


def _slugs() -> str:
    return ", ".join(way.slug for way in ways.all_ways())


def _way(name: str) -> Way | None:
    if found := ways.get(name):
        return found
    provider = PROVIDERS.get(name)
    return Way(name, provider.label, "", name, ()) if provider else None


def _config(way: Way, given: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the providerConfig that the cells say, and what can't be understood."""
    fields = {field.name: field for field in PROVIDERS[way.provider].config.fields()}
    config, faults = dict(way.preset), list[str]()
    for name, cell in given.items():
        if name not in fields:
            faults.append(f"{name}: the way {way.slug} does not have it. Leave it empty.")
            continue
        value = _value(fields[name], cell)
        if value is None:
            wanted = "a whole number" if fields[name].type is int else "yes or no"
            faults.append(f"{name}: must be {wanted}.")
        else:
            config[name] = value
    return config, faults


def _value(field: Field, cell: str) -> Any:
    text = cell if field.secret else cell.strip()
    if field.type is bool:
        word = text.lower()
        return True if word in _YES else False if word in _NO else None
    if field.type is int:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return text


def _checked(
    provider: str, name: str, config: Mapping[str, Any], faults: list[str]
) -> Config | None:
    """Return the configuration where it can be right; else add to the faults what is wrong."""
    try:
        configuration.check_name(name)
    except InvalidInput as error:
        faults.extend(_sentences(error))
    if faults:
        return None
    try:
        return configuration.checked_config(provider, config)
    except InvalidInput as error:
        faults.extend(_sentences(error))
        return None


def _sentences(error: InvalidInput) -> list[str]:
    return [
        f"{path.removeprefix('providerConfig.')}: {' '.join(reasons)}"
        for path, reasons in error.errors.items()
    ]


# -- trying ------------------------------------------------------------------------------------


def _try(row: Row, options: Mapping[str, Any] | None, until: float) -> Tried:
    if time.monotonic() > until:
        return _too_late(row)
    try:
        steps = list(
            trial.steps(provider=row.provider, provider_config=row.config, options=options)
        )
    except InvalidInput as error:
        return Tried(row, ok=False, code=error.code, text=" ".join(_sentences(error)))
    finally:
        connection.close()  # this thread's own
    last = steps[-1]
    text = " ".join(step.text for step in steps[-2:]) if last.ok else f"{last.title}: {last.text}"
    return Tried(row, ok=last.ok, code=last.code, text=text)


def _too_late(row: Row) -> Tried:
    return Tried(row, ok=False, code="not_tried", text="Not tried: there was no time left for it.")
