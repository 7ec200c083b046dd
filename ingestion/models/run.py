"""Run: one import or sync of a source, with its counters. At most one is unfinished per source."""

import datetime as dt
import uuid

from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from ingestion.models.source import IngestionSource
from ingestion.states import RunKind, RunStatus

#: A run's rate is told over the last one to two of these: the mean since its start says nothing
#: after a pause.
RATE_WINDOW = dt.timedelta(seconds=15)
#: Less says nothing about the rest: the first second may hold one message, or a thousand.
_RATE_LEAST_SECONDS = 10.0


class Run(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(IngestionSource, models.CASCADE, related_name="runs", db_index=False)
    kind = models.CharField(max_length=8, choices=RunKind.choices)
    status = models.CharField(max_length=12, choices=RunStatus.choices, default=RunStatus.RUNNING)
    message = models.TextField(blank=True, help_text='In words: "1,999 archived, 1 failed."')
    warning = models.TextField(blank=True, help_text="Transient trouble, shown while it lasts.")
    actor = models.CharField(max_length=200)

    # The listing of mailboxes is work in this row: due while discovered_at is null.
    discovered_at = models.DateTimeField(null=True)
    not_before = models.DateTimeField(db_default=Now())
    attempts = models.PositiveIntegerField(default=0)
    failing_since = models.DateTimeField(null=True, editable=False)
    last_error_code = models.CharField(max_length=64, blank=True)
    handed_out_at = models.DateTimeField(null=True, editable=False)

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
    # Where the window begins over which the rate is told, and where the next one will.
    rate_since = models.DateTimeField(null=True, editable=False)
    rate_from = models.BigIntegerField(default=0, editable=False)
    rate_next_at = models.DateTimeField(null=True, editable=False)
    rate_next_from = models.BigIntegerField(default=0, editable=False)
    started_at = models.DateTimeField(db_default=Now())
    asked_at = models.DateTimeField(
        null=True, help_text="When somebody last asked for a sync while this run was under way."
    )
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
            models.Index(fields=["started_at", "id"], name="run_latest"),
            models.Index(fields=["source", "started_at", "id"], name="run_latest_of_source"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.started_at:%Y-%m-%d %H:%M:%S}"

    @property
    def messages_per_second(self) -> float | None:
        """How fast it is: while it runs over the last 15 to 30 s, afterwards over all of it.

        None while it can't be told: less than 10 s of work, or a pause.
        """
        if self.finished_at is not None:
            return self._mean()
        if self.rate_since is None or self.progress_at is None:
            return None
        now = timezone.now()
        seconds = (now - self.rate_since).total_seconds()
        if seconds < _RATE_LEAST_SECONDS or now - self.progress_at > 2 * RATE_WINDOW:
            return None
        return (self.messages_done - self.rate_from) / seconds

    def _mean(self) -> float | None:
        if self.progress_at is None or not self.messages_done:
            return None
        seconds = (self.progress_at - self.started_at).total_seconds()
        return self.messages_done / seconds if seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """How long the rest takes at that rate; None while that can't be told."""
        rate = self.messages_per_second
        if not rate or self.finished_at is not None:
            return None
        settled = self.messages_done + self.messages_failed + self.messages_gone
        return max(0, self.messages_total - settled) / rate
