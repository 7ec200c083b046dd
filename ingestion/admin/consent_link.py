"""The operator's side of a consent link: made for a source and shown once, or revoked."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.cache import add_never_cache_headers

from ingestion.admin import display, verbs
from ingestion.errors import ServiceError
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import consent_links


def answer(request: HttpRequest, source: IngestionSource, context: dict[str, Any]) -> HttpResponse:
    """Make a link, or revoke the one that is open, as the form says."""
    actor = Actor.of_request(request)
    try:
        if "revoke" in request.POST:
            consent_links.revoke(source, actor=actor)
            messages.success(request, "The link is revoked: nobody can use it any more.")
            return HttpResponseRedirect(display.page_of(source))
        link, token = consent_links.make(source, actor=actor)
    except ServiceError as refusal:
        messages.error(request, str(refusal))
        return HttpResponseRedirect(display.page_of(source))
    context |= {
        "title": "Link for its owner",
        "source": source,
        "link": link,
        "url": consent_links.address(token, here=request.build_absolute_uri("/")),
    }
    page = TemplateResponse(request, "admin/ingestion/consent_link.html", context)
    add_never_cache_headers(page)
    return page


def offered(source: IngestionSource) -> dict[str, Any] | None:
    """Return what the source's page offers: a link, and the one that is open. None where nobody
    grants access to a source of this kind."""
    if consent_links.way(source) is None:
        return None
    link = consent_links.open_link(source)
    return {"open": link, "primary": link is None and verbs.is_to_make_link(source)}
