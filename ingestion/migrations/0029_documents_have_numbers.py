import django.contrib.postgres.fields
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False  # indexes that are built while mail comes in

    dependencies = [
        ("ingestion", "0028_alerts"),
    ]

    operations = [
        migrations.AddField(
            model_name="document",
            name="numbers",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.SmallIntegerField(),
                default=list,
                db_default=[],  # workers of the version before write documents meanwhile
                help_text="Of its month, its year and each two neighbouring words. [] before version 3.",
                size=None,
            ),
        ),
        AddIndexConcurrently(
            model_name="document",
            index=models.Index(
                condition=models.Q(("numbers", [])), fields=["source"], name="document_unnumbered"
            ),
        ),
        AddIndexConcurrently(
            model_name="document",
            index=GinIndex(fields=["words", "numbers"], name="document_search"),
        ),
        RemoveIndexConcurrently(model_name="document", name="document_words"),
    ]
