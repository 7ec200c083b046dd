"""/api/v1/emails: what was archived, and its exact bytes."""

from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import downloads, queries
from ingestion.api import exports as exporting
from ingestion.api import inputs, searching, serializers
from ingestion.api.base import ApiViewSet
from ingestion.models import Message
from ingestion.services.archive import reading
from ingestion.services.operations import people


class EmailViewSet(ApiViewSet[Message]):
    """Archived emails."""

    serializer_class = serializers.EmailOut

    def get_queryset(self) -> Any:
        found = queries.visible_messages(self.user).select_related("mailbox__source")
        return found if self.action == "raw" else found.prefetch_related("placements__folder")

    @extend_schema(
        operation_id="listEmails",
        parameters=[inputs.EmailQuery],
        responses={200: serializers.FoundPage},
        examples=searching.EXAMPLES,
    )
    def list(self, request: Request) -> Response:
        """List archived emails, newest archived first, or search them; follow `nextCursor`.

        It is a search with `q`, and with any of `recipient`, `label`, `hasAttachment`, `count`,
        `facets`, `highlight` and another order: then it goes by what is indexed.
        """
        return Response(searching.listed(self.user, self.query(inputs.EmailQuery)))

    @extend_schema(operation_id="getEmail", responses={200: serializers.EmailOut})
    def retrieve(self, request: Request, pk: str) -> Response:
        """Retrieve an email's headers and where it is."""
        return Response(serializers.EmailOut(self.get_object()).data)

    @extend_schema(
        operation_id="downloadEmail",
        parameters=[
            OpenApiParameter("If-None-Match", str, OpenApiParameter.HEADER),
            OpenApiParameter("ETag", str, OpenApiParameter.HEADER, response=[200, 304]),
        ],
        responses={
            (200, "message/rfc822"): OpenApiTypes.BINARY,
            304: OpenApiResponse(description="If-None-Match names the ETag: the client has it."),
        },
    )
    @action(detail=True, methods=["get"], scope="export")
    def raw(self, request: Request, pk: str) -> HttpResponseBase:
        """Download the exact bytes, checked against their SHA-256, which is the ETag.

        A key needs the scope `export`.
        """
        message: Message = self.get_object()
        if same := downloads.not_modified(request, message.sha256_hex):
            return same
        response = downloads.answer(
            request,
            reading.opened(message),
            sha256=message.sha256_hex,
            name=downloads.eml_name(message),
            content_type="message/rfc822",
        )
        people.mail_read(message, how="raw", actor=self.actor)
        return response

    @extend_schema(
        operation_id="exportEmails",
        parameters=[exporting.ExportQuery],
        responses={
            (200, "application/zip"): OpenApiTypes.BINARY,
            (200, "application/x-tar"): OpenApiTypes.BINARY,
        },
    )
    @action(detail=False, methods=["get"], scope="export")
    def export(self, request: Request) -> HttpResponseBase:
        """Download what a query finds as one file, at once: up to 1,000 messages and 100 MB.

        A key needs the scope `export`. More is refused by 409: POST /exports.
        """
        return exporting.at_once(self)
