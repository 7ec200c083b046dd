"""The pages of webhooks: who is told of events, and what came of it. Each is its owner's alone to
change: another address would be told of the owner's sources."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.cache import add_never_cache_headers
from unfold import widgets
from unfold.decorators import action

from ingestion.admin import display
from ingestion.admin.base import OwnersAdmin
from ingestion.models import WebhookDelivery, WebhookEndpoint
from ingestion.models.webhook import Event
from ingestion.services.audit import Actor
from ingestion.services.operations import posting, webhooks

_SHOWN_DELIVERIES = 20
_OUTCOMES = {
    WebhookDelivery.Outcome.PENDING: ("to be delivered", "primary"),
    WebhookDelivery.Outcome.DELIVERED: ("delivered", "success"),
    WebhookDelivery.Outcome.GIVEN_UP: ("given up", "danger"),
}


class WebhookForm(forms.ModelForm):  # type: ignore[type-arg] # the stubs' generic fails at run time
    url = forms.CharField(
        label="Address",
        widget=widgets.UnfoldAdminTextInputWidget,
        help_text="https://, or http:// inside a network that you trust.",
    )
    events = forms.MultipleChoiceField(
        required=False,
        choices=[(event.value, f"{event.value}: {event.label}") for event in Event],
        initial=[Event.SOURCE_ERROR, Event.ARCHIVE_CORRUPT],
        widget=widgets.UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="Of your sources; staff who may see all sources are told of all. With none, it"
        " is told by alert rules alone.",
    )

    class Meta:
        model = WebhookEndpoint
        fields = ("url", "events", "enabled")
        help_texts = {"enabled": "Disabled, it is told nothing, and not later either."}

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        for name, texts in webhooks.wrong_with(
            given.get("url", ""), given.get("events", ())
        ).items():
            if name not in self.errors:
                self.add_error(name, texts)
        return given


@admin.register(WebhookEndpoint)
class WebhookAdmin(OwnersAdmin):
    form = WebhookForm
    list_display = ("title", "owner", "state", "result", "delivered")
    list_select_related = ("owner",)
    search_fields = ("owner__username__istartswith",)
    search_help_text = "Start of a user's name, or an id"
    nothing_yet = "A server that is told of events needs one."
    ordering = ("-created_at", "-id")
    sortable_by = ()
    readonly_fields = ("owner", "host", "result", "delivered", "deliveries")
    actions_submit_line = ("send_test", "make_new_secret")

    def get_fieldsets(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> Any:
        if obj is None:
            return [("New webhook", {"fields": ("url", "events")})]
        told = ("owner", "result", "delivered", "deliveries")
        address = "url" if obj.owner_id == request.user.pk else "host"
        return [
            ("Webhook", {"fields": (address, "events", "enabled")}),
            ("Deliveries", {"fields": told}),
        ]

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).annotate(is_mine=Q(owner=request.user.pk))

    # -- what is shown -----------------------------------------------------------------------------

    @admin.display(description="Webhook")
    def title(self, row: Any) -> Any:
        """The address is its owner's alone to see: it may have a token in it."""
        return display.two_lines(
            display.clipped(row.url, characters=60) if row.is_mine else self.host(row),
            ", ".join(row.events) or "told by alert rules alone",
        )

    @admin.display(description="Host")
    def host(self, row: WebhookEndpoint) -> str:
        return posting.host(row.url)

    @admin.display(description="State")
    def state(self, row: WebhookEndpoint) -> Any:
        return (
            display.badge("enabled", "success") if row.enabled else display.badge("off", "neutral")
        )

    @admin.display(description="Last try")
    def result(self, row: WebhookEndpoint) -> Any:
        if row.last_result_at is None:
            return "nothing was sent yet"
        return display.two_lines(row.last_result, display.time_tag(row.last_result_at))

    @admin.display(description="Last delivered")
    def delivered(self, row: WebhookEndpoint) -> Any:
        return display.time_tag(row.last_delivered_at) if row.last_delivered_at else "never"

    @admin.display(description="Latest")
    def deliveries(self, row: WebhookEndpoint) -> Any:
        latest = row.deliveries.all()[:_SHOWN_DELIVERIES]
        lines = [
            (
                display.two_lines(
                    one.event, f"{one.attempts} {'try' if one.attempts == 1 else 'tries'}"
                ),
                display.badge(*_OUTCOMES[WebhookDelivery.Outcome(one.outcome)]),
                one.result or display.NOTHING,
                display.time_tag(one.created_at),
            )
            for one in latest
        ]
        if not lines:
            return "none yet"
        return display.history(lines)

    # -- what is done ------------------------------------------------------------------------------

    @action(description="Save and send a test", icon="send")  # type: ignore[untyped-decorator] # unfold's
    def send_test(self, request: HttpRequest, row: WebhookEndpoint) -> None:
        webhooks.test_soon(row, actor=Actor.of_request(request))
        text = "A test is on its way. Load this page again in a few seconds: what came of it."
        self.message_user(request, text, messages.INFO)

    @action(description="Save and make a new secret", icon="key")  # type: ignore[untyped-decorator] # unfold's
    def make_new_secret(self, request: HttpRequest, row: WebhookEndpoint) -> None:
        vars(row)["secret"] = webhooks.rotate_secret(row, actor=Actor.of_request(request))

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        given, actor = form.cleaned_data, Actor.of_request(request)
        if change:
            row = WebhookEndpoint.objects.get(pk=obj.pk)  # the form has changed `obj` already
            webhooks.change(row, **given, actor=actor)
            self.press_button(request, obj)
            return
        assert request.user.is_authenticated
        made, secret = webhooks.create(
            request.user, url=given["url"], events=given["events"], actor=actor
        )
        obj.pk, obj.owner = made.pk, made.owner
        vars(obj)["secret"] = secret  # lives as long as this request

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self._shown_once(request, obj)

    def response_change(self, request: HttpRequest, obj: Any) -> HttpResponse:
        if "secret" in vars(obj):
            return self._shown_once(request, obj)
        if any("send_test" in name for name in request.POST):
            return self.response_post_save_change(request, obj)
        return super().response_change(request, obj)

    def _shown_once(self, request: HttpRequest, row: WebhookEndpoint) -> HttpResponse:
        """Show the secret, this one time: a redirect would have to keep it somewhere."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Secret of the webhook",
            "webhook": row,
            "secret": vars(row)["secret"],
        }
        response = TemplateResponse(request, "admin/ingestion/webhook_secret.html", context)
        add_never_cache_headers(response)
        return response

    def delete_model(self, request: HttpRequest, obj: WebhookEndpoint) -> None:
        webhooks.delete(obj, actor=Actor.of_request(request))
