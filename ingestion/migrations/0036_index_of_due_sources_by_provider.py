"""Sources that are due by their provider: those of one account, which wait for a look, may be many
thousands after an outage, and are not to be read for the few others each time."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # an index that is built while sources are followed

    dependencies = [("ingestion", "0035_mailboxes_and_runs_fail_since")]

    operations = [
        AddIndexConcurrently(
            model_name="ingestionsource",
            index=models.Index(
                fields=["provider", "next_sync_at"],
                name="source_due_by_provider",
                condition=models.Q(status="active", deleted_at=None),
            ),
        ),
    ]
