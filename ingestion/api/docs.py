"""The OpenAPI document, the page that shows it, and two pages of docs/: our own assets, no inline
script.
"""

import functools
import re
from pathlib import Path
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.safestring import mark_safe
from django.views.decorators.http import require_safe
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from markdown_it import MarkdownIt
from rest_framework.request import Request
from rest_framework.response import Response

_PAGES = Path(__file__).resolve().parents[2] / "docs"

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


@require_safe
def introduction(request: HttpRequest) -> HttpResponse:
    """Show docs/api.md."""
    page = {"title": "The API", "page": mark_safe(_shown("api.md"))}  # noqa: S308 - ours
    return render(request, "api/page.html", page)


@require_safe
def errors(request: HttpRequest) -> HttpResponse:
    """Show docs/errors.md; each code is the fragment of its line."""
    return render(request, "api/page.html", {"title": "Error codes", "page": _error_codes()})


@functools.cache
def _shown(name: str) -> str:
    text = (_PAGES / name).read_text(encoding="utf-8")
    shown = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    shown = shown.replace("<pre>", '<pre tabindex="0">')  # who has no mouse scrolls it too
    shown = shown.replace('<a href="errors.md">', f'<a href="{reverse("api-errors")}">')
    return re.sub(r'<a href="\w+\.md[^"]*">(\w+\.md)</a>', r"docs/\1", shown)


@functools.cache
def _error_codes() -> str:
    first = re.compile(r"(?<=<td>)(?:<code>[^<]*</code>(?:, )?)+(?=</td>)")
    codes = re.compile(r"<code>(\w+)</code>")
    seen: set[str] = set()

    def named(code: re.Match[str]) -> str:
        if code[1] in seen:  # an id is of one element
            return code[0]
        seen.add(code[1])
        return f'<code id="{code[1]}">{code[1]}</code>'

    return mark_safe(first.sub(lambda cell: codes.sub(named, cell[0]), _shown("errors.md")))  # noqa: S308 - ours


document = _Document.as_view()
page = _Page.as_view(url_name="schema")
