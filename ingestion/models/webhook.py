"""Webhooks: WebhookEndpoint, where somebody wants to be told; WebhookDelivery, what of.

A delivery is written in the transaction of what it tells of, and is due work until it is finished.
"""

import uuid
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

from ingestion.crypto import EncryptedJSONField, Secrets
from ingestion.models.fields import Xid8Field


class Event(models.TextChoices):
    """What there is to be told of."""

    SOURCE_ERROR = "source.error", "a source needs somebody"
    RUN_FINISHED = "run.finished", "an import or sync ended"
    ARCHIVE_CHANGED = "archive.changed", "the feed has news"
    ARCHIVE_CORRUPT = "archive.corrupt", "mail is damaged or missing"
    ALERT_BEGAN = "alert.began", "something needs somebody, or is worse"
    ALERT_ENDED = "alert.ended", "it is over"


#: Sent by `POST /webhooks/:id/test`, whatever an endpoint wants.
TEST_EVENT = "webhook.test"
#: Sent by a rule of alerts that has the endpoint for its way, whatever that wants.
RULE_EVENT = "alerts"


class WebhookEndpoint(models.Model):
    """An address that is told of events of its owner's sources."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="webhook_endpoints"
    )
    url = models.TextField()
    secrets = EncryptedJSONField(default=Secrets)
    rotated_at = models.DateTimeField(
        null=True, help_text="When its secret was changed: the one before is good for a day more."
    )
    events = ArrayField(models.TextField())
    enabled = models.BooleanField(default=True)
    #: What came of the last try, and when something was last delivered.
    last_result = models.TextField(blank=True)
    last_result_at = models.DateTimeField(null=True)
    last_delivered_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    silent_until = models.DateTimeField(
        null=True, editable=False, help_text="It did not answer: nothing is sent to it before."
    )

    # The doorbell of the feed: up to where it was looked, and when it may ring again.
    rung_xid = Xid8Field(db_default=models.Value("0"), editable=False)
    rung_id = models.BigIntegerField(db_default=0, editable=False)
    ring_not_before = models.DateTimeField(db_default=Now(), editable=False)
    handed_out_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["created_at", "id"]
        verbose_name = "webhook"

    def __str__(self) -> str:
        """The host alone: the rest may have a token in it."""
        return f"Webhook to {urlsplit(self.url).hostname}"


class WebhookDelivery(models.Model):
    """One event for one endpoint: tried until it is delivered or given up."""

    class Outcome(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        GIVEN_UP = "given_up"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    endpoint = models.ForeignKey(
        WebhookEndpoint, models.CASCADE, related_name="deliveries", db_index=False
    )
    event = models.CharField(max_length=64)
    source_id = models.UUIDField(null=True, help_text="Kept after the source is deleted.")
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=Now())
    attempts = models.PositiveSmallIntegerField(default=0)
    not_before = models.DateTimeField(db_default=Now())
    outcome = models.CharField(max_length=16, choices=Outcome.choices, default=Outcome.PENDING)
    result = models.TextField(blank=True, help_text="What came of the last try.")
    finished_at = models.DateTimeField(null=True)
    handed_out_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "webhook deliveries"
        indexes = [
            models.Index(fields=["endpoint", "created_at"], name="delivery_of_endpoint"),
            models.Index(
                fields=["not_before"],
                name="delivery_due",
                condition=models.Q(outcome="pending"),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.pk}"
