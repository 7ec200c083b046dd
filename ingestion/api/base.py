"""What every endpoint does alike: takes strict JSON, answers JSON, pages lists, tells who acts."""

import io
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar, cast

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict
from django.urls import reverse
from gunicorn.http.errors import ParseException
from rest_framework import viewsets
from rest_framework.exceptions import ValidationError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion.api import idempotency, inputs
from ingestion.api.parsing import StrictJSONParser
from ingestion.services.audit import Actor

M = TypeVar("M", bound=Model)


class JSONWhateverIsAccepted(DefaultContentNegotiation):
    """Answers JSON also where Accept names another type: RFC 9110 section 12.5.1 allows it.

    A client that downloads message/rfc822 or listens to text/event-stream gets errors it can read.
    """

    def select_renderer(
        self,
        request: Request,
        renderers: Iterable[BaseRenderer],
        format_suffix: str | None = None,
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        return first, str(first.media_type)


class ApiViewSet(viewsets.GenericViewSet[M]):
    """Base of the API's viewsets.

    `scope`: what a key needs, where its method does not imply it. `idempotent`: whether a POST
    obeys Idempotency-Key; it is a transaction then, so not where one waits for a server. `sealed`:
    whether what it answers holds a secret, and is kept encrypted for that.
    `staff_need`: the permission without which staff may not do an action, by its name.
    """

    scope: str | None = None
    staff_need: ClassVar[Mapping[str, str]] = {}
    idempotent = True
    sealed = False
    parser_classes = [StrictJSONParser]
    content_negotiation_class = JSONWhateverIsAccepted

    @property
    def user(self) -> User:
        return cast("User", self.request.user)

    @property
    def actor(self) -> Actor:
        return Actor.of_request(self.request._request)  # noqa: SLF001 - DRF's own way to it

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        _take_chunked_body(request)
        return super().initialize_request(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if self.idempotent and (handler := getattr(self, "post", None)):
            self.post = idempotency.once(handler, sealed=self.sealed)

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        final = super().finalize_response(request, response, *args, **kwargs)
        for name, value in getattr(request, "rate_limit", {}).items():
            final.headers[name] = value
        final.headers.setdefault("Cache-Control", "private, no-store")
        data = getattr(final, "data", None)  # a file has none
        if final.status_code >= 400 and isinstance(data, dict) and data.get("errors"):
            code = data["errors"][0]["code"]
            final.headers["Link"] = f'<{reverse("api-errors")}#{code}>; rel="help"'
        return final

    def body(self, kind: type[inputs.Strict]) -> dict[str, Any]:
        """Return the checked body. Raises ValidationError that names each wrong field."""
        data = self.request.data
        return _checked(kind, {} if isinstance(data, QueryDict) else data)  # no body at all

    def query(self, kind: type[inputs.Strict]) -> dict[str, Any]:
        """Return the checked query. Raises ValidationError that names each wrong parameter."""
        query = self.request.query_params
        twice = {n[:100]: ["Given more than once."] for n, v in query.lists() if len(v) > 1}
        if twice:
            raise ValidationError(twice)
        return _checked(kind, query.dict())

    def page(
        self, found: "QuerySet[Any, Any]", wanted: dict[str, Any], *, size: int
    ) -> tuple[list[Any], dict[str, str]]:
        """Return the rows of the page asked for, and the headers that tell of the others."""
        pages = Paginator(found, wanted.get("pageSize", size))
        number = wanted.get("page", 1)
        rows = list(pages.page(number)) if number <= pages.num_pages else []
        links = _links(self.request, number, pages.num_pages)
        return rows, {"X-Total-Count": str(pages.count), "Link": links}

    def paged(self, found: "QuerySet[Any, Any]", shape: Any, **options: Any) -> Response:
        """Answer one page of rows as an array of `shape`, which is given the options."""
        rows, headers = self.page(found, self.query(inputs.PageQuery), size=100)
        return Response(shape(rows, many=True, **options).data, headers=headers)


def _checked(kind: type[inputs.Strict], data: Any) -> dict[str, Any]:
    given = kind(data=data)
    given.is_valid(raise_exception=True)
    return cast("dict[str, Any]", given.validated_data)


def _take_chunked_body(request: HttpRequest) -> None:
    """Give a body of unannounced length a length: without one Django takes it for empty."""
    if "chunked" not in request.headers.get("Transfer-Encoding", "").lower():
        return
    try:
        body = request.META["wsgi.input"].read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
    except (ParseException, OSError) as error:  # a chunk whose size is none, a client that left
        raise BadRequest("The body is not in chunks as it says.") from error
    request.META["CONTENT_LENGTH"] = str(len(body))
    request._stream = io.BytesIO(body)  # noqa: SLF001 - what HttpRequest.read reads


def _links(request: Request, number: int, last: int) -> str:
    """Return a Link header (RFC 8288) with first, prev, next and last."""

    def link(to: int, name: str) -> str:
        query = request.query_params.copy()
        query["page"] = str(to)
        return f'<{request.build_absolute_uri(request.path)}?{query.urlencode()}>; rel="{name}"'

    links = [link(1, "first"), link(last, "last")]
    if number > 1:
        links.append(link(min(number - 1, last), "prev"))
    if number < last:
        links.append(link(number + 1, "next"))
    return ", ".join(links)
