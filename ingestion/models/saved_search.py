"""A search that a user keeps under a name: SavedSearch."""

from django.conf import settings
from django.db import models
from django.db.models.functions import Now


class SavedSearch(models.Model):
    """What it finds, its owner may see: it is searched anew each time."""

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, related_name="saved_searches", db_index=False
    )
    name = models.CharField(max_length=100)
    query = models.TextField(help_text="In the query language.")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "saved searches"
        constraints = [
            models.UniqueConstraint(fields=["owner", "name"], name="saved_search_identity"),
        ]

    def __str__(self) -> str:
        return self.name
