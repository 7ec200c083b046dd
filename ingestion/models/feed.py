"""ArchiveChange: what the feed tells that no placement's row does.

A placement's row says itself what it is now, and since which transaction (`changed_xid`): the feed
reads those, and these. Both are written by the database's own triggers (migration "feed"), so that
no statement forgets to.
"""

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from ingestion.models.fields import CurrentTransaction, Xid8Field


class ArchiveChange(models.Model):
    """A message erased, a source deleted, a folder or mailbox renamed. Rows are never changed.

    It refers to nothing by a key: what it tells of may be gone.
    """

    class Kind(models.TextChoices):
        MESSAGE_ERASED = "message.erased"
        SOURCE_DELETED = "source.deleted"
        FOLDER_RENAMED = "folder.renamed"
        MAILBOX_RENAMED = "mailbox.renamed"

    #: From the placements' sequence: with the transaction it is a place in the feed, which is one.
    id = models.BigIntegerField(
        primary_key=True,
        db_default=models.Func(models.Value("ingestion_placement_id_seq"), function="nextval"),
        editable=False,
    )
    changed_xid = Xid8Field(db_default=CurrentTransaction(), editable=False)
    kind = models.CharField(max_length=32, choices=Kind.choices)
    at = models.DateTimeField(db_default=Now())
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", db_index=False
    )
    source_id = models.UUIDField()
    mailbox_id = models.UUIDField(null=True)
    folder_id = models.BigIntegerField(null=True)
    message_id = models.UUIDField(null=True)
    sha256 = models.BinaryField(max_length=32, null=True)
    size_bytes = models.BigIntegerField(null=True)

    class Meta:
        indexes = [models.Index(fields=["changed_xid", "id"], name="archive_change_feed")]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}"
