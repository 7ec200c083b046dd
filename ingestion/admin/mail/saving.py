"""Saved searches of the mail view: keep one, rename one, and forget one."""

from django.contrib import messages
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from ingestion.admin.mail.readers import for_readers
from ingestion.errors import InvalidInput, LostRace
from ingestion.services.audit import Actor
from ingestion.services.operations import saved_searches


@for_readers
@require_POST
def save_search(request: HttpRequest) -> HttpResponse:
    """Keep a search under a name."""
    assert isinstance(request.user, User)
    try:
        saved = saved_searches.save(
            request.user,
            name=request.POST.get("name", ""),
            query=request.POST.get("query", ""),
            actor=Actor.of_request(request),
        )
    except InvalidInput as error:
        messages.error(request, f"Not saved. {error.words}")
    else:
        messages.success(request, f"Saved as “{saved.name}”.")
    return _back(request)


@for_readers
@require_POST
def rename_search(request: HttpRequest, pk: int) -> HttpResponse:
    """Give one of one's own saved searches another name."""
    assert isinstance(request.user, User)
    saved = get_object_or_404(request.user.saved_searches, pk=pk)
    name, actor = request.POST.get("name", ""), Actor.of_request(request)
    try:
        saved_searches.rename(saved, name=name, actor=actor)
    except (InvalidInput, LostRace) as error:
        messages.error(request, f"Not renamed. {error.words}")
    else:
        messages.success(request, f"It is called “{saved.name}” now.")
    return _back(request)


@for_readers
@require_POST
def forget_search(request: HttpRequest, pk: int) -> HttpResponse:
    """Delete one of one's own saved searches."""
    assert isinstance(request.user, User)
    saved = get_object_or_404(request.user.saved_searches, pk=pk)
    saved_searches.delete(saved, actor=Actor.of_request(request))
    messages.success(request, f"“{saved.name}” is removed. The mail that it finds stays.")
    return _back(request)


def _back(request: HttpRequest) -> HttpResponse:
    back = request.POST.get("back", "")
    mine = back.startswith(reverse("mail")) and url_has_allowed_host_and_scheme(back, None)
    return HttpResponseRedirect(back if mine else reverse("mail"))
