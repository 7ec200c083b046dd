"""How values look to people: sizes, times, durations, badges. Pure; everything is escaped."""

import datetime as dt
import functools
import json
from collections.abc import Iterable
from html import escape
from typing import Any

from django.urls import get_script_prefix, reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from connectors import registry
from ingestion import freshness
from ingestion.models import StatusChange
from ingestion.states import MailboxState, RunStatus, SourceStatus

NOTHING = "—"

#: A badge's colour says whether somebody has to act: danger yes, warning soon, the others no.
SOURCE_TONES: dict[str, str] = {
    SourceStatus.PENDING_AUTH: "warning",
    SourceStatus.AUTH_SUCCESS: "info",
    SourceStatus.IMPORTING: "primary",
    SourceStatus.ACTIVE: "success",
    SourceStatus.PAUSED: "neutral",
    SourceStatus.ERROR: "danger",
}
RUN_TONES: dict[str, str] = {
    RunStatus.RUNNING: "primary",
    RunStatus.COMPLETED: "success",
    RunStatus.INCOMPLETE: "warning",
    RunStatus.STOPPED: "neutral",
    RunStatus.FAILED: "danger",
}
MAILBOX_TONES: dict[str, str] = {
    MailboxState.ACTIVE: "success",
    MailboxState.EXCLUDED: "neutral",
    MailboxState.UNAVAILABLE: "danger",
    MailboxState.GONE: "neutral",
}


def html(template: str, *values: Any) -> SafeString:
    """Fill in a template, everything escaped that is not marked as safe: as Django's format_html,
    which is a tenth of a page with a thousand values, in half the time."""
    return SafeString(template.format(*map(_escaped, values)))


def joined(template: str, rows: Iterable[Iterable[Any]]) -> SafeString:
    """Fill in a template with each row's values, one after the other."""
    return SafeString("".join(html(template, *row) for row in rows))


def _escaped(value: Any) -> str:
    return value.__html__() if hasattr(value, "__html__") else escape(str(value))


def in_labels(source: Any, text: str) -> str:
    """Return what is said of a source with the form's labels, where it has the API's names."""
    return registry.get(source.provider).config.in_labels(text)


def size(size_bytes: int | None) -> str:
    """Say bytes in decimal units: 999 B, 1.5 kB, 12.3 MB."""
    if size_bytes is None:
        return NOTHING
    amount = float(size_bytes)
    if amount < 1000:
        return f"{size_bytes} B"
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:,.1f} PB"


def count(number: int, *, cap: int | None = None) -> str:
    """Say a count with thousands separators; a capped one as "1,000+"."""
    if cap is not None and number >= cap:
        return f"{cap:,}+"
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Say a duration by its two largest units: 45 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    for big, big_unit, small, small_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if left >= big:
            rest = left % big // small
            return f"{left // big} {big_unit}" + (f" {rest} {small_unit}" if rest else "")
    raise AssertionError(seconds)


def when(moment: dt.datetime | None, *, now: dt.datetime | None = None) -> str:
    """Say a time from now: "5 s ago", "in 2 min"; a date when it is more than a month away."""
    if moment is None:
        return NOTHING
    seconds = ((now or timezone.now()) - moment).total_seconds()
    if abs(seconds) >= 30 * 86_400:
        return f"{moment:%Y-%m-%d}"
    if abs(seconds) < 1:
        return "now"
    # One unit is enough for "ago": nobody reads the seconds of "2 h 5 min ago".
    spoken = duration(abs(seconds)).split(" ")
    words = " ".join(spoken[:2])
    return f"{words} ago" if seconds > 0 else f"in {words}"


def clock(moment: dt.datetime | None) -> str:
    """Say a time in full, in UTC."""
    return f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else NOTHING


def time_tag(moment: dt.datetime | None) -> SafeString | str:
    """Return the time from now, with the full time under the pointer."""
    if moment is None:
        return NOTHING
    return html(
        '<time class="ing-nowrap" datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        clock(moment),
        when(moment),
    )


def full_time(moment: dt.datetime | None) -> SafeString | str:
    """Return the time in full and from now, for pages where there is room."""
    if moment is None:
        return NOTHING
    return html(
        '<time datetime="{}">{}</time> <span class="ing-subtle">{}</span>',
        moment.isoformat(),
        clock(moment),
        when(moment),
    )


def date_tag(moment: dt.datetime | None) -> SafeString | str:
    """Return the date and time of mail in UTC, from now under the pointer."""
    if moment is None:
        return NOTHING
    return html(
        '<time class="ing-number" datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        f"{clock(moment)}, {when(moment)}",
        f"{moment.astimezone(dt.UTC):%Y-%m-%d %H:%M}",
    )


def number(text: str) -> SafeString:
    """Keep a number and its unit in one line."""
    return html('<span class="ing-number">{}</span>', text)


def badge(text: str, tone: str, *, title: str = "") -> SafeString:
    return html('<span class="ing-badge" data-tone="{}" title="{}">{}</span>', tone, title, text)


def source_badge(source: Any, *, classes: str = "") -> SafeString:
    """Return the status of a source that came through `freshness.judged`, kept up to date."""
    return html(
        '<span class="ing-badge {}" data-tone="{}" data-live-source="{}" data-live="status">'
        "{}</span>",
        classes,
        source_tone(source),
        source.pk,
        source_status(source),
    )


def source_status(source: Any) -> str:
    """Say the status, and that it fails or is late: what is not reached looks well else."""
    label = SourceStatus(source.status).label  # which the model makes all labels anew for
    if source.fails:
        return f"{label}, failing"
    return f"{label}, late" if source.is_late else label


def source_tone(source: Any) -> str:
    if freshness.is_unreached(source):
        return "danger"
    if freshness.needs_somebody(source) and source.status == SourceStatus.ACTIVE:
        return "warning"
    return SOURCE_TONES[source.status]


def clipped(text: str, *, characters: int = 80) -> SafeString | str:
    """Return the start of a text, the whole of it under the pointer."""
    if len(text) <= characters:
        return text
    return html('<span title="{}">{}…</span>', text[:1000], text[: characters - 1])


def within(label: str) -> str:
    """Return a label as it is written within a sentence: "host", "TLS"."""
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def two_lines(first: Any, second: Any) -> SafeString:
    return html(
        '<span class="ing-two"><span>{}</span><span class="ing-subtle">{}</span></span>',
        first,
        second,
    )


def history(lines: Iterable[tuple[Any, Any, Any, Any]]) -> SafeString:
    """Return a table of what happened: what, how it went, in words, and when."""
    return html(
        '<table class="ing-table ing-runs">{}</table>',
        joined(
            '<tr><td class="ing-name">{}</td><td>{}</td><td class="ing-wide">{}</td>'
            '<td class="ing-right">{}</td></tr>',
            lines,
        ),
    )


def link(url: str, text: Any) -> SafeString:
    return html('<a class="ing-link" href="{}">{}</a>', url, text)


def address(name: str) -> str:
    """Return the address of a page that takes no parameters, for whoever names it in each row."""
    return _address(name, get_script_prefix())


@functools.cache
def _address(name: str, _prefix: str) -> str:
    return reverse(name)


def page_of(row: Any) -> str:
    """Return the address of a row's admin page."""
    about = row._meta  # noqa: SLF001 - documented by Django
    return reverse(f"admin:{about.app_label}_{about.model_name}_change", args=(row.pk,))


def in_words(value: Any, *, moves: bool = False) -> str:
    """Say JSON in a line, without what is empty. `moves`: a list of two is an old and a new one."""
    match value:
        case dict():
            told = {name: inner for name, inner in value.items() if inner not in ("", None, [], {})}
            return ", ".join(f"{n}: {in_words(inner, moves=moves)}" for n, inner in told.items())
        case [old, new] if moves:
            return f"{in_words(old)} → {in_words(new)}"
        case list():
            return ", ".join(map(in_words, value)) or NOTHING
        case bool():
            return "yes" if value else "no"
    return NOTHING if value in ("", None) else str(value)


def pretty_json(value: Any) -> SafeString | str:
    if value is None or value == {}:
        return NOTHING
    return html('<pre class="ing-pre">{}</pre>', json.dumps(value, indent=2, ensure_ascii=False))


def status_move(change: StatusChange) -> SafeString:
    """Return a source's move from one status to another, as two badges."""
    old, new = change.from_status, change.to_status
    return html(
        '<span class="ing-nowrap">{} <span class="ing-subtle">→</span> {}</span>',
        badge(SourceStatus(old).label, SOURCE_TONES[old]),
        badge(SourceStatus(new).label, SOURCE_TONES[new]),
    )


def refreshed(key: str, shown: Any) -> SafeString:
    """Mark a part of the page that the script fetches again when a run begins or ends."""
    return html('<span data-refresh="{}">{}</span>', key, shown)
