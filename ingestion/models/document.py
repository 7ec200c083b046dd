"""What is known of a message by reading all of it: Document, one for each message that was indexed.

Nothing here is evidence: it is made of the archived bytes, and made again by `manage.py reindex`.
It is apart from Message so that capture, which writes that a thousand at a time, pays nothing.
"""

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVectorField
from django.db import models

from ingestion.models.mailbox import Mailbox
from ingestion.models.message import Message
from ingestion.models.source import IngestionSource

#: Raise it where documents made before lack something: all packs are due then, and read again. A
#: pack of 0 was never indexed, and goes before those of the version before.
INDEX_VERSION = 4


class Document(models.Model):
    """A message as search, lists by date and threads see it."""

    message = models.OneToOneField(
        Message, models.CASCADE, primary_key=True, related_name="document"
    )
    source = models.ForeignKey(
        IngestionSource, models.CASCADE, related_name="+", db_constraint=False, db_index=False
    )
    mailbox = models.ForeignKey(
        Mailbox, models.CASCADE, related_name="+", db_constraint=False, db_index=False
    )
    version = models.SmallIntegerField(
        help_text="The INDEX_VERSION that made it; 0: without its bytes, which can't be read."
    )
    date = models.DateTimeField(help_text="When it was received, else sent, else archived.")
    words = SearchVectorField(help_text="What search finds it by.")
    numbers = ArrayField(
        models.SmallIntegerField(),
        default=list,
        db_default=[],
        help_text="Of its month, its year and each two neighbouring words. [] before version 3.",
    )
    sender_address = models.TextField(blank=True, help_text="Of the From header, in lower case.")
    #: Eight bytes of a hash each: narrow to search by; what they hash is compared as well.
    message_key = models.BigIntegerField(null=True, help_text="Of the Message-ID.")
    thread = models.BigIntegerField(help_text="The same for all messages of a conversation.")
    preview = models.TextField(blank=True, help_text="How its text begins, on one line.")
    fields = models.JSONField(default=dict, help_text="Header fields beside those of Message.")
    attachments = models.JSONField(default=list, help_text="Of each: name, type, size, SHA-256.")
    defects = ArrayField(
        models.TextField(), default=list, help_text="What was not indexed, and why."
    )

    class Meta:
        indexes = [
            models.Index(fields=["date", "message"], name="document_newest"),
            models.Index(fields=["source", "date", "message"], name="document_of_source"),
            models.Index(fields=["mailbox", "date", "message"], name="document_of_mailbox"),
            models.Index(fields=["mailbox", "thread"], name="document_thread"),
            models.Index(fields=["mailbox", "message_key"], name="document_message_key"),
            GinIndex(fields=["words", "numbers"], name="document_search"),
            models.Index(fields=["source"], name="document_unread", condition=models.Q(version=0)),
            models.Index(
                fields=["source"], name="document_unnumbered", condition=models.Q(numbers=[])
            ),
        ]

    def __str__(self) -> str:
        return str(self.pk)


class AbsentMessage(models.Model):
    """A Message-ID that messages of a mailbox refer to and none of them has: which thread it, when
    it comes, and all that refer to it belong to (`services.archive.threads`)."""

    pk = models.CompositePrimaryKey("mailbox_id", "message_key")
    mailbox = models.ForeignKey(
        Mailbox, models.CASCADE, related_name="+", db_constraint=False, db_index=False
    )
    message_key = models.BigIntegerField()
    thread = models.BigIntegerField()

    class Meta:
        indexes = [models.Index(fields=["mailbox", "thread"], name="absent_message_thread")]

    def __str__(self) -> str:
        return str(self.message_key)
