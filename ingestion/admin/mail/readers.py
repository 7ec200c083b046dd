"""Who comes to the pages of mail: staff who may read it, and owners of sources, who read theirs."""

import functools
from collections.abc import Callable
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.cache import never_cache

from ingestion import queries

_View = Callable[..., HttpResponseBase]


def for_readers(view: _View) -> _View:
    """Let in who reads any mail at all. Which of it they may see, the view asks `queries`."""

    @never_cache
    @login_required
    @functools.wraps(view)
    def guarded(request: HttpRequest, **named: Any) -> HttpResponseBase:
        if not queries.reads_mail(request.user):
            raise PermissionDenied
        return view(request, **named)

    return guarded
