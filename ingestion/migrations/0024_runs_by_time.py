import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0023_archived_days'),
    ]

    operations = [
        migrations.AlterField(
            model_name='run',
            name='source',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='runs', to='ingestion.ingestionsource'),
        ),
        migrations.AddIndex(
            model_name='run',
            index=models.Index(fields=['started_at', 'id'], name='run_latest'),
        ),
        migrations.AddIndex(
            model_name='run',
            index=models.Index(fields=['source', 'started_at', 'id'], name='run_latest_of_source'),
        ),
    ]
