"""What is archived: Pack, Message (bytes once per mailbox), Placement (where it is), and
FailedMessage (what could not be had, and when it is tried again).

Message and Placement are written a thousand at a time under the mailbox's row lock, so the database
checks there what only it can know: identities, and that a placement's message and a message's pack
exist. Triggers do the latter (migration 0031): a foreign key would be a query for each row. The
mailbox needs no check, being locked, and no index of its own: others begin with it.
"""

import uuid

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models.functions import Now

from ingestion.models.fields import CurrentTransaction, Xid8Field
from ingestion.models.mailbox import Folder, Mailbox
from ingestion.models.source import IngestionSource

#: Below this a pack is merged with others (`archive.compaction`).
SMALL_PACK_BYTES = 4_000_000


class Pack(models.Model):
    """One immutable file of many messages (`ingestion.packs`)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(
        IngestionSource, models.CASCADE, related_name="packs", db_index=False
    )
    size_bytes = models.BigIntegerField()
    message_count = models.IntegerField()
    created_at = models.DateTimeField(
        db_default=Now(), help_text="When the youngest of its messages was archived."
    )

    # Compaction.
    replaced_at = models.DateTimeField(
        null=True,
        editable=False,
        help_text="When another pack took its messages: its file goes, then this row.",
    )
    left_apart = models.BooleanField(
        db_default=False,
        help_text="Whether it is never merged: it is damaged, or other than its rows say.",
    )

    # Indexing is owed by packs, not by messages: an import then writes nothing more for it.
    index_version = models.SmallIntegerField(
        db_default=0, help_text="The INDEX_VERSION that all its messages were indexed by."
    )
    index_offset = models.BigIntegerField(
        db_default=0, help_text="Up to which message they were, since all of them last were due."
    )
    index_defects = models.IntegerField(
        db_default=0, help_text="How many of them were not indexed in whole."
    )
    index_attempts = models.PositiveSmallIntegerField(
        db_default=0, help_text="How often in a row the pack could not be read."
    )
    index_not_before = models.DateTimeField(db_default=Now())
    handed_out_at = models.DateTimeField(
        null=True, editable=False, help_text="When work on this row was last handed out."
    )

    class Meta:
        indexes = [
            models.Index(fields=["index_version", "index_not_before"], name="pack_index_due"),
            models.Index(
                fields=["source", "index_version", "index_not_before"], name="pack_of_source"
            ),
            models.Index(
                fields=["source", "created_at"],
                name="pack_small",
                condition=models.Q(
                    size_bytes__lt=SMALL_PACK_BYTES, replaced_at=None, left_apart=False
                ),
            ),
            models.Index(
                fields=["source"],
                name="pack_replaced",
                condition=models.Q(replaced_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Message(models.Model):
    """Bytes archived once per mailbox. The header fields are for people, never for identity."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    mailbox = models.ForeignKey(
        Mailbox, models.CASCADE, related_name="messages", db_constraint=False, db_index=False
    )
    sha256 = models.BinaryField(max_length=32)
    size_bytes = models.BigIntegerField()
    pack = models.ForeignKey(Pack, models.PROTECT, related_name="messages", db_constraint=False)
    pack_offset = models.BigIntegerField(help_text="Of the zstd frame, in bytes.")
    pack_length = models.BigIntegerField(help_text="Of the zstd frame, in bytes.")
    received_at = models.DateTimeField(null=True)
    archived_at = models.DateTimeField(db_default=Now())

    subject = models.TextField(blank=True)
    sender = models.TextField(blank=True, help_text="The From header, decoded.")
    recipients = models.TextField(blank=True, help_text="To and Cc, decoded.")
    sent_at = models.DateTimeField(null=True, help_text="The Date header.")
    message_id = models.TextField(blank=True, help_text="The Message-ID header: metadata only.")
    defects = ArrayField(models.TextField(), default=list, blank=True)

    class Meta:
        ordering = ["-archived_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["mailbox", "sha256"], name="message_identity"),
        ]
        indexes = [
            models.Index(fields=["mailbox", "archived_at", "id"], name="message_by_time"),
            models.Index(fields=["archived_at", "id"], name="message_newest"),
        ]

    def __str__(self) -> str:
        return self.subject or "(no subject)"

    @property
    def sha256_hex(self) -> str:
        return bytes(self.sha256).hex()


#: Flags of IMAP that most mail has: what has no other label is not in the index of labels.
COMMON_LABELS = ["\\Answered", "\\Recent", "\\Seen"]


class Placement(models.Model):
    """A message in a folder, with its labels and when it was first seen and removed there."""

    id = models.BigAutoField(primary_key=True)
    mailbox = models.ForeignKey(
        Mailbox, models.CASCADE, related_name="placements", db_constraint=False, db_index=False
    )
    folder = models.ForeignKey(
        Folder, models.CASCADE, related_name="placements", db_constraint=False, db_index=False
    )
    message = models.ForeignKey(
        Message, models.CASCADE, related_name="placements", db_constraint=False
    )
    remote_id = models.TextField()
    stable_id = models.TextField(blank=True)
    thread_id = models.TextField(blank=True)
    labels = ArrayField(models.TextField(), default=list, blank=True)
    first_seen_at = models.DateTimeField(db_default=Now())
    removed_at = models.DateTimeField(null=True)

    # Where it stands in the feed (`ingestion.feed`). A trigger sets both with each change of what
    # the feed tells of it.
    changed_xid = Xid8Field(db_default=CurrentTransaction(), editable=False)
    ever_changed = models.BooleanField(
        db_default=False, editable=False, help_text="Whether it did since it came."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["folder", "remote_id"], name="placement_identity"),
        ]
        indexes = [
            models.Index(fields=["changed_xid", "id"], name="placement_feed"),
            models.Index(
                fields=["mailbox", "stable_id"],
                name="placement_stable",
                condition=~models.Q(stable_id=""),
            ),
            # An import of mail without other labels pays nothing for it.
            GinIndex(
                fields=["labels"],
                name="placement_labels",
                condition=~models.Q(labels__contained_by=COMMON_LABELS),
            ),
        ]

    def __str__(self) -> str:
        return self.remote_id


class FailedMessage(models.Model):
    """A message that could not be had: why, how often it was tried, when it is tried again.

    The row goes away when the message is archived or is gone at the provider for good.
    """

    id = models.BigAutoField(primary_key=True)
    mailbox = models.ForeignKey(Mailbox, models.CASCADE, related_name="failures")
    folder = models.ForeignKey(Folder, models.CASCADE, related_name="failures")
    remote_id = models.TextField()
    stable_id = models.TextField(blank=True)
    size_bytes = models.BigIntegerField(null=True)
    received_at = models.DateTimeField(null=True)
    labels = ArrayField(models.TextField(), default=list, blank=True)
    code = models.CharField(max_length=64)
    reason = models.TextField()
    attempts = models.PositiveIntegerField(default=1)
    not_before = models.DateTimeField()
    first_failed_at = models.DateTimeField(db_default=Now())
    last_failed_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["-last_failed_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["folder", "remote_id"], name="failure_identity"),
        ]
        indexes = [models.Index(fields=["mailbox", "not_before"], name="failure_due")]

    def __str__(self) -> str:
        return f"{self.folder_id}/{self.remote_id}"
