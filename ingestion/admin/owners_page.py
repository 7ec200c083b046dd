"""The pages of people who own a source and are no staff: how it is, granting access anew, syncing
now, and what came last. They read and search it in the mail view.

They see their own sources alone, staff too. Access is granted on the page that a consent link opens
(`consent_page`): there it is tried before it is stored.
"""

import uuid
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from ingestion import dispatching, explaining, queries
from ingestion.admin import live
from ingestion.amounts import moment
from ingestion.errors import ServiceError
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.operations import people
from ingestion.services.sources import consent_links, verbs

_NEWEST = 5


@never_cache
@require_GET
@login_required
def page(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Show how the source is, and its newest mail to who may read it."""
    source = _own(request, pk)
    reasons = [str(reason) for reason in explaining.reasons(source)]
    context = {
        "source": source,
        "tone": "bad" if reasons else "good" if source.archived_up_to else "note",
        "sentences": reasons or [_how_it_is(source)],
        "texts": live.texts(source),
        "run": live.current_run(source),
        "grants": _GRANTS[consent_links.way(source)],
        "refused": live.refusals(source)["sync"],
        **_mail(request, source),
    }
    return render(request, "account/source.html", context)


@require_POST
@login_required
def sync(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Have it synced now."""
    source = _own(request, pk)
    try:
        verbs.start_sync(source, actor=Actor.of_request(request))
    except ServiceError as refusal:
        messages.error(request, str(refusal))
    else:
        dispatching.on_commit(source)
        messages.success(request, "It is looked for new mail now. Open this page again to see it.")
    return HttpResponseRedirect(reverse("own_source", args=[pk]))


@require_POST
@login_required
def grant(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Go to where access is granted, by a link that this browser alone is given."""
    source = _own(request, pk)
    try:
        _, token = consent_links.make(source, hours=1, actor=Actor.of_request(request))
    except ServiceError as refusal:
        messages.error(request, str(refusal))
        return HttpResponseRedirect(reverse("own_source", args=[pk]))
    return HttpResponseRedirect(f"{reverse('connect')}#{token}")


#: How a button says it, by the way in which access is granted.
_GRANTS = {
    None: "",
    consent_links.Way.SIGN_IN: "Sign in anew",
    consent_links.Way.SECRET: "Give a new password",
}


def _own(request: HttpRequest, pk: uuid.UUID) -> Any:
    own = IngestionSource.objects.filter(owner_id=request.user.pk, deleted_at=None, pk=pk)
    for source in live.read(own):
        return source
    raise Http404


def _how_it_is(source: Any) -> str:
    if live.current_run(source) is not None:
        return "It is being copied now."
    if source.archived_up_to is None:
        return str(source.status_message or "Nothing is archived yet.")
    return f"All mail is archived up to {moment(source.archived_up_to)}."


def _mail(request: HttpRequest, source: IngestionSource) -> dict[str, Any]:
    if not queries.reads_mail(request.user):
        return {"reads": False}
    wanted = queries.MessageFilter(source=source.pk)
    rows, _ = queries.messages(request.user, wanted, cursor="", size=_NEWEST)
    people.mail_listed(query="", how="own", shown=len(rows), actor=Actor.of_request(request))
    return {"reads": True, "mail": rows}
