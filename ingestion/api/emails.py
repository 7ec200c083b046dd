"""/api/v1/emails: what was archived, and its exact bytes."""

from typing import Any, cast

from django.contrib.auth.models import User
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from connectors.types import SpooledBody
from ingestion import queries
from ingestion.api import serializers
from ingestion.archive.store import Extent, store
from ingestion.models import Message

_GONE = OpenApiResponse(description="Email not found.")


class _RawRenderer(BaseRenderer):
    """Lets a client ask for message/rfc822; errors are JSON all the same."""

    media_type = "message/rfc822"
    format = "eml"
    charset = None

    def render(self, data: Any, *args: Any, **kwargs: Any) -> bytes:
        return JSONRenderer().render(data)


class EmailViewSet(viewsets.GenericViewSet[Message]):
    """Archived emails."""

    serializer_class = serializers.EmailOut
    lookup_value_regex = "[^/]+"

    def get_queryset(self) -> Any:
        found = queries.visible_messages(cast("User", self.request.user))
        return found.select_related("mailbox", "pack").prefetch_related("placements__folder")

    @extend_schema(
        parameters=[serializers.EmailQuery],
        responses={200: serializers.EmailPage},
        operation_id="listEmails",
    )
    def list(self, request: Request) -> Response:
        """List archived emails, newest archived first; follow `nextCursor`."""
        query = serializers.EmailQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        wanted = query.validated_data
        narrowed = queries.MessageFilter(
            source=wanted.get("source"),
            mailbox=wanted.get("mailbox"),
            folder=wanted.get("folder"),
            sender=wanted.get("sender", ""),
            subject=wanted.get("subject", ""),
            received_from=wanted.get("receivedFrom"),
            received_before=wanted.get("receivedBefore"),
        )
        try:
            page, following = queries.messages(
                cast("User", request.user),
                narrowed,
                cursor=wanted.get("cursor", ""),
                size=wanted["pageSize"],
            )
        except ValueError:
            raise ValidationError({"cursor": ["Not a cursor of this list."]}) from None
        return Response(
            {"results": serializers.EmailOut(page, many=True).data, "nextCursor": following}
        )

    @extend_schema(responses={200: serializers.EmailOut, 404: _GONE})
    def retrieve(self, request: Request, pk: str) -> Response:
        """Retrieve an email's headers and where it is."""
        return Response(serializers.EmailOut(self.get_object()).data)

    @extend_schema(
        responses={
            (200, "message/rfc822"): OpenApiTypes.BINARY,
            304: OpenApiResponse(description="The client has it: If-None-Match names the ETag."),
            404: _GONE,
        },
        request=None,
    )
    @action(detail=True, methods=["get"], renderer_classes=[_RawRenderer])
    def raw(self, request: Request, pk: str) -> HttpResponseBase:
        """Download the exact bytes, checked against their SHA-256. The ETag is the SHA-256."""
        message: Message = self.get_object()
        etag = f'"{message.sha256_hex}"'
        if etag in request.headers.get("If-None-Match", ""):
            return HttpResponse(status=304, headers={"ETag": etag})
        body = store().open(
            message.mailbox.source_id,
            message.pack_id,
            Extent(message.pack_offset, message.pack_length),
            sha256=bytes(message.sha256),
            size=message.size_bytes,
        )
        response: HttpResponseBase
        if isinstance(body, SpooledBody):
            response = StreamingHttpResponse(_chunks(body), content_type="message/rfc822")
        else:
            response = HttpResponse(body, content_type="message/rfc822")
        response["Content-Length"] = str(message.size_bytes)
        response["Content-Disposition"] = f'attachment; filename="{message.pk}.eml"'
        response["X-Content-Type-Options"] = "nosniff"
        response["ETag"] = etag
        return response


def _chunks(body: SpooledBody) -> Any:
    try:
        yield from body.chunks()
    finally:
        body.close()
