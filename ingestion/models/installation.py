"""Installation: what there is once in a database: its archive, its ready groups. One row, pk 1."""

import uuid

from django.db import models


class Installation(models.Model):
    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    archive_id = models.UUIDField(default=uuid.uuid4, editable=False)
    archive_marked = models.BooleanField(
        default=False, help_text="Whether that id was written into ARCHIVE_DIR."
    )

    groups = models.JSONField(
        default=dict,
        editable=False,
        help_text="Of each ready group the permissions it was given; null for one that isn't ours.",
    )

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="one_installation"),
        ]

    def __str__(self) -> str:
        return str(self.archive_id)
