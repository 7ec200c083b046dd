"""Since when each try of a mailbox, or of a run to list them, has failed: null while none does."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # an index that is built while mailboxes are followed

    dependencies = [("ingestion", "0034_runs_are_one_at_a_time")]

    operations = [
        migrations.AddField(
            model_name="mailbox",
            name="failing_since",
            field=models.DateTimeField(
                null=True,
                editable=False,
                help_text="Each try has failed since, but to be asked to wait.",
            ),
        ),
        migrations.AddField(
            model_name="run",
            name="failing_since",
            field=models.DateTimeField(null=True, editable=False),
        ),
        AddIndexConcurrently(
            model_name="mailbox",
            index=models.Index(
                fields=["source", "failing_since"],
                name="mailbox_failing",
                condition=models.Q(failing_since__isnull=False),
            ),
        ),
    ]
