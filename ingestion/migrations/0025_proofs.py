import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0024_runs_by_time'),
    ]

    operations = [
        migrations.CreateModel(
            name='Proof',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('verification', 'Read back and compared with its SHA-256'), ('reconciliation', 'Compared with the provider, message by message')], max_length=16)),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), help_text='When it was done.')),
                ('messages', models.BigIntegerField(help_text='Looked at.')),
                ('problems', models.BigIntegerField(help_text='Of any kind; 0: all is well.')),
            ],
            options={
                'ordering': ['-at', '-id'],
            },
        ),
        migrations.AddField(
            model_name='proof',
            name='source',
            field=models.ForeignKey(help_text='Null: the whole archive.', null=True, on_delete=django.db.models.deletion.CASCADE, related_name='proofs', to='ingestion.ingestionsource'),
        ),
        migrations.AddIndex(
            model_name='proof',
            index=models.Index(fields=['kind', '-at'], name='proof_latest'),
        ),
    ]
