from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    atomic = False  # indexes that are built while packs come in

    dependencies = [
        ("ingestion", "0032_mailboxes_have_a_pace"),
    ]

    operations = [
        migrations.AddField(
            model_name="pack",
            name="replaced_at",
            field=models.DateTimeField(
                editable=False,
                help_text="When another pack took its messages: its file goes, then this row.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="pack",
            name="left_apart",
            field=models.BooleanField(
                db_default=False,
                help_text="Whether it is never merged: it is damaged, or other than its rows say.",
            ),
        ),
        migrations.AlterField(
            model_name="pack",
            name="created_at",
            field=models.DateTimeField(
                db_default=Now(),
                help_text="When the youngest of its messages was archived.",
            ),
        ),
        AddIndexConcurrently(
            model_name="pack",
            index=models.Index(
                condition=models.Q(
                    ("left_apart", False), ("replaced_at", None), ("size_bytes__lt", 4000000)
                ),
                fields=["source", "created_at"],
                name="pack_small",
            ),
        ),
        AddIndexConcurrently(
            model_name="pack",
            index=models.Index(
                condition=models.Q(("replaced_at__isnull", False)),
                fields=["source"],
                name="pack_replaced",
            ),
        ),
    ]
