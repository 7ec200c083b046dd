"""Many accounts from a CSV file: the page, and what it asks for: look, test, save.

The page holds the file and sends it with each question; here it is read and forgotten. Answers are
one JSON object a line, of one account each.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.contrib.admin import ModelAdmin
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_POST
from rest_framework.exceptions import Throttled

from ingestion import dispatching
from ingestion.admin import display
from ingestion.errors import InvalidInput
from ingestion.places import FULL, Places
from ingestion.services.audit import Actor
from ingestion.services.sources import account_lists
from ingestion.services.sources.account_lists import Row

#: What most files have; the page shows the others when it is asked to.
_USUAL = ("name", "way", "host", "port", "secure", "startTls", "username", "password")
#: A test of a list may take a quarter of an hour.
tests = Places(total=4, per_user=1, retry_seconds=5)

Said = Iterator[dict[str, Any]]


def urls(sources: "ModelAdmin[Any]") -> list[URLPattern]:
    """Return the addresses of the page, for who may add sources there."""

    def may_add(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        def guarded(request: HttpRequest, **arguments: str) -> HttpResponseBase:
            if not sources.has_add_permission(request):
                raise PermissionDenied
            return view(request, **arguments)

        return sources.admin_site.admin_view(guarded)

    def page(request: HttpRequest) -> HttpResponse:
        return _page(request, {**sources.admin_site.each_context(request), "opts": sources.opts})

    name = "ingestion_source_list"
    return [
        path("add-many/", may_add(page), name=name),
        path("add-many/accounts.csv", may_add(_template), name=f"{name}_template"),
        path("add-many/<slug:what>/", may_add(_answer), name=name),
    ]


def _page(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    shown = {
        **context,
        "title": "Add many accounts",
        "columns": list(account_lists.columns().items()),
        "usual": _USUAL,
        "most_accounts": f"{account_lists.MAX_ACCOUNTS:,}",
        "most_bytes": account_lists.MAX_BYTES - 10_000,  # the rest of the form comes along
    }
    return TemplateResponse(request, "admin/ingestion/account_list.html", shown)


def _template(_request: HttpRequest) -> HttpResponse:
    """Answer a file to begin with; by its mark Excel knows it for UTF-8."""
    response = HttpResponse(
        f"\ufeff{account_lists.TEMPLATE}", content_type="text/csv; charset=utf-8"
    )
    response["Content-Disposition"] = 'attachment; filename="accounts.csv"'
    return response


@require_POST
@sensitive_post_parameters("text")
def _answer(request: HttpRequest, what: str) -> StreamingHttpResponse:
    """Do one of `_VERBS` to the accounts of the file that came along."""
    if what not in _VERBS:
        raise Http404
    content = request.POST.get("text", "").encode()  # raises before the answer has begun
    response = StreamingHttpResponse(
        _lines(request, what, content), content_type="application/x-ndjson"
    )
    response["X-Accel-Buffering"] = "no"
    response["Cache-Control"] = "no-store"
    return response


def _lines(request: HttpRequest, what: str, content: bytes) -> Iterator[str]:
    user: Any = request.user  # staff, so no AnonymousUser
    try:
        rows = account_lists.read(content, user=user)
    except InvalidInput as refusal:
        yield json.dumps({"error": " ".join(refusal.errors["file"])}) + "\n"
        return
    for said in _VERBS[what](request, user, rows):
        yield json.dumps(said) + "\n"


def _check(_request: HttpRequest, _user: User, rows: list[Row]) -> Said:
    for row in rows:
        yield {
            "line": row.line,
            "name": row.name,
            "account": row.account,
            "faults": row.faults,
            "warnings": row.warnings,
            "awaits": row.awaits_consent,
        }


def _test(request: HttpRequest, user: User, rows: list[Row]) -> Said:
    try:
        with tests.place(user.pk):
            for one in account_lists.tried(_chosen(request, rows)):
                yield {"line": one.row.line, "ok": one.ok, "text": one.text}
    except Throttled:
        yield {"error": FULL}


def _save(request: HttpRequest, user: User, rows: list[Row]) -> Said:
    for row, made in account_lists.store(
        _chosen(request, rows),
        owner=user,
        auto_import="auto_import" in request.POST,
        actor=Actor.of_request(request),
    ):
        if isinstance(made, InvalidInput):
            yield {"line": row.line, "ok": False, "text": str(made)}
        else:
            dispatching.on_commit(made)
            yield {"line": row.line, "ok": True, "url": display.page_of(made)}


def _chosen(request: HttpRequest, rows: list[Row]) -> list[Row]:
    lines = set(request.POST.get("lines", "").split(","))
    return [row for row in rows if str(row.line) in lines and not row.faults]


_VERBS: Mapping[str, Callable[[HttpRequest, User, list[Row]], Said]] = {
    "check": _check,
    "test": _test,
    "save": _save,
}
