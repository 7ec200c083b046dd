from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0010_audit_names_the_key'),
    ]

    operations = [
        migrations.RenameField('ingestionsource', 'rung_at', 'handed_out_at'),
        migrations.RenameField('run', 'rung_at', 'handed_out_at'),
        migrations.RenameField('mailbox', 'rung_at', 'handed_out_at'),
        migrations.AlterField(
            model_name='ingestionsource',
            name='handed_out_at',
            field=models.DateTimeField(editable=False, help_text='When work on this row was last handed out.', null=True),
        ),
    ]
