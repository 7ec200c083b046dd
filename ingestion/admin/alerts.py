"""The pages of alerts, and of the rules by which people are told of them. A rule is its owner's
alone to change: it tells what its owner may see."""

import re
import uuid
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from unfold import widgets
from unfold.decorators import action

from ingestion import queries
from ingestion.admin import display
from ingestion.admin.base import OwnersAdmin, ReadOnlyAdmin
from ingestion.models import Alert, AlertKind, AlertNotice, AlertRule, WebhookEndpoint
from ingestion.services.audit import Actor
from ingestion.services.operations.alerting import mail, rules, sending

_SHOWN_NOTICES = 20
_CHANGES = {
    AlertNotice.Change.BEGAN: ("began", "danger"),
    AlertNotice.Change.ENDED: ("over", "success"),
    AlertNotice.Change.HAPPENED: ("happened", "info"),
}
_TO = {
    AlertRule.Way.MAIL: "E-mail to",
    AlertRule.Way.WEBHOOK: "Webhook to",
    AlertRule.Way.PING: "Ping of",
}
_SEPARATORS = re.compile(r"[\s,;]+")


class State(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "Open"), ("over", "Over")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("open", "over"):
            return queryset
        return queryset.filter(ended_at__isnull=self.value() == "open")


class KindFilter(admin.SimpleListFilter):
    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind.value, kind.label) for kind in _lasting()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        known = self.value() in AlertKind.values
        return queryset.filter(kind=self.value()) if known else queryset


@admin.register(Alert)
class AlertAdmin(ReadOnlyAdmin):
    list_display = ("what", "words", "state", "began", "ended")
    list_filter = (State, KindFilter)
    search_fields = ("source__name__icontains",)
    search_help_text = "A part of a source's name, or an id"
    nothing_yet = "What needs somebody appears here, and stays until it is over."
    ordering = ("-began_at", "-id")
    sortable_by = ()
    fields = ("source", "kind_label", "message", "state", "began", "ended")
    readonly_fields = ("kind_label", "state", "began", "ended")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Alert]:
        assert request.user.is_authenticated
        return queries.visible_alerts(request.user)

    @admin.display(description="What")
    def what(self, alert: Alert) -> Any:
        name = alert.source.name if alert.source else "The service"
        return display.two_lines(name, self.kind_label(alert))

    @admin.display(description="Kind")
    def kind_label(self, alert: Alert) -> str:
        return AlertKind(alert.kind).label

    @admin.display(description="In words")
    def words(self, alert: Alert) -> Any:
        return display.clipped(alert.message, characters=200)

    @admin.display(description="State")
    def state(self, alert: Alert) -> Any:
        return (
            display.badge("over", "success") if alert.ended_at else display.badge("open", "danger")
        )

    @admin.display(description="Since")
    def began(self, alert: Alert) -> Any:
        return display.time_tag(alert.began_at)

    @admin.display(description="Over")
    def ended(self, alert: Alert) -> Any:
        return display.time_tag(alert.ended_at)


class AddressesField(forms.CharField):
    """Addresses of e-mail, with commas, semicolons, spaces or line ends between them."""

    widget = widgets.UnfoldAdminTextareaWidget({"rows": 2})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return [word for word in _SEPARATORS.split(super().to_python(value) or "") if word]


class RuleForm(forms.ModelForm):  # type: ignore[type-arg] # the stubs' generic fails at run time
    """`user`, whose sources are offered, is set by the page."""

    user: Any = None

    way = forms.ChoiceField(
        label="By",
        choices=AlertRule.Way.choices,
        initial=AlertRule.Way.MAIL,
        widget=widgets.UnfoldAdminRadioSelectWidget,
    )
    recipients = AddressesField(
        label="To", required=False, help_text="Addresses of e-mail, up to 20."
    )
    url = forms.CharField(
        label="URL",
        required=False,
        widget=widgets.UnfoldAdminTextInputWidget,
        help_text="Of a check at healthchecks.io or the like, with a period of a minute. It is sent"
        " a ping each minute while all is well, and /fail while something is open.",
    )
    webhook = forms.ModelChoiceField(
        label="Webhook",
        required=False,
        queryset=WebhookEndpoint.objects.none(),
        empty_label="Choose one",
        widget=widgets.UnfoldAdminSelectWidget,
    )
    kinds = forms.MultipleChoiceField(
        label="Of",
        required=False,
        choices=[(kind.value, kind.label) for kind in AlertKind],
        initial=[kind.value for kind in AlertKind if kind != AlertKind.IMPORT_FINISHED],
        widget=widgets.UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What lasts is told once, and again when it is over.",
    )
    which = forms.ChoiceField(
        label="Sources",
        choices=[("all", "All that I may see, and the service"), ("chosen", "Only these")],
        initial="all",
        widget=widgets.UnfoldAdminRadioSelectWidget,
    )
    sources = forms.TypedMultipleChoiceField(
        label="Which",
        required=False,
        coerce=uuid.UUID,
        widget=widgets.UnfoldAdminSelectMultipleWidget({"size": 8}),
        help_text="With Ctrl or Cmd several.",
    )
    digest = forms.ChoiceField(
        label="Digest",
        required=False,
        choices=AlertRule.Digest.choices,
        widget=widgets.UnfoldAdminRadioSelectWidget,
        help_text="At 6:00 UTC: what was archived, what needs somebody, failures and storage.",
    )

    class Meta:
        model = AlertRule
        fields = ("name", "enabled")
        help_texts = {"enabled": "Disabled, it tells nothing, and not later either."}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mine = queries.visible_sources(self.user).order_by("name", "pk")
        sources: Any = self.fields["sources"]
        sources.choices = [(str(pk), name) for pk, name in mine.values_list("pk", "name")]
        webhook: Any = self.fields["webhook"]
        webhook.queryset = WebhookEndpoint.objects.filter(owner=self.user)
        webhook.label_from_instance = lambda hook: hook.url
        webhook.help_text = display.html(
            'One of yours: <a href="{}">make another</a>. What happens together is one delivery,'
            " signed, and tried for three days.",
            reverse("admin:ingestion_webhookendpoint_add"),
        )
        if not settings.EMAIL_URL:
            self.fields["way"].help_text = mail.NOT_SET_UP
        rule = self.instance
        if rule.created_at is None or rule._state.adding:  # noqa: SLF001 - documented by Django
            return
        self.initial.update(
            way=rule.way,
            recipients=rule.recipients,
            url=rule.url,
            webhook=rule.webhook_id,
            kinds=rule.kinds,
            which="all" if rule.sources is None else "chosen",
            sources=[str(pk) for pk in rule.sources or ()],
            digest=rule.digest,
        )

    def given(self, typed: dict[str, Any]) -> dict[str, Any]:
        """Return what the service takes."""
        return {name: value for name, value in typed.items() if name in rules.FIELDS}

    def clean(self) -> dict[str, Any]:
        """Check it as the service does, so that each error stands at its field."""
        typed = super().clean() or {}
        if typed.get("which") != "chosen":
            typed["sources"] = None
        if typed.get("way") != AlertRule.Way.MAIL:
            typed["digest"] = ""  # the field is hidden
        for name, texts in rules.wrong_with(
            AlertRule(owner=self.user, **self.given(typed))
        ).items():
            if name not in self.errors:
                self.add_error(name, texts)
        return typed


@admin.register(AlertRule)
class AlertRuleAdmin(OwnersAdmin):
    form = RuleForm
    list_display = ("title", "owner", "state", "result", "sent")
    list_select_related = ("owner", "webhook")
    search_fields = ("name__icontains",)
    search_help_text = "A part of its name, or an id"
    nothing_yet = "Who is to be told when something needs somebody needs a rule."
    ordering = ("name", "id")
    sortable_by = ()
    readonly_fields = ("owner", "last_try", "sent", "next_digest", "notices")
    actions_submit_line = ("send_test",)

    class Media:
        js = ("ingestion/rule_form.js",)

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> Any:
        made = super().get_form(request, obj, change, **kwargs)
        return type("RuleForm", (made,), {"user": request.user})

    def get_fieldsets(self, request: HttpRequest, obj: AlertRule | None = None) -> Any:
        about = ("name",) if obj is None else ("name", "enabled")
        if obj is not None and not self.has_change_permission(request, obj):
            return [("Rule", {"fields": (*about, "owner", "last_try", "sent")})]
        found = [
            ("Rule", {"fields": about}),
            ("Who is told", {"fields": ("way", "recipients", "webhook", "url", "digest")}),
            ("Of what", {"fields": ("kinds", "which", "sources")}),
        ]
        if obj is not None:
            told = ("owner", "last_try", "sent", "next_digest", "notices")
            found.append(("What it told", {"fields": told}))
        return found

    # -- what is shown -----------------------------------------------------------------------------

    @admin.display(description="Rule")
    def title(self, rule: AlertRule) -> Any:
        to = f"{_TO[AlertRule.Way(rule.way)]} {rules.where(rule)}"
        digest = f"; digest {rule.get_digest_display().lower()}" if rule.digest else ""
        return display.two_lines(rule.name, display.clipped(to + digest, characters=100))

    @admin.display(description="State")
    def state(self, rule: AlertRule) -> Any:
        if not rule.enabled:
            return display.badge("off", "neutral")
        return (
            display.badge("failing", "danger") if rule.attempts else display.badge("on", "success")
        )

    @admin.display(description="Last try")
    def result(self, rule: AlertRule) -> Any:
        if rule.last_result_at is None:
            return "nothing was sent yet"
        return display.two_lines(rule.last_result, display.time_tag(rule.last_result_at))

    @admin.display(description="Last try")
    def last_try(self, rule: AlertRule) -> Any:
        """Say all of it, where there is room."""
        if rule.last_result_at is None:
            return "nothing was sent yet"
        when = display.time_tag(rule.last_result_at)
        return display.html('{} <span class="ing-subtle">{}</span>', rule.last_result, when)

    @admin.display(description="Last sent")
    def sent(self, rule: AlertRule) -> Any:
        return display.time_tag(rule.last_sent_at) if rule.last_sent_at else "never"

    @admin.display(description="Next digest")
    def next_digest(self, rule: AlertRule) -> Any:
        return display.full_time(rule.digest_at)

    @admin.display(description="Latest")
    def notices(self, rule: AlertRule) -> Any:
        shown = sending.visible(rule.owner).filter(rule=rule)
        latest = shown.select_related("source").order_by("-created_at", "-pk")
        lines = [
            (
                notice.source.name if notice.source else "The service",
                display.badge(*_CHANGES[AlertNotice.Change(notice.change)]),
                display.clipped(notice.message, characters=200),
                display.time_tag(notice.sent_at) if notice.sent_at else "not sent yet",
            )
            for notice in latest[:_SHOWN_NOTICES]
        ]
        if not lines:
            return "nothing yet"
        return display.history(lines)

    # -- what is done ------------------------------------------------------------------------------

    @action(description="Save and send a test", icon="send")  # type: ignore[untyped-decorator] # unfold's
    def send_test(self, request: HttpRequest, rule: AlertRule) -> None:
        sent = rules.test(rule, actor=Actor.of_request(request))
        level = messages.SUCCESS if sent.ok else messages.ERROR
        self.message_user(request, f"Test: {sent.text}", level)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        actor = Actor.of_request(request)
        if not change:
            assert request.user.is_authenticated
            made = rules.create(request.user, given=form.given(form.cleaned_data), actor=actor)
            obj.pk, obj.owner = made.pk, made.owner
            return
        rule = rules.change(
            AlertRule.objects.get(pk=obj.pk), given=form.given(form.cleaned_data), actor=actor
        )
        self.press_button(request, rule)

    def response_post_save_add(self, request: HttpRequest, obj: Any) -> HttpResponseRedirect:
        """Go to its page: the test is there."""
        return HttpResponseRedirect(display.page_of(obj))

    def delete_model(self, request: HttpRequest, obj: AlertRule) -> None:
        rules.delete(obj, actor=Actor.of_request(request))


def _lasting() -> list[AlertKind]:
    return [kind for kind in AlertKind if kind != AlertKind.IMPORT_FINISHED]
