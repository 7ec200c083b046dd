"""What stands above a source's form: its state, its progress, its verbs and what happened last."""

from collections.abc import Mapping
from typing import Any

from django.db.models import Q
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from connectors import registry
from ingestion import freshness
from ingestion.admin import consent_link, display, latest_runs, live, verbs
from ingestion.models import (
    FailedMessage,
    IngestionSource,
    Mailbox,
    Proof,
    ProofKind,
    Run,
    StatusChange,
)
from ingestion.services.sources import configuration, consent
from ingestion.services.sources import options as source_options
from ingestion.services.sources.options import Options
from ingestion.states import MailboxState

_ROWS = 6


def progress_bar(source: IngestionSource, run: Run | None, *, run_only: bool = False) -> SafeString:
    """Return the live bar of a source's run; hidden while there is none.

    With `run_only` it follows this one run, not whichever comes next.
    """
    progress = live.Progress.of(run) if run else None
    known = progress is not None and progress.percent is not None
    flags = ("" if progress else " hidden") + (" data-run-only" if run_only else "")
    return format_html(
        '<span class="ing-progress" data-live-source="{}" data-live="progress" data-address="{}"'
        ' data-showing="{}" data-status="{}"{}>'
        '<span class="ing-progress-title" data-part="title">{}</span>'
        '<progress max="100"{} aria-label="Progress"></progress>'
        '<span class="ing-progress-percent" data-part="percent">{}</span>'
        '<span class="ing-progress-text" data-part="text">{}</span>'
        '<span class="ing-progress-warning" data-part="warning">{}</span></span>',
        source.pk,
        reverse("admin:ingestion_source_live"),
        run.pk if run else "",
        source.get_status_display(),
        mark_safe(flags),  # noqa: S308 - constants
        progress.title if progress else "",
        format_html(' value="{}"', progress.percent) if progress and known else "",
        f"{progress.percent} %" if progress and known else "",
        progress.text if progress else "",
        progress.warning if progress else "",
    )


def proof_words(proof: Proof) -> str:
    """Say what a verification or a reconciliation found."""
    looked_at = f"{proof.messages:,} messages"
    if proof.problems:
        noun = "problem" if proof.problems == 1 else "problems"
        return f"{looked_at}, {proof.problems:,} {noun}"
    if proof.kind == ProofKind.VERIFICATION:
        return f"{looked_at}, bit for bit"
    return f"{looked_at}, nothing is missing"


def of_source(source: Any, *, may_change: bool) -> dict[str, Any]:
    """Return the context of `source_overview.html`; the source came through `live.with_state`."""
    return {
        "source": source,
        "badge": display.source_badge(source, classes="ing-badge-large"),
        "texts": live.texts(source),
        "progress": progress_bar(source, live.current_run(source)),
        "buttons": _buttons(source) if may_change else [],
        "sign_in": _sign_in(source) if may_change else None,
        "link": consent_link.offered(source) if may_change else None,
        "tiles": _tiles(source),
        # Who may change the settings sees them in the form below.
        "settings": [] if may_change else [*_connection(source), *_options(source)],
        "lines": latest_runs.lines(Run.objects.filter(source=source), limit=_ROWS),
        "left_out": [one for one in freshness.left_out(source) if one.folder is not None],
        "mailboxes": _mailboxes(source),
        "failures": FailedMessage.objects.filter(mailbox__source=source)
        .select_related("folder", "mailbox")
        .order_by("-id")[:_ROWS],
        "changes": StatusChange.objects.filter(source=source).order_by("-id")[:_ROWS],
        "all": _lists_of(source),
    }


def _buttons(source: Any) -> list[dict[str, Any]]:
    refusals, next_step = live.refusals(source), verbs.next_step(source)
    return [
        {"verb": verb, "refusal": refusals[slug], "primary": slug == next_step}
        for slug, verb in verbs.VERBS.items()
    ]


def _sign_in(source: IngestionSource) -> dict[str, Any] | None:
    """Return the button that sends a person to the provider, where this kind of source has it."""
    if not consent.signs_in(source):
        return None
    label = registry.get(source.provider).label
    first, types = verbs.is_to_sign_in(source), consent.types_in_code(source)
    return {"label": f"Sign in with {label}", "primary": first, "types_in_code": types}


def _lists_of(source: IngestionSource) -> dict[str, str]:
    wanted = {
        "runs": ("run", "source__id__exact"),
        "mailboxes": ("mailbox", "source__id__exact"),
        "failures": ("failedmessage", "mailbox__source__id__exact"),
        "messages": ("message", "mailbox__source__id__exact"),
        "changes": ("statuschange", "source__id__exact"),
    }
    lists = {
        name: f"{reverse(f'admin:ingestion_{model}_changelist')}?{lookup}={source.pk}"
        for name, (model, lookup) in wanted.items()
    }
    return lists | {"audit": f"{reverse('admin:ingestion_auditevent_changelist')}?q={source.pk}"}


def _tiles(source: Any) -> list[dict[str, str]]:
    texts, lists = live.texts(source), _lists_of(source)
    return [
        {"label": label, "live": name, "text": texts[name], "url": lists.get(target, "")}
        for label, name, target in (
            ("Messages archived", "messages", "messages"),
            ("Indexed", "indexed", ""),
            ("Size", "archived", ""),
            ("Mailboxes", "mailboxes", "mailboxes"),
            ("Failed messages", "failures", "failures"),
            ("Archived up to", "archivedUpTo", "runs"),
            ("Last try", "lastTry", "runs"),
            ("Next sync", "nextSync", ""),
        )
    ]


def _mailboxes(source: IngestionSource) -> list[Mailbox]:
    """Return the mailboxes that fail first, then the others by address."""
    ours = Mailbox.objects.filter(source=source).order_by("address")
    trouble = Q(state=MailboxState.UNAVAILABLE) | Q(attempts__gt=0)
    found = list(ours.filter(trouble)[:_ROWS])
    return [*found, *ours.exclude(trouble)[: _ROWS - len(found)]]


def _connection(source: IngestionSource) -> list[tuple[str, str]]:
    shown = configuration.public_config(source)
    rows: list[tuple[str, str]] = []
    for field in registry.get(source.provider).config.fields():
        if not field.secret:
            rows.append((field.label, _spoken(shown[field.name])))
        elif shown[f"{field.name}Set"]:
            rows.append((field.label, "Stored"))
    return rows


def _options(source: IngestionSource) -> list[tuple[str, str]]:
    """Return the options that differ from their defaults, and how often it syncs."""
    values: Mapping[str, Any] = Options.of(source.options).values
    return [
        (option.label, _spoken(values[option.name]))
        for option in source_options.describe()
        if values[option.name] != option.default or option.name == "syncIntervalSeconds"
    ]


def _spoken(value: Any) -> str:
    if value is None or value == "":
        return display.NOTHING
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, (tuple, list)):
        return ", ".join(value)
    return str(value)
