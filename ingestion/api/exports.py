"""/api/v1/exports: mail as one file, made in the background; and small ones at once."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from django.http import HttpResponseBase, StreamingHttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
    extend_schema_field,
)
from rest_framework import permissions, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import downloads
from ingestion.api import inputs
from ingestion.api.base import ApiViewSet
from ingestion.api.schema import ErrorOut
from ingestion.api.serializers import RowOut
from ingestion.errors import InvalidInput, NotAllowedNow
from ingestion.models import Export
from ingestion.places import Places
from ingestion.services.archive import storage
from ingestion.services.archive.exports import jobs
from ingestion.services.archive.exports.formats import FORMATS
from ingestion.services.archive.exports.selection import Selection
from ingestion.services.archive.exports.stream import streamed
from ingestion.states import ExportState

#: What is made while its client waits; more is a job.
MAX_STREAMED_MESSAGES = 1_000
MAX_STREAMED_BYTES = 100_000_000
_streams = Places(total=8, per_user=2, retry_seconds=5)


class NewExport(inputs.Strict):
    """What is taken out, and as what.

    `mbox`: a zip of an mbox (mboxrd). `maildir`: a tar of Maildirs. `eml`: a zip of .eml files.
    """

    q = inputs.Text(
        required=False,
        default="",
        allow_blank=True,
        max_length=2_000,
        trim_whitespace=False,
        help_text="In the query language; empty for all mail that you may see.",
    )
    format = inputs.Choice(choices=list(FORMATS))


class ExportQuery(NewExport):
    """The same, of an export at once."""


class LinkQuery(inputs.Strict):
    token = serializers.CharField(required=False, max_length=200)


class ExportOut(RowOut[Export]):
    """`downloadUrl`: needs no key, and is good for an hour; each answer has a new one."""

    q = serializers.CharField(source="query")
    messagesTotal = serializers.IntegerField(source="messages_total", allow_null=True)
    messagesDone = serializers.IntegerField(source="messages_done")
    messagesUnreadable = serializers.IntegerField(source="messages_unreadable")
    sizeBytes = serializers.IntegerField(source="size_bytes")
    createdAt = serializers.DateTimeField(source="created_at")
    finishedAt = serializers.DateTimeField(source="finished_at", allow_null=True)
    expiresAt = serializers.DateTimeField(source="expires_at", allow_null=True)
    downloadUrl = serializers.SerializerMethodField()

    class Meta:
        model = Export
        fields = (
            *("id", "q", "format", "state", "message", "messagesTotal", "messagesDone"),
            *("messagesUnreadable", "sizeBytes", "createdAt", "finishedAt", "expiresAt"),
            "downloadUrl",
        )

    @extend_schema_field({"type": "string", "format": "uri", "nullable": True})
    def get_downloadUrl(self, export: Export) -> str | None:  # noqa: N802 - the API's name
        if export.state != ExportState.DONE:
            return None
        request: Request = self.context["request"]
        path = reverse("exports-download", args=(export.pk,))
        return request.build_absolute_uri(f"{path}?token={jobs.link_token(export)}")


class ExportViewSet(ApiViewSet[Export]):
    """Exports in the background. All of it needs the scope `export`."""

    serializer_class = ExportOut
    scope = "export"
    staff_need = {"create": "ingestion.add_export"}

    def get_queryset(self) -> Any:
        return Export.objects.filter(owner=self.user.pk).select_related("owner")

    def get_permissions(self) -> Any:
        if self.action == "download" and "token" in self.request.query_params:
            return [permissions.AllowAny()]  # the token says which, and until when
        return super().get_permissions()

    @extend_schema(
        operation_id="listExports",
        parameters=[inputs.PageQuery],
        responses={200: ExportOut(many=True)},
    )
    def list(self, request: Request) -> Response:
        """List your exports, the newest first."""
        rows, headers = self.page(self.get_queryset(), self.query(inputs.PageQuery), size=100)
        return Response(self._shown(rows, many=True), headers=headers)

    @extend_schema(operation_id="startExport", request=NewExport, responses={201: ExportOut})
    def create(self, request: Request) -> Response:
        """Have what a query finds made into a file, in the background."""
        given = self.body(NewExport)
        with _of_q():
            export = jobs.start(
                self.user, query=given["q"], format=given["format"], actor=self.actor
            )
        return Response(self._shown(export), status.HTTP_201_CREATED)

    @extend_schema(operation_id="getExport", responses={200: ExportOut})
    def retrieve(self, request: Request, pk: str) -> Response:
        """Tell how far an export is."""
        return Response(self._shown(self.get_object()))

    @extend_schema(operation_id="deleteExport", responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Cancel an export, or delete its file."""
        jobs.delete(self.get_object(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="downloadExport",
        parameters=[
            LinkQuery,
            OpenApiParameter("Range", str, OpenApiParameter.HEADER),
        ],
        responses={
            (code, kind): OpenApiTypes.BINARY
            for code in (200, 206)
            for kind in sorted({made.content_type for made in FORMATS.values()})
        }
        | {409: OpenApiResponse(ErrorOut, description="It is not done, or the link has expired.")},
    )
    @action(detail=True, methods=["get"])
    def download(self, request: Request, pk: str) -> HttpResponseBase:
        """Download a finished export: by key or session, or by `downloadUrl` without either."""
        token = self.query(LinkQuery).get("token")
        if token is None:
            export: Export = self.get_object()
        else:
            export = self._linked(pk, token)
        body = jobs.opened(export, how="link" if token else "signed in", actor=self.actor)
        return downloads.answer(
            request,
            body,
            sha256=export.pk.hex,  # its file never changes
            name=jobs.file_name(export),
            content_type=FORMATS[export.format].content_type,
        )

    @staticmethod
    def _linked(pk: str, token: str) -> Export:
        with contextlib.suppress(ValueError):
            return jobs.by_token(uuid.UUID(pk), token)
        raise NotAllowedNow("This link is none. Ask for another.")

    def _shown(self, exports: Any, *, many: bool = False) -> Any:
        return ExportOut(exports, many=many, context={"request": self.request}).data


def at_once(view: ApiViewSet[Any]) -> HttpResponseBase:
    """Answer `GET /emails/export`."""
    wanted = view.query(ExportQuery)
    with _of_q():
        selection = Selection(view.user, wanted["q"])
    count, size = selection.first(MAX_STREAMED_MESSAGES + 1)
    if count > MAX_STREAMED_MESSAGES or size > MAX_STREAMED_BYTES:
        raise NotAllowedNow(
            f"More than {MAX_STREAMED_MESSAGES:,} messages or {MAX_STREAMED_BYTES // 10**6} MB are"
            " not exported at once. Make a job of it: POST /api/v1/exports."
        )
    storage.require()
    kind = FORMATS[wanted["format"]]
    with contextlib.ExitStack() as place:
        place.enter_context(_streams.place(view.user.pk))
        jobs.taken_by(view.actor, query=wanted["q"], how=wanted["format"])
        response = StreamingHttpResponse(
            _Placed(streamed(selection, wanted["format"]), place.pop_all()),
            content_type=kind.content_type,
        )
    response["Content-Disposition"] = content_disposition_header(
        as_attachment=True, filename=f"mail-{timezone.now():%Y-%m-%d-%H%M}.{kind.extension}"
    )
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response


@contextlib.contextmanager
def _of_q() -> Iterator[None]:
    """Have what is wrong with a query told of the field that it is here."""
    try:
        yield
    except InvalidInput as error:
        errors = {"q" if name == "query" else name: why for name, why in error.errors.items()}
        raise InvalidInput(errors) from None


class _Placed:
    """Chunks whose place is given back, also where none of them was sent."""

    def __init__(self, chunks: Iterator[bytes], place: contextlib.ExitStack) -> None:
        self._chunks = chunks
        self.close = place.close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks
