"""The form's fields follow a provider's description of its configuration."""

from django import forms

from ingestion.admin.source_form import field_name, form_class


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
