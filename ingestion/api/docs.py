"""The OpenAPI document and the page that shows it: our own assets, no inline script."""

from typing import Any

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


document = SpectacularAPIView.as_view()
page = _Page.as_view(url_name="schema")
