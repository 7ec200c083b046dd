"""The form of a source: the fields of every provider and the options, from their own descriptions.

A new provider needs no code here: its fields come from its Config. What a person typed is checked
by the parsers that the service uses, so each error stands at its field. Secrets are write-only: the
page never holds one, and an empty field keeps what is stored.
"""

import copy
import datetime as dt
from collections.abc import Mapping
from typing import Any, ClassVar

from django import forms
from unfold import widgets

from connectors.config import Field
from connectors.registry import PROVIDERS, Provider
from ingestion import expiry
from ingestion.errors import InvalidInput
from ingestion.models import IngestionSource
from ingestion.services.sources import configuration
from ingestion.services.sources import options as source_options
from ingestion.services.sources.options import OptionField, Options
from ingestion.services.sources.ways import Way

#: A secret that may be longer than this gets several lines: one line would lose a PEM's newlines.
_ONE_LINE_CHARACTERS = 20_000
_OPTIONS = "options"


def field_name(group: str, name: str) -> str:
    """Return the form's name of a provider's field or of an option."""
    return f"{group}__{name}"


class LinesField(forms.CharField):
    """A list of texts, one in a line."""

    widget = widgets.UnfoldAdminTextareaWidget

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, (list, tuple)) else value

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value) or ""
        return [line.strip() for line in text.splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(list(initial or ()) != self.to_python(data))


class SourceForm(forms.ModelForm):  # type: ignore[type-arg] # not generic at run time
    """Base of the form; `form_class` adds the fields. After `is_valid`, `changes` is what to do."""

    use_required_attribute = False
    providers: ClassVar[Mapping[str, Provider]] = PROVIDERS
    #: Whose fields alone are asked for, where a way was chosen.
    way: ClassVar[Way | None] = None

    auto_import = forms.BooleanField(
        label="Import at once",
        required=False,
        widget=widgets.UnfoldBooleanSwitchWidget,
        help_text="Start the import as soon as the credentials are proven.",
    )

    #: Of the source that the page showed: what somebody else changed since is not overwritten.
    version = forms.CharField(required=False, widget=forms.HiddenInput)

    class Meta:
        model = IngestionSource
        fields = ("name", "provider")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: As its row has it: to clean a form writes what was typed into `instance`.
        self.stored: IngestionSource | None = None
        if not self.instance._state.adding:  # noqa: SLF001 - documented by Django
            self.stored = copy.copy(self.instance)
        #: What differs from the stored source, by the names that configuration.update takes.
        self.changes: dict[str, Any] = {}
        #: All that was typed, by the same names, once the form was cleaned.
        self.typed: dict[str, Any] = {}
        if self.way is not None:
            self.initial["provider"] = self.way.provider
            self.fields["provider"].widget = forms.HiddenInput()
        if self.stored is not None:
            self.initial["version"] = configuration.version(self.stored)
        self._fill_options()
        for slug, provider in self.providers.items():
            for field in provider.config.fields():
                if field_name(slug, field.name) in self.fields:
                    self._fill(slug, field)

    @property
    def _chosen(self) -> str:
        """The provider that the visitor chose, or that the source has."""
        return str(self["provider"].value() or "")

    def _fill(self, slug: str, field: Field) -> None:
        shown = self.fields[field_name(slug, field.name)]
        stored = self.stored if self.initial.get("provider") == slug else None
        is_set = stored is not None and field.secret and field.name in stored.secrets.names
        needed = field.required or (self.way is not None and field.name in self.way.needs)
        shown.required = needed and not is_set and (not self.is_bound or slug == self._chosen)
        if field.secret:
            if stored is not None:
                state = "Stored: leave empty to keep it." if is_set else "Not set."
                shown.help_text = f"{state} {field.help}".strip()
            return
        preset = self.way.preset if self.way else {}
        default = preset.get(field.name, field.default)
        value = stored.config.get(field.name, field.default) if stored else default
        self.initial[field_name(slug, field.name)] = value

    def _fill_options(self) -> None:
        stored = self.stored.options if self.stored else {}
        for name, value in Options.of(stored).values.items():
            self.initial[field_name(_OPTIONS, name)] = value

    def clean(self) -> dict[str, Any]:
        """Parse what was typed as the service will; put each error at its field."""
        cleaned = super().clean() or self.cleaned_data
        provider = cleaned.get("provider")
        given: dict[str, Any] = {}
        self.typed = given
        for name in ("name", "provider"):
            if name in cleaned:
                given[name] = cleaned[name]
        if provider:
            given["providerConfig"] = self._typed(provider)
            self._check(
                configuration.checked_config, provider, given["providerConfig"], self.stored
            )
        given["options"] = self._typed_options()
        self._check(source_options.parse, given["options"])
        if self.stored is None:
            self.changes = given
        else:
            self.changes = {key: given[key] for key in given if self._differs(key, provider)}
        return cleaned

    def _check(self, parse: Any, *given: Any) -> None:
        try:
            parse(*given)
        except InvalidInput as error:
            self.add_errors(error)

    def add_errors(self, error: InvalidInput) -> None:
        """Put the service's reasons at the fields they name, or above the form."""
        provider = self.providers.get(self._chosen)
        for path, reasons in error.errors.items():
            told = [provider.config.in_labels(text) if provider else text for text in reasons]
            group, _, name = path.partition(".")
            group = self.cleaned_data.get("provider", "") if group == "providerConfig" else group
            field = field_name(group, name) if name else group
            if field not in self.fields:
                if set(self.errors) & set(self.fields):
                    continue  # what is asked for comes first: it may mend this too
                self.add_error(None, [f"{path}: {text}" for text in told])
            elif field not in self.errors:
                self.add_error(field, told)

    def _differs(self, key: str, provider: str | None) -> bool:
        if key == "providerConfig":
            changed = any(name.startswith(f"{provider}__") for name in self.changed_data)
            return changed or "provider" in self.changed_data
        if key == _OPTIONS:
            return any(name.startswith(f"{_OPTIONS}__") for name in self.changed_data)
        return key in self.changed_data

    def _typed(self, slug: str) -> dict[str, Any]:
        """Return the providerConfig that was typed; fields left empty are left out."""
        typed: dict[str, Any] = dict(self.way.preset) if self.way else {}
        for field in self.providers[slug].config.fields():
            if field_name(slug, field.name) not in self.fields:
                continue
            value = self.cleaned_data.get(field_name(slug, field.name))
            if value not in (None, "") or not field.secret:
                typed[field.name] = value
        return typed

    def _typed_options(self) -> dict[str, Any]:
        typed: dict[str, Any] = {}
        for option in source_options.describe():
            value = self.cleaned_data.get(field_name(_OPTIONS, option.name))
            typed[option.name] = value.isoformat() if isinstance(value, dt.date) else value
        return typed


def form_class(
    providers: Mapping[str, Provider] = PROVIDERS, *, way: Way | None = None
) -> type[SourceForm]:
    """Make the form that has the fields of all `providers`, or of one way to connect alone."""
    if way is not None:
        providers = {way.provider: providers[way.provider]}
    fields: dict[str, Any] = {
        field_name(slug, field.name): _config_field(field)
        for slug, provider in providers.items()
        for field in provider.config.fields()
        if way is None or field.name in way.fields
    }
    for option in source_options.describe():
        fields[field_name(_OPTIONS, option.name)] = _option_field(option)
    return type("ProviderSourceForm", (SourceForm,), fields | {"providers": providers, "way": way})


def fieldsets(
    *, adding: bool, way: Way | None = None, providers: Mapping[str, Provider] = PROVIDERS
) -> list[tuple[str | None, dict[str, Any]]]:
    """Return the form's sections: the source, each provider's (one is shown), what to archive."""
    first = ("name", "provider", "auto_import" if adding else "version")
    sections: list[tuple[str | None, dict[str, Any]]] = [("Source", {"fields": first})]
    asked: list[str] = []
    if way is not None:
        asked = [field_name(way.provider, name) for name in way.fields]
        secret = {f.name for f in providers[way.provider].config.fields() if f.secret}
        after = next((n for n, name in enumerate(way.fields, 1) if name in secret), len(asked))
        asked[after:after] = [field_name(_OPTIONS, name) for name in way.options]
        sections.append(("Account", {"fields": asked}))
    for slug, provider in providers.items() if way is None else ():
        names = [field_name(slug, field.name) for field in provider.config.fields()]
        classes = ("provider-fields", f"provider-{slug}")
        sections.append((provider.label, {"fields": names, "classes": classes}))
    if way is None:
        asked = [field_name(_OPTIONS, expiry.OPTION)]
        sections.append(("Credentials", {"fields": asked}))
    names = [field_name(_OPTIONS, option.name) for option in source_options.describe()]
    names = [name for name in names if name not in asked]
    folded = ("collapse",) if way is not None else ()
    title = "What is archived, and how often"
    sections.append((title, {"fields": names, "classes": folded}))
    return sections


def _config_field(field: Field) -> forms.Field:
    about: dict[str, Any] = {"label": field.label, "help_text": field.help, "required": False}
    if field.type is bool:
        return forms.BooleanField(widget=widgets.UnfoldBooleanSwitchWidget, **about)
    if field.type is int:
        return forms.IntegerField(widget=widgets.UnfoldAdminIntegerFieldWidget, **about)
    if field.choices:
        names = [(name, name) for name in field.choices]
        return forms.ChoiceField(choices=names, widget=widgets.UnfoldAdminSelectWidget, **about)
    if not field.secret:
        widget = widgets.UnfoldAdminTextareaWidget if field.multiline else None
        return forms.CharField(widget=widget or widgets.UnfoldAdminTextInputWidget, **about)
    if field.multiline or field.max_length > _ONE_LINE_CHARACTERS:
        widget = _WriteOnlyTextarea({"data-file": field.label})
        return forms.CharField(widget=widget, strip=False, **about)
    return forms.CharField(
        widget=widgets.UnfoldAdminPasswordWidget({"autocomplete": "new-password"}),
        strip=False,
        **about,
    )


def _option_field(option: OptionField) -> forms.Field:
    about: dict[str, Any] = {"label": option.label, "help_text": option.help, "required": False}
    if option.type is bool:
        return forms.BooleanField(widget=widgets.UnfoldBooleanSwitchWidget, **about)
    if option.type is int:
        return forms.IntegerField(widget=widgets.UnfoldAdminIntegerFieldWidget, **about)
    if option.type is dt.date:
        return forms.DateField(widget=widgets.UnfoldAdminSingleDateWidget, **about)
    about["help_text"] = f"{option.help} One in a line."
    return LinesField(widget=widgets.UnfoldAdminTextareaWidget({"rows": 2}), **about)


class _WriteOnlyTextarea(widgets.UnfoldAdminTextareaWidget):  # type: ignore[misc] # untyped base
    """Several lines that are sent and never shown again."""

    def format_value(self, value: Any) -> None:
        return None
