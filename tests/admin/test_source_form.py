"""The form's fields follow a provider's description of its configuration; and of two people who
change a source, the second is told.
"""

import pytest
from django import forms
from django.contrib.auth.models import User
from django.test import Client

from ingestion.admin.source_form import field_name, form_class
from ingestion.services.audit import SYSTEM
from ingestion.services.sources import configuration
from tests.e2e.rows import a_source


def field(name: str) -> forms.Field:
    made: forms.Field = form_class().base_fields[field_name("microsoft", name)]
    return made


def test_a_field_with_choices_is_a_list_to_choose_from() -> None:
    cloud = field("cloud")
    page = cloud.widget.render("cloud", "usgov")
    assert page.count("<option") == 4
    assert '<option value="usgov" selected' in page


def test_a_pem_has_several_lines_and_a_private_one_is_never_shown() -> None:
    public, private = field("certificatePem"), field("certificatePrivateKeyPem")
    for shown in (public, private):
        assert isinstance(shown.widget, forms.Textarea)
    assert "canary" in public.widget.render("f", "canary")
    assert "canary" not in private.widget.render("f", "canary")


def test_one_line_fields_stay_one_line() -> None:
    assert not isinstance(field("tenantId").widget, forms.Textarea)


@pytest.mark.django_db
def test_what_somebody_else_changed_meanwhile_is_not_overwritten() -> None:
    root = User.objects.create_superuser("root")
    source = a_source(owner=root)
    client = Client()
    client.force_login(root)
    address = f"/admin/ingestion/ingestionsource/{source.pk}/change/"
    page = client.get(f"{address}?tab=settings").content.decode()
    assert f'value="{configuration.version(source)}"' in page
    shown = form_class()(instance=source)
    mine = {
        name: "on" if value is True else "\n".join(value) if isinstance(value, list) else value
        for name, field in shown.fields.items()
        if (value := shown.get_initial_for_field(field, name))
    }
    mine["name"] = "Mine"
    configuration.update(source, changes={"name": "Theirs"}, actor=SYSTEM)
    client.post(address, mine)
    source.refresh_from_db()
    assert source.name == "Theirs"
    told = client.get(address).content.decode()
    assert "Not saved. Somebody changed it since you read it." in told
    mine["version"] = configuration.version(source)
    client.post(address, mine)
    source.refresh_from_db()
    assert source.name == "Mine"
