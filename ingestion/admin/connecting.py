"""Connecting an account: the tiles to choose from, and the test of what was typed, step by step.

Nothing is stored before somebody saves. A test streams one JSON object a line, each as its step is
done.
"""

import json
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from rest_framework.exceptions import Throttled

from connectors import registry
from ingestion.admin.source_form import SourceForm
from ingestion.errors import InvalidInput
from ingestion.places import FULL, Places
from ingestion.services.sources import same_account, trial, ways

#: A test may wait 15 s for a server at each step.
trials = Places(total=8, per_user=2, retry_seconds=5)


def tiles(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    """Show the ways to connect."""
    shown = {**context, "title": "Add a source", "ways": ways.all_ways()}
    return TemplateResponse(request, "admin/ingestion/ways.html", shown)


def test(form: SourceForm, user: User) -> StreamingHttpResponse:
    """Try what a form holds; the stored secrets of its source stand in for those left empty."""
    response = StreamingHttpResponse(_lines(form, user), content_type="application/x-ndjson")
    response["X-Accel-Buffering"] = "no"
    response["Cache-Control"] = "no-store"
    return response


def _lines(form: SourceForm, user: User) -> Iterator[str]:
    for said in _placed(form, user):
        yield json.dumps(said) + "\n"


def _placed(form: SourceForm, user: User) -> Iterator[dict[str, Any]]:
    try:
        with trials.place(user.pk):
            yield from _said(form, user)
    except Throttled:
        yield {"ok": False, "title": "Not tested", "text": FULL}


def _said(form: SourceForm, user: User) -> Iterator[dict[str, Any]]:
    form.errors.pop("name", None)  # what it will be called is not tried
    if not form.is_valid():
        for name, reasons in form.errors.get_json_data().items():
            label = form.fields[name].label if name in form.fields else ""
            text = " ".join(reason["message"] for reason in reasons)
            yield {"ok": False, "title": str(label or "Settings"), "text": text}
        return
    given = form.typed
    try:
        for step in trial.steps(
            provider=given["provider"],
            provider_config=given["providerConfig"],
            options=given["options"],
            source=form.stored,
        ):
            text = registry.get(given["provider"]).config.in_labels(step.text)
            yield {"ok": step.ok, "title": step.title, "text": text}
        for text in same_account.Known(user).warnings(
            given["provider"], given["providerConfig"], is_proven=step.ok, stored=form.stored
        ):
            yield {"ok": True, "warns": True, "title": "The same account", "text": text}
    except trial.AwaitsConsent as later:
        yield {
            "ok": True,
            "warns": True,
            "title": "Not yet",
            "text": " ".join(*later.errors.values()),
        }
    except InvalidInput as error:
        for reasons in error.errors.values():
            yield {"ok": False, "title": "Settings", "text": " ".join(reasons)}
