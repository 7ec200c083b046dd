"""Run: one import or sync of a source, with its counters. At most one is unfinished per source."""

import uuid

from django.db import models
from django.db.models.functions import Now

from ingestion.models.source import IngestionSource
from ingestion.states import RunKind, RunStatus


class Run(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(IngestionSource, models.CASCADE, related_name="runs")
    kind = models.CharField(max_length=8, choices=RunKind.choices)
    status = models.CharField(max_length=12, choices=RunStatus.choices, default=RunStatus.RUNNING)
    message = models.TextField(blank=True, help_text='In words: "1,999 archived, 1 failed."')
    warning = models.TextField(blank=True, help_text="Transient trouble, shown while it lasts.")
    actor = models.CharField(max_length=200)

    # The listing of mailboxes is work in this row: due while discovered_at is null.
    discovered_at = models.DateTimeField(null=True)
    not_before = models.DateTimeField(db_default=Now())
    attempts = models.PositiveIntegerField(default=0)
    rung_at = models.DateTimeField(null=True, editable=False)

    mailboxes_total = models.PositiveIntegerField(default=0)
    mailboxes_done = models.PositiveIntegerField(default=0)
    messages_total = models.BigIntegerField(default=0)
    messages_done = models.BigIntegerField(default=0, help_text="Archived or recognised.")
    messages_new = models.BigIntegerField(default=0, help_text="Archived in this run.")
    messages_failed = models.BigIntegerField(default=0)
    messages_gone = models.BigIntegerField(
        default=0, help_text="Deleted at the provider between listing and download."
    )
    bytes_done = models.BigIntegerField(default=0)
    started_at = models.DateTimeField(db_default=Now())
    progress_at = models.DateTimeField(null=True, help_text="When counters last moved.")
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-started_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["source"],
                name="one_unfinished_run_per_source",
                condition=models.Q(finished_at=None),
            ),
        ]
        indexes = [
            models.Index(
                fields=["not_before"],
                name="run_unfinished",
                condition=models.Q(finished_at=None),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.started_at:%Y-%m-%d %H:%M:%S}"

    @property
    def messages_per_second(self) -> float | None:
        """The mean rate from the start to the last progress; None before there is any."""
        if self.progress_at is None or not self.messages_done:
            return None
        seconds = (self.progress_at - self.started_at).total_seconds()
        return self.messages_done / seconds if seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """How long the rest takes at the mean rate; None while that can't be told."""
        rate = self.messages_per_second
        if rate is None or self.finished_at is not None:
            return None
        left = max(0, self.messages_total - self.messages_done - self.messages_failed)
        return left / rate
