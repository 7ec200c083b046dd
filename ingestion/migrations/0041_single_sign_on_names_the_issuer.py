"""Whom a provider named before is known by its issuer too, which the last sign-in told.

The rows of before stay: the version before, which may still run, finds people by them.
"""

from django.db import migrations

_COPIES = """
INSERT INTO socialaccount_socialaccount
       (provider, uid, last_login, date_joined, extra_data, user_id)
SELECT extra_data->'id_token'->>'iss', uid, last_login, date_joined, extra_data, user_id
  FROM socialaccount_socialaccount
 WHERE provider = 'sso' AND extra_data->'id_token'->>'iss' IS NOT NULL
    ON CONFLICT DO NOTHING
"""


class Migration(migrations.Migration):

    dependencies = [
        ("ingestion", "0040_webhooks_whose_server_is_silent"),
        ("socialaccount", "0006_alter_socialaccount_extra_data"),
    ]

    operations = [migrations.RunSQL(_COPIES, migrations.RunSQL.noop)]
