from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0006_folder_may_fail_by_itself'),
    ]

    operations = [
        migrations.AddField(
            model_name='folder',
            name='list_anew',
            field=models.CharField(blank=True, choices=[('', 'No'), ('by_id', 'Recognising what is archived by its ids'), ('by_bytes', 'Recognising by bytes alone: the ids may name other messages now')], help_text='Whether the next sync lists the folder from the beginning.', max_length=8),
        ),
        migrations.AddField(
            model_name='folder',
            name='listed_since',
            field=models.DateField(help_text='The option "since" that the cursor holds for: null for all mail.', null=True),
        ),
        migrations.AddField(
            model_name='folder',
            name='followed_at',
            field=models.DateTimeField(help_text='When it was done with, while others of the mailbox were not.', null=True),
        ),
        migrations.AddField(
            model_name='folder',
            name='missing_since',
            field=models.DateTimeField(help_text='No listing had it since.', null=True),
        ),
        migrations.AddField(
            model_name='mailbox',
            name='messages_expected',
            field=models.BigIntegerField(default=0, editable=False, help_text="Of the run's total, what is not done yet."),
        ),
        migrations.RunSQL(
            """UPDATE ingestion_folder f SET listed_since = (s.options->>'since')::date
                 FROM ingestion_mailbox m JOIN ingestion_ingestionsource s ON s.id = m.source_id
                WHERE m.id = f.mailbox_id AND s.options->>'since' IS NOT NULL""",
            migrations.RunSQL.noop,
        ),
    ]
