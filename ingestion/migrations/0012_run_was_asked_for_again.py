from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0011_rows_are_handed_out'),
    ]

    operations = [
        migrations.AddField(
            model_name='run',
            name='asked_at',
            field=models.DateTimeField(help_text='When somebody last asked for a sync while this run was under way.', null=True),
        ),
    ]
