"""Brings back the index that keeps a source from having two unfinished runs.

0024 dropped the index of `Run.source`, and Django with it the one of the constraint
`one_unfinished_run_per_source`, which has the same column. It stayed in Django's own picture of the
tables, so that no later migration missed it. Of runs that came to be beside others one goes on.
"""

from django.db import migrations

BRING_BACK = """
LOCK TABLE ingestion_run IN SHARE ROW EXCLUSIVE MODE;

CREATE TEMPORARY TABLE one_run ON COMMIT DROP AS
SELECT DISTINCT ON (source_id) source_id, id FROM ingestion_run WHERE finished_at IS NULL
 ORDER BY source_id, kind = 'import' DESC, started_at, id;

UPDATE ingestion_mailbox m SET run_id = o.id
  FROM one_run o WHERE o.source_id = m.source_id AND m.run_id <> o.id;

UPDATE ingestion_run r
   SET finished_at = now(), status = 'stopped', message = 'Another run of the source went on.'
  FROM one_run o WHERE o.source_id = r.source_id AND r.id <> o.id AND r.finished_at IS NULL;

SET CONSTRAINTS ALL IMMEDIATE;
CREATE UNIQUE INDEX IF NOT EXISTS one_unfinished_run_per_source
    ON ingestion_run (source_id) WHERE finished_at IS NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("ingestion", "0033_packs_are_merged")]

    operations = [migrations.RunSQL(BRING_BACK, migrations.RunSQL.noop)]
