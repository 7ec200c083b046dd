import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0022_source_status_has_a_code'),
    ]

    operations = [
        migrations.CreateModel(
            name='ArchivedDay',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('day', models.DateField(help_text='In UTC.')),
                ('messages', models.BigIntegerField(default=0)),
                ('size_bytes', models.BigIntegerField(default=0, help_text='Sum of message sizes, unpacked.')),
            ],
            options={
                'ordering': ['day'],
            },
        ),
        migrations.AddField(
            model_name='archivedday',
            name='source',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='archived_days', to='ingestion.ingestionsource'),
        ),
        migrations.AddIndex(
            model_name='archivedday',
            index=models.Index(fields=['day'], name='archived_day'),
        ),
        migrations.AddConstraint(
            model_name='archivedday',
            constraint=models.UniqueConstraint(fields=('source', 'day'), name='archived_day_identity'),
        ),
    ]
