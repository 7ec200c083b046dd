"""/api/v1/emails: what was archived, what it says, and its exact bytes."""

import uuid
from typing import Any

from django.http import Http404, HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import (
    OpenApiExample,
    OpenApiParameter,
    OpenApiResponse,
    extend_schema,
)
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import downloads, queries
from ingestion.api import access, email_serializers, inputs, searching
from ingestion.api import exports as exporting
from ingestion.api.base import ApiViewSet
from ingestion.api.schema import ErrorOut
from ingestion.models import Message
from ingestion.services.archive import reading
from ingestion.services.operations import people

#: Of a conversation, the eldest.
MAX_IN_THREAD = 100
_NUMBER = OpenApiParameter("number", int, OpenApiParameter.PATH, description="From 1.")
_CONDITIONS = [
    *(OpenApiParameter(name, str, "header") for name in ("If-None-Match", "Range", "If-Range")),
    OpenApiParameter("ETag", str, "header", response=[200, 206, 304]),
    OpenApiParameter("Content-Range", str, "header", response=[206, 416]),
]
_EXAMPLE = {
    "id": "7b0c9c4e-2f7e-4a51-9c0a-0d6f5f5e7d11",
    "sourceId": "f1f6a1de-6a31-4a6b-8d6c-2b8f3f0f9a01",
    "mailboxId": "0b1e7a52-5a6e-4a3c-9a5e-3d3a4cf6f0aa",
    "mailbox": "ada@example.com",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "sizeBytes": 48213,
    "receivedAt": "2025-06-15T08:30:00Z",
    "archivedAt": "2025-06-15T08:31:07Z",
    "subject": "Your invoice 4711",
    "sender": "Shop <invoices@example.com>",
    "recipients": "Ada <ada@example.com>",
    "sentAt": "2025-06-15T08:29:58Z",
    "messageId": "<4711@example.com>",
    "defects": [],
    "placements": [
        {
            "folder": "INBOX",
            "folderId": 12,
            "remoteId": "1:4711",
            "labels": ["\\Seen"],
            "firstSeenAt": "2025-06-15T08:31:07Z",
            "removedAt": None,
        }
    ],
    "indexed": True,
    "indexDefects": [],
    "headers": {"replyTo": "Help <help@example.com>", "inReplyTo": "<1@example.org>"},
    "attachments": [
        {
            "number": 1,
            "name": "invoice.pdf",
            "type": "application/pdf",
            "sizeBytes": 31002,
            "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
            "inline": False,
        }
    ],
    "thread": [
        {
            "id": "c3a7b1f0-9f0b-4a53-8f8e-2c1f4f7f4a10",
            "date": "2025-06-14T17:02:00Z",
            "sender": "Ada <ada@example.com>",
            "subject": "Invoice?",
        }
    ],
    "text": "Dear Ada, ...",
    "notes": [],
    "html": None,
}


def _file(kind: str, about: str) -> dict[Any, Any]:
    """Describe the answers of `ingestion.downloads`."""
    return {
        (200, kind): OpenApiResponse(OpenApiTypes.BINARY, description=about),
        (206, kind): OpenApiResponse(OpenApiTypes.BINARY, description="The range asked for."),
        304: OpenApiResponse(description="If-None-Match names the ETag: the client has it."),
        416: OpenApiResponse(ErrorOut, description="Range is beyond the end: Content-Range says."),
    }


def _in_words(request: Request) -> str:
    """Return what is asked for, as the address has it; where to go on is not of interest."""
    asked = request.query_params.copy()
    asked.pop("cursor", None)
    return asked.urlencode()


class EmailViewSet(ApiViewSet[Message]):
    """Archived emails."""

    queryset = Message.objects.none()  # says in the schema what an id is; rows are of `queries`
    serializer_class = email_serializers.EmailOut
    staff_need = {"export": "ingestion.add_export"}

    def get_object(self) -> Message:
        try:
            message = queries.message(self.user, uuid.UUID(self.kwargs["pk"]))
        except ValueError:
            message = None
        if message is None:
            raise Http404
        return message

    @extend_schema(
        operation_id="listEmails",
        parameters=[inputs.EmailQuery],
        responses={200: email_serializers.FoundPage},
        examples=searching.EXAMPLES,
    )
    def list(self, request: Request) -> Response:
        """List archived emails, newest archived first, or search them; follow `nextCursor`.

        It is a search with `q`, and with any of `recipient`, `label`, `hasAttachment`, `count`,
        `facets`, `highlight` and another order: then it goes by what is indexed. Previews and
        highlights are pieces of the mail itself: a key needs the scope `export` for them.
        """
        wanted = self.query(inputs.EmailQuery)
        may_read = access.has_scope(request, "export")
        if wanted["highlight"] and not may_read:
            raise PermissionDenied('For highlights this key needs the scope "export".')
        found = searching.listed(self.user, wanted, may_read=may_read)
        people.mail_listed(
            query=_in_words(request), how="api", shown=len(found["results"]), actor=self.actor
        )
        return Response(found)

    @extend_schema(
        operation_id="getEmail",
        parameters=[inputs.ReadQuery],
        responses={200: email_serializers.ReadEmailOut},
        examples=[OpenApiExample("An email", _EXAMPLE, response_only=True)],
    )
    def retrieve(self, request: Request, pk: str) -> Response:
        """Retrieve an email: its headers, its text, where it was, and its conversation.

        Whom it names, its attachments and its conversation are known once it is indexed. `text`
        and `html` are the mail itself: a key needs the scope `export` for them. Without it `text`
        is null, and to ask for `html` is refused.
        """
        wanted = self.query(inputs.ReadQuery)
        html, remote = wanted["html"], wanted["remote"]
        message = self.get_object()
        may_read = access.has_scope(request, "export")
        if (html or remote) and not may_read:
            raise PermissionDenied('For the HTML this key needs the scope "export".')
        if remote and not html:
            raise ValidationError({"remote": ["Only together with html=true."]})
        read = None
        if may_read:
            read = reading.whole(message, html=html, remote=remote)
            people.mail_read(message, how="api", actor=self.actor)
        thread = queries.conversation(self.user, message, limit=MAX_IN_THREAD)
        about = {"read": read, "thread": thread}
        return Response(email_serializers.ReadEmailOut(message, context=about).data)

    @extend_schema(
        operation_id="downloadAttachment",
        parameters=[_NUMBER, *_CONDITIONS],
        responses=_file("application/octet-stream", "The attachment's own type."),
    )
    @action(
        detail=True,
        methods=["get"],
        scope="export",
        url_path=r"attachments/(?P<number>[0-9]{1,6})",
    )
    def attachments(self, request: Request, pk: str, number: str) -> HttpResponseBase:
        """Download an attachment by its `number`, decoded; the ETag is its SHA-256.

        A key needs the scope `export`. The type is what the mail says, which may be anything: take
        it for no more.
        """
        message = self.get_object()
        opened = reading.attachment(message, int(number) - 1)
        if opened is None:
            raise NotFound("It has no such attachment, or none that can be read.")
        people.mail_read(message, how="attachment", actor=self.actor)
        return downloads.attachment(
            request,
            opened.about,
            opened.body,
            number=int(number),
        )

    @extend_schema(
        operation_id="downloadEmail",
        parameters=_CONDITIONS,
        responses=_file("message/rfc822", "The email's exact bytes."),
    )
    @action(detail=True, methods=["get"], scope="export")
    def raw(self, request: Request, pk: str) -> HttpResponseBase:
        """Download the exact bytes, checked against their SHA-256, which is the ETag.

        A key needs the scope `export`.
        """
        message = self.get_object()
        if same := downloads.not_modified(request, message.sha256_hex):
            return same
        body = reading.opened(message)
        people.mail_read(message, how="raw", actor=self.actor)
        return downloads.eml(request, message, body)

    @extend_schema(
        operation_id="exportEmails",
        parameters=[exporting.ExportQuery],
        responses={
            (200, "application/zip"): OpenApiTypes.BINARY,
            (200, "application/x-tar"): OpenApiTypes.BINARY,
            409: OpenApiResponse(ErrorOut, description="It is more than 1,000 messages or 100 MB."),
        },
    )
    @action(detail=False, methods=["get"], scope="export")
    def export(self, request: Request) -> HttpResponseBase:
        """Download what a query finds as one file, at once: up to 1,000 messages and 100 MB.

        A key needs the scope `export`. More is refused by 409: POST /exports.
        """
        return exporting.at_once(self)
