"""What is sent of a draft at Microsoft has its id and other bytes: it is no stable id."""

from django.db import migrations

_DRAFTS = r"""
UPDATE ingestion_placement p SET stable_id = ''
  FROM ingestion_mailbox m JOIN ingestion_ingestionsource s ON s.id = m.source_id
 WHERE m.id = p.mailbox_id AND s.provider = 'microsoft'
   AND p.labels @> ARRAY['\Draft'] AND p.stable_id <> ''
"""


class Migration(migrations.Migration):

    dependencies = [("ingestion", "0038_mailboxes_are_archived_up_to")]

    operations = [migrations.RunSQL(_DRAFTS, migrations.RunSQL.noop)]
