"""The OpenAPI document and the page that shows it: our own assets, no inline script."""

import functools
from typing import Any

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.request import Request
from rest_framework.response import Response

#: swagger-ui styles elements and has its icons in data: addresses.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)


class _Page(SpectacularSwaggerSplitView):
    def finalize_response(
        self, request: Request, response: Response, *args: Any, **kwargs: Any
    ) -> Response:
        final = super().finalize_response(request, response, *args, **kwargs)
        final["Content-Security-Policy"] = _POLICY
        return final


class _Document(SpectacularAPIView):
    """The document, made once in each process: it takes half a second. What a client says of it
    (?version=, ?lang=) is not asked for."""

    @extend_schema(exclude=True)
    def get(self, request: Request, *_: Any, **__: Any) -> HttpResponse:
        renderer: Any = self.perform_content_negotiation(request, force=True)[0]
        return HttpResponse(_rendered(renderer.__class__), content_type=renderer.media_type)


@functools.cache
def _rendered(renderer: Any) -> bytes:
    """`renderer`: the class of one."""
    generator: Any = SpectacularAPIView.generator_class()
    schema = generator.get_schema(request=None, public=True)
    rendered: bytes = renderer().render(schema, renderer.media_type, {})
    return rendered


document = _Document.as_view()
page = _Page.as_view(url_name="schema")
