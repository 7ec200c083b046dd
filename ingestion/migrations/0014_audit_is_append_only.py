from django.db import migrations

# What a user leaves behind when they are deleted is their name: user_id alone may become NULL.
_CREATE = """
CREATE FUNCTION ingestion_audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.user_id IS NULL THEN
        OLD.user_id := NULL;
        IF NEW IS NOT DISTINCT FROM OLD THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'The audit is append-only: % is refused.', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER audit_rows_are_kept BEFORE UPDATE OR DELETE ON ingestion_auditevent
    FOR EACH ROW EXECUTE FUNCTION ingestion_audit_is_kept();
CREATE TRIGGER audit_is_kept BEFORE TRUNCATE ON ingestion_auditevent
    FOR EACH STATEMENT EXECUTE FUNCTION ingestion_audit_is_kept();
"""
_DROP = """
DROP TRIGGER audit_is_kept ON ingestion_auditevent;
DROP TRIGGER audit_rows_are_kept ON ingestion_auditevent;
DROP FUNCTION ingestion_audit_is_kept();
"""


class Migration(migrations.Migration):

    dependencies = [
        ('ingestion', '0013_documents'),
    ]

    operations = [migrations.RunSQL(_CREATE, _DROP)]
