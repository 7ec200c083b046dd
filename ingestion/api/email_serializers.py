"""The shapes of archived mail, and of searches for it."""

from typing import Any

from drf_spectacular.utils import extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from ingestion.api.serializers import Moment, RowOut, Shape
from ingestion.models import Message, Placement, SavedSearch
from ingestion.services.archive.reading import Reading


class PlacementOut(Shape, RowOut[Placement]):
    folder = serializers.CharField(source="folder.path")
    folderId = serializers.IntegerField(source="folder_id")
    remoteId = serializers.CharField(source="remote_id")
    firstSeenAt = Moment(source="first_seen_at")
    removedAt = Moment(source="removed_at", allow_null=True)

    class Meta:
        model = Placement
        fields = ("folder", "folderId", "remoteId", "labels", "firstSeenAt", "removedAt")


class EmailOut(RowOut[Message]):
    sourceId = serializers.UUIDField(source="mailbox.source_id")
    mailboxId = serializers.UUIDField(source="mailbox_id")
    mailbox = serializers.CharField(source="mailbox.address")
    sha256 = serializers.CharField(source="sha256_hex")
    sizeBytes = serializers.IntegerField(source="size_bytes")
    receivedAt = Moment(source="received_at", allow_null=True)
    archivedAt = Moment(source="archived_at")
    sentAt = Moment(source="sent_at", allow_null=True)
    messageId = serializers.CharField(source="message_id")
    placements = PlacementOut(many=True)

    class Meta:
        model = Message
        fields = (
            *("id", "sourceId", "mailboxId", "mailbox", "sha256", "sizeBytes", "receivedAt"),
            *("archivedAt", "subject", "sender", "recipients", "sentAt", "messageId", "defects"),
            "placements",
        )


class HeadersOut(serializers.Serializer[Any]):
    """Header fields beside the others, each where the email has it. `references`: eldest first."""

    replyTo = serializers.CharField(required=False)
    sender = serializers.CharField(required=False, help_text="The Sender header, not From.")
    bcc = serializers.CharField(required=False)
    resentFrom = serializers.CharField(required=False)
    resentTo = serializers.CharField(required=False)
    inReplyTo = serializers.CharField(required=False)
    references = serializers.ListField(child=serializers.CharField(), required=False)


class AttachmentOut(serializers.Serializer[Any]):
    """`number` is its place in `/emails/{id}/attachments/{number}`; size and SHA-256 are of what is
    downloaded there. `inline`: it belongs into the text, such as a picture."""

    number = serializers.IntegerField(min_value=1)
    name = serializers.CharField(allow_blank=True)
    type = serializers.CharField()
    sizeBytes = serializers.IntegerField(source="size_bytes")
    sha256 = serializers.CharField()
    inline = serializers.BooleanField()


class InThreadOut(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    date = Moment(source="document.date")
    sender = serializers.CharField()
    subject = serializers.CharField()


class HtmlOut(serializers.Serializer[Any]):
    """`markup` is sanitised; show it in a sandboxed frame all the same. `remote`: so many pictures
    elsewhere were left out."""

    markup = serializers.CharField(allow_blank=True)
    remote = serializers.IntegerField()
    notes = serializers.ListField(child=serializers.CharField())


class ReadEmailOut(EmailOut):
    """An email with what it says.

    `indexed`: whether `headers` and `thread` are known. They and `attachments` are also known where
    `text` is. `thread`: the other emails of its conversation in this mailbox, 100 at most. `notes`
    say what `text` is not.
    """

    indexed = serializers.SerializerMethodField()
    indexDefects = serializers.SerializerMethodField()
    headers = serializers.SerializerMethodField()
    attachments = serializers.SerializerMethodField()
    thread = serializers.SerializerMethodField()
    text = serializers.SerializerMethodField()
    notes = serializers.SerializerMethodField()
    html = serializers.SerializerMethodField()

    class Meta:
        model = Message
        fields = (
            *(*EmailOut.Meta.fields, "indexed", "indexDefects", "headers", "attachments", "thread"),
            *("text", "notes", "html"),
        )

    @property
    def _read(self) -> Reading | None:
        read: Reading | None = self.context["read"]
        return read

    def get_indexed(self, message: Message) -> bool:
        return hasattr(message, "document")

    def get_indexDefects(self, message: Message) -> list[str]:  # noqa: N802 - the API's name
        return message.document.defects if hasattr(message, "document") else []

    @extend_schema_field(HeadersOut)
    def get_headers(self, message: Message) -> dict[str, Any]:
        if hasattr(message, "document"):
            return dict(message.document.fields)
        return self._read.named.fields if self._read else {}

    @extend_schema_field(AttachmentOut(many=True))
    def get_attachments(self, message: Message) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        if self._read:
            listed = [attachment._asdict() for attachment in self._read.contents.attachments]
        elif hasattr(message, "document"):
            listed = message.document.attachments
        numbered = [one | {"number": number} for number, one in enumerate(listed, 1)]
        return list(AttachmentOut(numbered, many=True).data)

    @extend_schema_field(InThreadOut(many=True))
    def get_thread(self, _message: Message) -> list[dict[str, Any]]:
        return list(InThreadOut(self.context["thread"], many=True).data)

    def get_text(self, _message: Message) -> str | None:
        return self._read.contents.text if self._read else None

    def get_notes(self, _message: Message) -> list[str]:
        return list(self._read.contents.notes) if self._read else []

    @extend_schema_field(HtmlOut(allow_null=True))
    def get_html(self, _message: Message) -> dict[str, Any] | None:
        return dict(HtmlOut(self._read.html).data) if self._read and self._read.html else None


class PieceOut(serializers.Serializer[Any]):
    """A part of a text, and whether the query asks for it. It is text, never markup."""

    text = serializers.CharField()
    found = serializers.BooleanField()


class HighlightOut(serializers.Serializer[Any]):
    """The subject, and an excerpt of the text, which is empty where the words stand elsewhere."""

    subject = PieceOut(many=True)
    text = PieceOut(many=True)


class FoundEmailOut(EmailOut):
    """An email. In a search it has `preview`, null for a key without the scope `export`; and
    `highlight`: null without `highlight=true`, and where the email could not be read in the time
    that a page has for it."""

    preview = serializers.CharField(source="document.preview", required=False, allow_null=True)
    highlight = HighlightOut(required=False, allow_null=True)

    class Meta:
        model = Message
        fields = (*EmailOut.Meta.fields, "preview", "highlight")

    def to_representation(self, instance: Message) -> dict[str, Any]:
        shown: dict[str, Any] = super().to_representation(instance)
        if "preview" in shown and not self.context["may_read"]:
            shown["preview"] = None  # it is the beginning of the text
        return shown


class CountOut(serializers.Serializer[Any]):
    """How many are found; `more`: there are more than that."""

    number = serializers.IntegerField()
    more = serializers.BooleanField()


class FacetValueOut(serializers.Serializer[Any]):
    """`query`: the term that narrows a search to it."""

    text = serializers.CharField()
    count = serializers.IntegerField(source="number")
    query = serializers.CharField()


class FacetsOut(serializers.Serializer[Any]):
    """How what is found divides, over the `of` newest hits; `more`: there are more than those."""

    of = serializers.IntegerField()
    more = serializers.BooleanField()
    values = serializers.DictField(child=FacetValueOut(many=True))


@extend_schema_serializer(many=False)
class EmailPage(serializers.Serializer[Any]):
    """Emails, newest archived first. `nextCursor` is empty on the last page."""

    results = EmailOut(many=True)
    nextCursor = serializers.CharField(allow_blank=True)


@extend_schema_serializer(many=False)
class FoundPage(serializers.Serializer[Any]):
    """Emails in the order asked for. `nextCursor` is empty on the last page, and so is
    `previousCursor`, which a search has, on the first."""

    results = FoundEmailOut(many=True)
    nextCursor = serializers.CharField(allow_blank=True)
    previousCursor = serializers.CharField(allow_blank=True, required=False)
    count = CountOut(required=False)
    facets = FacetsOut(required=False)


class SavedSearchOut(serializers.ModelSerializer[SavedSearch]):
    createdAt = Moment(source="created_at")

    class Meta:
        model = SavedSearch
        fields = ("id", "name", "query", "createdAt")
