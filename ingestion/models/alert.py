"""Alerts: what is wrong from when to when (Alert), who is told (AlertRule), what of (AlertNotice).

At most one alert is open of a kind and source: however often it is found, it is told once. A notice
is written in the transaction of what it tells of, and is owed until it was sent.
"""

import uuid

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

from ingestion.models.source import IngestionSource
from ingestion.models.webhook import WebhookEndpoint


class AlertKind(models.TextChoices):
    """What there is to be told of. All but IMPORT_FINISHED last, and their end is told too."""

    SOURCE_ATTENTION = "source.attention", "A source is not archived"
    SOURCE_FAILURES = "source.failures", "Mail of a source can't be had"
    SECRET_EXPIRES = "source.secret", "Credentials expire in 30, 7 or 1 days"
    IMPORT_FINISHED = "import.finished", "An import is finished"
    ARCHIVE_CORRUPT = "archive.corrupt", "Archived mail is damaged or missing"
    ARCHIVE_STORAGE = "archive.storage", "The archive's disk fills up"
    ARCHIVE_IDLE = "archive.idle", "Nothing is archived for long"
    INDEX_STUCK = "index.stuck", "Search lacks archived mail"
    WORKERS_SILENT = "workers.silent", "Nobody does the work"


class Alert(models.Model):
    """Something that is wrong, of a source or of the whole service, until it is over."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    kind = models.CharField(max_length=32)
    source = models.ForeignKey(IngestionSource, models.CASCADE, null=True, related_name="alerts")
    stage = models.PositiveSmallIntegerField(
        default=0, help_text="How bad it became: it is told again where it gets worse."
    )
    message = models.TextField(help_text="What it is now, in words.")
    began_at = models.DateTimeField(db_default=Now())
    well_since = models.DateTimeField(
        null=True, editable=False, help_text="Since when it looks as if it were over."
    )
    ended_at = models.DateTimeField(null=True)
    relapses = models.PositiveSmallIntegerField(
        default=0, help_text="How often it came back within a day: the more, the later it is over."
    )

    class Meta:
        ordering = ["-began_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "source"],
                name="one_open_alert_of_source",
                condition=models.Q(ended_at=None),
            ),
            models.UniqueConstraint(
                fields=["kind"],
                name="one_open_alert_of_service",
                condition=models.Q(ended_at=None, source=None),
            ),
        ]
        indexes = [models.Index(fields=["began_at", "id"], name="alert_newest")]

    def __str__(self) -> str:
        return f"{self.kind} {self.began_at:%Y-%m-%d %H:%M}"


class AlertRule(models.Model):
    """Who is told of what, by which way; with the rights of its owner."""

    class Way(models.TextChoices):
        MAIL = "mail", "E-mail"
        WEBHOOK = "webhook", "Webhook"
        PING = "ping", "Ping a URL"

    class Digest(models.TextChoices):
        NONE = "", "None"
        DAILY = "daily", "Every day"
        WEEKLY = "weekly", "Every Monday"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="alert_rules")
    name = models.CharField(max_length=100)
    enabled = models.BooleanField(default=True)
    way = models.CharField(max_length=8, choices=Way.choices, default=Way.MAIL)
    recipients = ArrayField(models.TextField(), default=list, help_text="Addresses of e-mail.")
    url = models.TextField(blank=True, help_text="Of a ping.")
    webhook = models.ForeignKey(
        WebhookEndpoint,
        models.SET_NULL,
        null=True,
        related_name="alert_rules",
        help_text="One of its owner's; null where that was deleted.",
    )
    kinds = ArrayField(models.TextField(), default=list)
    sources = ArrayField(models.UUIDField(), null=True, help_text="Null: all that its owner sees.")
    digest = models.CharField(max_length=8, choices=Digest.choices, blank=True)
    digest_at = models.DateTimeField(null=True, help_text="When the next digest is due.")

    # Sending is work in this row: due when something is owed, and not_before has passed.
    not_before = models.DateTimeField(db_default=Now())
    attempts = models.PositiveIntegerField(default=0, help_text="Failures since the last success.")
    handed_out_at = models.DateTimeField(null=True, editable=False)
    #: What came of the last try, and when something was last sent.
    last_result = models.TextField(blank=True)
    last_result_at = models.DateTimeField(null=True)
    last_sent_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["name", "id"]

    def __str__(self) -> str:
        return self.name


class AlertNotice(models.Model):
    """That something began, is over or happened, to be told by one rule. Sent with others."""

    class Change(models.TextChoices):
        BEGAN = "began"
        ENDED = "ended"
        HAPPENED = "happened"

    id = models.BigAutoField(primary_key=True)
    rule = models.ForeignKey(AlertRule, models.CASCADE, related_name="notices", db_index=False)
    alert = models.ForeignKey(
        Alert, models.CASCADE, null=True, related_name="notices", help_text="Null: it happened."
    )
    kind = models.CharField(max_length=32)
    change = models.CharField(max_length=8, choices=Change.choices)
    source = models.ForeignKey(IngestionSource, models.CASCADE, null=True, related_name="+")
    message = models.TextField()
    created_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["created_at", "id"]
        indexes = [
            models.Index(
                fields=["rule", "created_at"],
                name="notice_owed",
                condition=models.Q(sent_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.change}"
