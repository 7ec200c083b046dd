"""Up to when a mailbox is archived, which is not when the sync of it ended."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("ingestion", "0037_index_of_unavailable_mailboxes")]

    operations = [
        migrations.AddField(
            model_name="mailbox",
            name="archived_up_to",
            field=models.DateTimeField(
                null=True,
                editable=False,
                help_text="What came before is archived: when the last sync that succeeded began.",
            ),
        ),
        migrations.AlterField(
            model_name="folder",
            name="followed_at",
            field=models.DateTimeField(
                null=True,
                help_text="When the slice began that was done with it, before others of the mailbox were.",
            ),
        ),
    ]
