import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0018_index_of_labels'),
    ]

    operations = [
        migrations.CreateModel(
            name='AbsentMessage',
            fields=[
                ('pk', models.CompositePrimaryKey('mailbox_id', 'message_key', blank=True, editable=False, primary_key=True, serialize=False)),
                ('message_key', models.BigIntegerField()),
                ('thread', models.BigIntegerField()),
                ('mailbox', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='ingestion.mailbox')),
            ],
        ),
        migrations.AddField(
            model_name='pack',
            name='index_defects',
            field=models.IntegerField(db_default=0, help_text='How many of them were not indexed in whole.'),
        ),
        migrations.AddField(
            model_name='pack',
            name='index_offset',
            field=models.BigIntegerField(db_default=0, help_text='Up to which message they were, since all of them last were due.'),
        ),
        migrations.AlterField(
            model_name='document',
            name='version',
            field=models.SmallIntegerField(help_text="The INDEX_VERSION that made it; 0: without its bytes, which can't be read."),
        ),
        migrations.AlterField(
            model_name='pack',
            name='index_attempts',
            field=models.PositiveSmallIntegerField(db_default=0, help_text='How often in a row the pack could not be read.'),
        ),
        migrations.AlterField(
            model_name='pack',
            name='source',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='packs', to='ingestion.ingestionsource'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=models.Index(condition=models.Q(('version', 0)), fields=['source'], name='document_unread'),
        ),
        migrations.AddIndex(
            model_name='pack',
            index=models.Index(fields=['source', 'index_version', 'index_not_before'], name='pack_of_source'),
        ),
        migrations.AddIndex(
            model_name='absentmessage',
            index=models.Index(fields=['mailbox', 'thread'], name='absent_message_thread'),
        ),
    ]
