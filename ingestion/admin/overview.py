"""A source's page: its state, progress and verbs above, and one of four tabs."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe

from connectors import registry
from ingestion import expiry, explaining, queries
from ingestion.admin import chart, consent_link, display, latest_runs, live, mending, verbs
from ingestion.models import (
    ArchivedDay,
    AuditEvent,
    FailedMessage,
    IngestionSource,
    Proof,
    ProofKind,
    Run,
    StatusChange,
)
from ingestion.services.sources import configuration, consent
from ingestion.services.sources import options as source_options
from ingestion.services.sources.options import Options
from ingestion.states import SourceStatus

_ROWS = 6
_MANY_ROWS = 20


def progress_bar(source: IngestionSource, run: Run | None, *, run_only: bool = False) -> SafeString:
    """Return the live bar of a source's run; hidden while there is none.

    With `run_only` it follows this one run, not whichever comes next.
    """
    progress = live.Progress.of(run) if run else None
    known = progress is not None and progress.percent is not None
    flags = ("" if progress else " hidden") + (" data-run-only" if run_only else "")
    return display.html(
        '<span class="ing-progress" data-live-source="{}" data-live="progress" data-address="{}"'
        ' data-showing="{}" data-status="{}"{}>'
        '<span class="ing-progress-title" data-part="title">{}</span>'
        '<progress max="100"{} aria-label="Progress"></progress>'
        '<span class="ing-progress-percent" data-part="percent">{}</span>'
        '<span class="ing-progress-text" data-part="text">{}</span>'
        '<span class="ing-progress-warning" data-part="warning">{}</span></span>',
        source.pk,
        display.address("admin:ingestion_source_live"),
        run.pk if run else "",
        SourceStatus(source.status).label,
        mark_safe(flags),  # noqa: S308 - constants
        progress.title if progress else "",
        display.html(' value="{}"', progress.percent) if progress and known else "",
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


def of_source(source: Any, request: HttpRequest, *, may_change: bool) -> dict[str, Any]:
    """Return the context of `source/page.html`; the source is one that `live.read` has read. A tab
    costs the queries of what it shows alone."""
    tab = request.GET.get("tab", "")
    tab = "settings" if request.method == "POST" else tab if tab in _TABS else _FIRST
    return {
        "source": source,
        "tab": tab,
        "tabs": _tabs(source, tab),
        "template": f"admin/ingestion/source/{tab}.html",
        "badge": display.source_badge(source, classes="ing-badge-large"),
        "texts": live.texts(source),
        "progress": progress_bar(source, live.current_run(source)),
        "buttons": _buttons(source) if may_change else [],
        "edit": mending.edit(source) if may_change else None,
        "sign_in": _sign_in(source) if may_change else None,
        "link": consent_link.offered(source) if may_change else None,
        "saves": tab == "settings" and may_change,
        "tiles": _tiles(source),
        "all": _lists_of(source),
        **_TABS[tab][1](source, request),
    }


_FIRST = "overview"


def _tabs(source: Any, now: str) -> list[dict[str, Any]]:
    page = display.page_of(source)
    return [
        {
            "label": label,
            "url": page if tab == _FIRST else f"{page}?tab={tab}",
            "active": tab == now,
        }
        for tab, (label, _) in _TABS.items()
    ]


def _overview(source: Any, request: HttpRequest) -> dict[str, Any]:
    return {
        "chart": chart.context(chart.days(ArchivedDay.objects.filter(source=source))),
        "lines": latest_runs.lines(Run.objects.filter(source=source), limit=_ROWS),
        "left_out": _folders_left_out(source),
        "mailboxes": live.first_mailboxes(source),
        "mail": _mail(source, request),
    }


def _settings(source: Any, request: HttpRequest) -> dict[str, Any]:
    """Who may change the settings sees them in the form; others what is set."""
    may_change = request.user.has_perm("ingestion.change_ingestionsource")
    return {"settings": [] if may_change else [*_connection(source), *_options(source)]}


def _messages(source: Any, request: HttpRequest) -> dict[str, Any]:
    failures = FailedMessage.objects.filter(mailbox__source=source)
    may_export = request.user.has_perm("ingestion.add_export")
    of_it = urlencode({"query": f"source:{source.pk}"})
    return {
        "failures": failures.select_related("folder", "mailbox").order_by("-id")[:_MANY_ROWS],
        "left_out": _folders_left_out(source),
        "mailboxes": live.first_mailboxes(source),
        "mail": _mail(source, request),
        "export": f"{reverse('admin:ingestion_export_add')}?{of_it}" if may_export else "",
    }


def _history(source: Any, request: HttpRequest) -> dict[str, Any]:
    may_audit = request.user.has_perm("ingestion.view_auditevent")
    events = AuditEvent.objects.filter(source_id=source.pk).order_by("-at", "-id")
    return {
        "lines": latest_runs.lines(Run.objects.filter(source=source), limit=_MANY_ROWS),
        "changes": StatusChange.objects.filter(source=source).order_by("-id")[:_MANY_ROWS],
        "proofs": [_proof(proof) for proof in source.proofs.all()[:_ROWS]],
        "audit": events[:_MANY_ROWS] if may_audit else [],
    }


#: Name in the address -> its label, and what it shows besides the state.
_TABS: dict[str, tuple[str, Callable[[Any, HttpRequest], dict[str, Any]]]] = {
    _FIRST: ("Overview", _overview),
    "settings": ("Settings", _settings),
    "messages": ("Messages", _messages),
    "history": ("History", _history),
}


def _folders_left_out(source: Any) -> list[explaining.LeftOut]:
    return [one for one in explaining.left_out(source) if one.folder is not None]


def _mail(source: Any, request: HttpRequest) -> str:
    """Return where its mail is read, "" for whom it is not."""
    if not queries.reads_mail(request.user):
        return ""
    return f"{reverse('mail')}?{urlencode({'q': f'source:{source.pk}'})}"


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "kind": proof.get_kind_display(),
        "badge": display.badge("Proven", "success") if proof.ok else display.badge("Bad", "danger"),
        "words": proof_words(proof),
        "at": proof.at,
    }


def _buttons(source: Any) -> list[dict[str, Any]]:
    refusals, next_step = live.refusals(source), live.next_verb(source)
    return [
        {"verb": verb, "refusal": refusals[slug], "primary": slug == next_step}
        for slug, verb in verbs.VERBS.items()
    ]


def _sign_in(source: IngestionSource) -> dict[str, Any] | None:
    """Return the button that sends a person to the provider, where this kind of source has it."""
    if not consent.signs_in(source):
        return None
    label = registry.get(source.provider).label
    first = verbs.is_to_sign_in(source) and mending.edit(source) is None
    types = consent.types_in_code(source)
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


def _connection(source: IngestionSource) -> list[tuple[str, str]]:
    shown = configuration.public_config(source)
    rows: list[tuple[str, str]] = []
    for field in registry.get(source.provider).config.fields():
        if not field.secret:
            rows.append((field.label, _spoken(shown[field.name])))
        elif shown[f"{field.name}Set"]:
            rows.append((field.label, "Stored"))
    if (day := expiry.of(source)) is not None:
        rows.append(("Credentials expire on", str(day)))
    return rows


def _options(source: IngestionSource) -> list[tuple[str, str]]:
    """Return the options that differ from their defaults, and how often it syncs."""
    values: Mapping[str, Any] = Options.of(source.options).values
    return [
        (option.label, _spoken(values[option.name]))
        for option in source_options.describe()
        if values[option.name] != option.default or option.name == "syncIntervalSeconds"
        if option.name != expiry.OPTION  # it stands beside the secret
    ]


def _spoken(value: Any) -> str:
    if value is None or value == "":
        return display.NOTHING
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, (tuple, list)):
        return ", ".join(value)
    return str(value)
