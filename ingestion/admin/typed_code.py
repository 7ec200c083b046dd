"""The page for signing in by typing in a code: shows the code, and asks whether that is done."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.cache import add_never_cache_headers

from connectors.base import DevicePrompt
from ingestion import dispatching
from ingestion.admin import display
from ingestion.errors import ServiceError
from ingestion.models import IngestionSource
from ingestion.services.audit import Actor
from ingestion.services.sources import consent


def answer(request: HttpRequest, source: IngestionSource, context: dict[str, Any]) -> HttpResponse:
    """Begin, or, where the page sends its prompt back, look whether the person is done."""
    user: Any = request.user  # staff, so no AnonymousUser
    sealed = request.POST.get("prompt", "")
    try:
        if not sealed:
            return _page(request, source, consent.begin_device(source), context)
        prompt = consent.unseal(sealed, source=source, user=user)
        if not consent.finish_device(source, prompt, actor=Actor.of_request(request)):
            messages.warning(request, f"The code {prompt.user_code} has not been typed in yet.")
            return _page(request, source, prompt, context)
    except ServiceError as refusal:
        messages.error(request, f"Not signed in. {refusal.words}")
    else:
        dispatching.on_commit(source)
        messages.success(
            request, f"Signed in. The credentials of “{source.name}” are being checked."
        )
    return HttpResponseRedirect(display.page_of(source))


def _page(
    request: HttpRequest, source: IngestionSource, prompt: DevicePrompt, context: dict[str, Any]
) -> HttpResponse:
    user: Any = request.user
    context |= {
        "title": "Sign in with a code",
        "source": source,
        "prompt": prompt,
        "minutes": round(prompt.seconds / 60),
        "sealed": consent.seal(prompt, source=source, user=user),
    }
    page = TemplateResponse(request, "admin/ingestion/type_in_code.html", context)
    add_never_cache_headers(page)
    return page
