"""Mailboxes that are unavailable: few of very many, asked for by each page that judges sources."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # an index that is built while mailboxes are followed

    dependencies = [("ingestion", "0036_index_of_due_sources_by_provider")]

    operations = [
        AddIndexConcurrently(
            model_name="mailbox",
            index=models.Index(
                fields=["source"],
                name="mailbox_unavailable",
                condition=models.Q(state="unavailable"),
            ),
        ),
    ]
