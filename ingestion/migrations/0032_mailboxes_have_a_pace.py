from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("ingestion", "0031_references_are_checked_together")]

    operations = [
        migrations.AddField(
            "mailbox",
            "last_mail_at",
            models.DateTimeField(
                editable=False,
                help_text="When mail last came to the archive, or went: its pace follows from that.",
                null=True,
            ),
        ),
    ]
