import django.contrib.postgres.fields
import django.contrib.postgres.indexes
import django.contrib.postgres.search
import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0012_run_was_asked_for_again'),
    ]

    operations = [
        migrations.CreateModel(
            name='Document',
            fields=[
                ('message', models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, primary_key=True, related_name='document', serialize=False, to='ingestion.message')),
                ('version', models.SmallIntegerField(help_text='The INDEX_VERSION that made it.')),
                ('date', models.DateTimeField(help_text='When it was received, else sent, else archived.')),
                ('words', django.contrib.postgres.search.SearchVectorField(help_text='What search finds it by.')),
                ('sender_address', models.TextField(blank=True, help_text='Of the From header, in lower case.')),
                ('message_key', models.BigIntegerField(help_text='Of the Message-ID.', null=True)),
                ('thread', models.BigIntegerField(help_text='The same for all messages of a conversation.')),
                ('preview', models.TextField(blank=True, help_text='How its text begins, on one line.')),
                ('fields', models.JSONField(default=dict, help_text='Header fields beside those of Message.')),
                ('attachments', models.JSONField(default=list, help_text='Of each: name, type, size, SHA-256.')),
                ('defects', django.contrib.postgres.fields.ArrayField(base_field=models.TextField(), default=list, help_text='What was not indexed, and why.', size=None)),
            ],
        ),
        migrations.AddField(
            model_name='pack',
            name='handed_out_at',
            field=models.DateTimeField(editable=False, help_text='When work on this row was last handed out.', null=True),
        ),
        migrations.AddField(
            model_name='pack',
            name='index_attempts',
            field=models.PositiveSmallIntegerField(db_default=0),
        ),
        migrations.AddField(
            model_name='pack',
            name='index_not_before',
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
        ),
        migrations.AddField(
            model_name='pack',
            name='index_version',
            field=models.SmallIntegerField(db_default=0, help_text='The INDEX_VERSION that all its messages were indexed by.'),
        ),
        migrations.AddIndex(
            model_name='pack',
            index=models.Index(fields=['index_version', 'index_not_before'], name='pack_index_due'),
        ),
        migrations.AddField(
            model_name='document',
            name='mailbox',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='ingestion.mailbox'),
        ),
        migrations.AddField(
            model_name='document',
            name='source',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='ingestion.ingestionsource'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=models.Index(fields=['date', 'message'], name='document_newest'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=models.Index(fields=['source', 'date', 'message'], name='document_of_source'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=models.Index(fields=['mailbox', 'date', 'message'], name='document_of_mailbox'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=models.Index(fields=['mailbox', 'thread'], name='document_thread'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=models.Index(fields=['mailbox', 'message_key'], name='document_message_key'),
        ),
        migrations.AddIndex(
            model_name='document',
            index=django.contrib.postgres.indexes.GinIndex(fields=['words'], name='document_words'),
        ),
    ]
