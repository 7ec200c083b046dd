from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("ingestion", "0007_folder_is_listed_anew"),
    ]

    operations = [
        migrations.AddField(
            model_name="ingestionsource",
            name="credentials_version",
            field=models.PositiveIntegerField(
                default=0,
                editable=False,
                help_text="Raised whenever credentials are to be proven anew.",
            ),
        ),
        migrations.AddField(
            model_name="run",
            name="last_error_code",
            field=models.CharField(blank=True, max_length=64),
        ),
    ]
