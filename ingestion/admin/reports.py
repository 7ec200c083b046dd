"""What became of each source that somebody did something to in bulk: a page, after the act.

It waits in the session, so that it can be loaded again and does nothing again.
"""

from collections.abc import Sequence
from typing import Any

from django.http import HttpRequest
from django.template.response import TemplateResponse

from ingestion.admin import display
from ingestion.admin.verbs import Outcome
from ingestion.models import IngestionSource

_KEY = "bulk_report"


def keep(
    request: HttpRequest, title: str, outcomes: Sequence[Outcome], *, done: str = "Done"
) -> None:
    """Keep the report for the page that follows. `done`: what a line says that went well."""
    refused = sum(not outcome.ok for outcome in outcomes)
    request.session[_KEY] = {
        "title": title,
        "said": f"{len(outcomes) - refused:,} {done.lower()}, {refused:,} refused.",
        "lines": [
            {
                "id": str(outcome.source.pk),
                "name": outcome.source.name,
                "badge": done if outcome.ok else "Refused",
                "tone": "success" if outcome.ok else "danger",
                "text": outcome.text,
            }
            for outcome in sorted(outcomes, key=lambda outcome: outcome.ok)
        ],
    }


def page(request: HttpRequest, context: dict[str, Any]) -> TemplateResponse | None:
    """Show what was kept; None where nothing was."""
    kept = request.session.get(_KEY)
    if kept is None:
        return None
    ids = [line["id"] for line in kept["lines"]]
    there = IngestionSource.objects.filter(pk__in=ids, deleted_at=None).only("pk").in_bulk()
    pages = {str(pk): display.page_of(source) for pk, source in there.items()}
    lines = [line | {"url": pages.get(line["id"], "")} for line in kept["lines"]]
    shown = {**context, **kept, "lines": lines}
    return TemplateResponse(request, "admin/ingestion/source/report.html", shown)
