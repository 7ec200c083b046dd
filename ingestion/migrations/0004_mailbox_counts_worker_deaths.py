from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0003_drop_redundant_references'),
    ]

    operations = [
        migrations.AddField(
            model_name='mailbox',
            name='worker_deaths',
            field=models.PositiveIntegerField(default=0, editable=False, help_text='Workers that died under its lease, in a row.'),
        ),
    ]
