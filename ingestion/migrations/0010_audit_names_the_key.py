from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("ingestion", "0009_archive_has_a_mark"),
    ]

    operations = [
        migrations.AddField(
            model_name="apikey",
            name="last_used_at",
            field=models.DateTimeField(
                editable=False, help_text="To within a minute.", null=True
            ),
        ),
        migrations.AddField(
            model_name="auditevent",
            name="key",
            field=models.CharField(
                blank=True,
                default="",
                help_text="The API key that acted. Kept after it is revoked.",
                max_length=150,
            ),
        ),
    ]
