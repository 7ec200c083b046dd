"""Deleting sources: what goes is shown, and the name of each is typed before anything does.

Nothing is deleted unless every name is right.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import Count
from django.http import HttpRequest
from django.template.response import TemplateResponse

from ingestion import dispatching
from ingestion.admin import display
from ingestion.admin.verbs import Outcome
from ingestion.amounts import counted
from ingestion.errors import ServiceError
from ingestion.models import Export, IngestionSource, Mailbox
from ingestion.services.audit import Actor
from ingestion.services.sources import verbs
from ingestion.states import ExportState

#: Names are typed by hand. `manage.py delete_source` takes the others one by one.
MOST = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A source that is to go. `typed`: what stands in its field; `wrong`: and is not its name."""

    source: IngestionSource
    mailboxes: int
    typed: str = ""
    wrong: bool = False

    @property
    def field(self) -> str:
        return f"name-{self.source.pk}"

    @property
    def what(self) -> str:
        """Say what goes with it."""
        parts = [
            counted(self.source.message_count, "archived message"),
            display.size(self.source.archived_bytes),
            counted(self.mailboxes, "mailbox"),
        ]
        return ", ".join(parts)


def confirmed(request: HttpRequest, chosen: Sequence[IngestionSource]) -> tuple[bool, list[Line]]:
    """Return the lines to show, and whether each name was typed right in this request."""
    counted = Mailbox.objects.filter(source__in=[source.pk for source in chosen]).order_by()
    mailboxes = dict(counted.values_list("source").annotate(n=Count("pk")))
    asked = request.POST.get("typed") == "yes"
    lines = []
    for source in chosen:
        line = Line(source, mailboxes.get(source.pk, 0))
        typed = request.POST.get(line.field, "").strip()
        wrong = asked and typed != source.name.strip()
        lines.append(dataclasses.replace(line, typed=typed, wrong=wrong))
    return asked and not any(line.wrong for line in lines), lines


def page(
    request: HttpRequest, lines: Sequence[Line], context: dict[str, Any], *, action: str = ""
) -> TemplateResponse:
    """Ask for the names. `action`: the list's, which is then posted again with what is chosen."""
    ready = Export.objects.filter(state=ExportState.DONE).count()
    messages = sum(line.source.message_count for line in lines)
    size = sum(line.source.archived_bytes for line in lines)
    shown = {
        **context,
        "title": f"Delete {lines[0].source.name if len(lines) == 1 else f'{len(lines)} sources'}",
        "lines": lines,
        "total": f"{counted(messages, 'archived message')}, {display.size(size)}",
        "exports": counted(ready, "export") if ready else "",
        "action": action,
        "checkbox": ACTION_CHECKBOX_NAME,
    }
    return TemplateResponse(request, "admin/ingestion/source/delete.html", shown)


def delete(source: IngestionSource, *, actor: Actor) -> Outcome:
    """Delete it and say what came of that; somebody else may have done it at the same time."""
    try:
        verbs.delete(source, actor=actor)
    except ServiceError as refusal:
        return Outcome(source, ok=False, text=str(refusal))
    dispatching.on_commit(source)
    return Outcome(source, ok=True, text="Deleted. Its mail is removed in the background.")
