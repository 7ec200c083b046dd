"""Until when a webhook is sent nothing, as its server did not answer."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [("ingestion", "0039_drafts_have_no_stable_id")]

    operations = [
        migrations.AddField(
            model_name="webhookendpoint",
            name="silent_until",
            field=models.DateTimeField(
                null=True,
                editable=False,
                help_text="It did not answer: nothing is sent to it before.",
            ),
        ),
    ]
