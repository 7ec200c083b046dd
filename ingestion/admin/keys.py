"""The pages of API keys: made here, shown once, revoked by deletion."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.cache import add_never_cache_headers
from unfold import widgets

from ingestion.admin import display
from ingestion.admin.base import AuditedAdmin
from ingestion.models import ApiKey
from ingestion.services.audit import Actor
from ingestion.services.operations import api_keys

_SCOPES = {
    "read": "sees sources, their progress and lists of mail",
    "write": "makes, changes, starts and deletes sources",
    "export": "takes the mail itself out",
}


class ApiKeyForm(forms.ModelForm):  # type: ignore[type-arg] # the stubs' generic fails at run time
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope.capitalize()}: {_SCOPES[scope]}") for scope in ApiKey.SCOPES],
        initial=["read"],
        widget=widgets.UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Give only what the program needs.",
    )

    class Meta:
        model = ApiKey
        fields = ("user", "name", "scopes", "expiry")
        labels = {"expiry": "Expires"}
        help_texts = {
            "user": "The key may do what this user may, within its scopes.",
            "name": "Which program, and where it runs. Shown in the audit.",
            "expiry": "UTC. Empty: never.",
        }

    def clean_expiry(self) -> Any:
        expiry = self.cleaned_data["expiry"]
        if expiry is not None and expiry <= timezone.now():
            raise forms.ValidationError("Must be in the future. Leave it empty for no expiry.")
        return expiry


@admin.register(ApiKey)
class ApiKeyAdmin(AuditedAdmin):
    form = ApiKeyForm
    list_display = ("title", "user", "scope_names", "last_used", "expires", "made")
    list_select_related = ("user",)
    search_fields = ("name__istartswith", "user__username__istartswith")
    search_help_text = "Start of a name or a user"
    nothing_yet = "A program needs one to use the API."
    search_by_id = False
    autocomplete_fields = ("user",)
    ordering = ("-created",)

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False  # a key is made and revoked, never edited

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        if obj is None:
            whose = ("user",) if self._makes_for_others(request) else ()
            return [("New API key", {"fields": (*whose, "name", "scopes", "expiry")})]
        shown = ("name", "user", "scope_names", "start", "last_used", "expires", "made")
        return [("API key", {"fields": shown})]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        return ("scope_names", "start", "last_used", "expires", "made") if obj else ()

    def get_changeform_initial_data(self, request: HttpRequest) -> Any:
        given = {"user": request.user.pk, "expiry": timezone.now() + api_keys.LIFETIME}
        return {**given, **super().get_changeform_initial_data(request)}

    def _makes_for_others(self, request: HttpRequest) -> bool:
        """As `operations.api_keys` decides."""
        return bool(request.user.is_superuser)

    @admin.display(description="Name", ordering="name")
    def title(self, key: ApiKey) -> Any:
        return display.two_lines(key.name, f"begins with {key.token_key}")

    @admin.display(description="Scopes")
    def scope_names(self, key: ApiKey) -> str:
        return ", ".join(key.scopes) or display.NOTHING

    @admin.display(description="Begins with")
    def start(self, key: ApiKey) -> str:
        return f"{key.token_key}…"

    @admin.display(description="Last used", ordering="last_used_at")
    def last_used(self, key: ApiKey) -> Any:
        return display.time_tag(key.last_used_at) if key.last_used_at else "never"

    @admin.display(description="Expires", ordering="expiry")
    def expires(self, key: ApiKey) -> Any:
        if key.expiry is None:
            return "never"
        if key.expiry <= timezone.now():
            return display.badge("expired", "neutral", title=display.clock(key.expiry))
        return display.time_tag(key.expiry)

    @admin.display(description="Made", ordering="created")
    def made(self, key: ApiKey) -> Any:
        return display.time_tag(key.created)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        given = form.cleaned_data
        made, key = api_keys.create(
            given.get("user", request.user),
            name=given["name"],
            scopes=given["scopes"],
            expires_at=given["expiry"],
            actor=Actor.of_request(request),
        )
        obj.pk = made.pk
        obj.refresh_from_db()
        obj.plain_key = key  # lives as long as this request

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the key, this one time: a redirect would have to keep it somewhere."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "API key",
            "key": obj,
            "plain_key": obj.plain_key,
        }
        response = TemplateResponse(request, "admin/ingestion/api_key_created.html", context)
        add_never_cache_headers(response)
        return response

    def delete_model(self, request: HttpRequest, obj: ApiKey) -> None:
        api_keys.revoke(obj, actor=Actor.of_request(request))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for key in queryset:
            self.delete_model(request, key)
        self.message_user(
            request, "Programs that used them are refused from now on.", messages.INFO
        )
