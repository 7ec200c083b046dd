"""The pages of sources: the list with live progress, the form, the verbs, deletion."""

import contextlib
import uuid
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.cache import add_never_cache_headers
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST
from rest_framework.exceptions import Throttled

from ingestion import dispatching, freshness
from ingestion.admin import (
    account_list,
    connecting,
    consent_link,
    deleting,
    display,
    live,
    overview,
    reports,
    source_form,
    typed_code,
    verbs,
)
from ingestion.admin.base import AuditedAdmin, as_uuid
from ingestion.admin.filters import SourceQuestion
from ingestion.errors import ServiceError
from ingestion.models import IngestionSource
from ingestion.places import FULL
from ingestion.services.audit import Actor
from ingestion.services.sources import configuration, consent, same_account, ways


def _place(verb: verbs.Verb, request: HttpRequest) -> contextlib.AbstractContextManager[None]:
    """Hold a place for a check, which waits for a server as a test does. Raises Throttled."""
    assert request.user.pk is not None  # the admin's
    if verb.slug != "verify":
        return contextlib.nullcontext()
    return connecting.trials.place(request.user.pk)


def _live(source: Any, name: str, *, classes: str = "") -> SafeString:
    return display.html(
        '<span class="{}" data-live-source="{}" data-live="{}">{}</span>',
        classes,
        source.pk,
        name,
        live.texts(source)[name],
    )


def _bulk(verb: verbs.Verb) -> Any:
    @admin.action(description=verb.label, permissions=["change"])
    def act(page: "SourceAdmin", request: HttpRequest, chosen: QuerySet[IngestionSource]) -> Any:
        return page.perform_on(request, verb, list(chosen))

    act.__name__ = f"{verb.slug}_selected"
    return act


def _way(request: HttpRequest) -> ways.Way | None:
    return ways.get(request.GET.get("way", ""))


@admin.register(IngestionSource)
class SourceAdmin(AuditedAdmin):
    list_display = (
        "title",
        "state",
        "progress",
        "archived",
        "failures",
        "archived_up_to",
        "next_sync",
    )
    list_filter = (SourceQuestion, "status", "provider")
    list_per_page = 25  # each of them is live
    search_fields = ("name",)
    search_help_text = "Name or id"
    nothing_yet = "An account, or a whole domain, to copy and follow."
    actions = (*(_bulk(verb) for verb in verbs.VERBS.values()), "delete_selected")
    ordering = ("name", "id")
    list_before_template = "admin/ingestion/source_questions.html"
    change_form_template = "admin/ingestion/source/page.html"
    change_form_before_template = "admin/ingestion/way_steps.html"
    change_form_after_template = "admin/ingestion/source_test.html"
    warn_unsaved_form = True
    list_fullwidth = True

    class Media:
        js = ("ingestion/lines.js", "ingestion/source_form.js")

    # -- reading ---------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[IngestionSource]:
        return super().get_queryset(request).filter(deleted_at=None).select_related("owner")

    def read(self, rows: QuerySet[IngestionSource]) -> list[IngestionSource]:
        return live.read(rows)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        questions = SourceQuestion.links(request)
        return super().changelist_view(request, {"questions": questions, **(extra_context or {})})

    @admin.display(description="Source", ordering="name")
    def title(self, source: IngestionSource) -> SafeString:
        about = display.html("{}, {}", source.get_provider_display(), _live(source, "ofMailboxes"))
        return display.two_lines(source.name, about)

    @admin.display(description="Status", ordering="status")
    def state(self, source: IngestionSource) -> SafeString:
        return display.source_badge(source)

    @admin.display(description="Now")
    def progress(self, source: IngestionSource) -> SafeString:
        bar = overview.progress_bar(source, live.current_run(source))
        return display.html("{}{}", bar, _live(source, "now", classes="ing-said"))

    @admin.display(description="Messages", ordering="message_count")
    def archived(self, source: IngestionSource) -> SafeString:
        return display.two_lines(
            _live(source, "messages", classes="ing-number"),
            _live(source, "archived", classes="ing-number"),
        )

    @admin.display(description="Failed")
    def failures(self, source: Any) -> SafeString:
        text = _live(source, "failures", classes="ing-number")
        if not source.failure_total:
            return text
        url = display.address("admin:ingestion_failedmessage_changelist")
        return display.link(f"{url}?mailbox__source__id__exact={source.pk}", text)

    @admin.display(description="Archived up to", ordering=freshness.archived_up_to())
    def archived_up_to(self, source: IngestionSource) -> SafeString:
        return display.two_lines(
            _live(source, "archivedUpTo", classes="ing-nowrap"),
            _live(source, "tried", classes="ing-nowrap"),
        )

    @admin.display(description="Next sync", ordering="next_sync_at")
    def next_sync(self, source: IngestionSource) -> SafeString:
        return _live(source, "nextSync", classes="ing-nowrap")

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("report/", view(never_cache(self.report_view)), name="ingestion_source_report"),
            path("live/", view(never_cache(self.live_view)), name="ingestion_source_live"),
            *account_list.urls(self),
            path("try/", view(require_POST(self.trial_view)), name="ingestion_source_try"),
            path(
                "<uuid:pk>/try/", view(require_POST(self.trial_view)), name="ingestion_source_trial"
            ),
            path("<uuid:pk>/do/", view(require_POST(self.verb_view)), name="ingestion_source_verb"),
            path(
                "<uuid:pk>/sign-in/",
                view(require_POST(self.sign_in_view)),
                name="ingestion_source_sign_in",
            ),
            path(
                "<uuid:pk>/sign-in-with-a-code/",
                view(require_POST(self.type_in_code_view)),
                name="ingestion_source_type_in_code",
            ),
            path(
                "<uuid:pk>/consent-link/",
                view(require_POST(self.consent_link_view)),
                name="ingestion_source_consent_link",
            ),
            *super().get_urls(),
        ]

    def live_view(self, request: HttpRequest) -> JsonResponse:
        """Answer the state of the sources `?id=…&id=…`, for the page's script."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        ids = [found for text in request.GET.getlist("id") if (found := as_uuid(text))]
        visible = IngestionSource.objects.filter(deleted_at=None)
        return JsonResponse({"sources": live.states(visible, ids)})

    # -- verbs -----------------------------------------------------------------------------

    def verb_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Do what the button of a source's page says, and go back to the page."""
        source = self.get_queryset(request).filter(pk=pk).first()
        verb = verbs.VERBS.get(request.POST.get("verb", ""))
        if source is None or verb is None:
            raise Http404
        if not self.has_change_permission(request, source):
            raise PermissionDenied
        try:
            with _place(verb, request):
                outcome = verbs.perform(verb, source, actor=Actor.of_request(request))
        except Throttled:
            outcome = verbs.Outcome(source, ok=False, text=FULL)
        level = messages.SUCCESS if outcome.ok else messages.ERROR
        self.message_user(request, outcome.text, level)
        return HttpResponseRedirect(display.page_of(source))

    def sign_in_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Send the person to the provider; api.consent takes them back to the source's page."""
        source = self._to_be_changed(request, pk)
        user: Any = request.user  # staff, so no AnonymousUser
        try:
            url = consent.begin(source, by=user, redirect_uri=consent.callback_url(request))
        except ServiceError as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return HttpResponseRedirect(display.page_of(source))
        return self._going_on(request, source, url)

    def _going_on(self, request: HttpRequest, source: IngestionSource, url: str) -> HttpResponse:
        """Answer a page that goes on by itself. Not a redirect: browsers count that as the form's
        own target, which our policy (`ingestion.middleware`) confines to this site."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Sign in",
            "source": source,
            "provider": source.get_provider_display(),
            "address": url,
        }
        page = TemplateResponse(
            request, "admin/ingestion/going_on.html", context, headers={"Refresh": f"0; url={url}"}
        )
        add_never_cache_headers(page)
        return page

    def type_in_code_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Show a code that the person types in at the provider, on any device."""
        source = self._to_be_changed(request, pk)
        context = {**self.admin_site.each_context(request), "opts": self.opts}
        return typed_code.answer(request, source, context)

    def consent_link_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Make a link for the owner of the account, or revoke it."""
        source = self._to_be_changed(request, pk)
        context = {**self.admin_site.each_context(request), "opts": self.opts}
        return consent_link.answer(request, source, context)

    def _to_be_changed(self, request: HttpRequest, pk: Any) -> IngestionSource:
        """Return a source that the user may change. Raises Http404, PermissionDenied."""
        source = self.get_queryset(request).filter(pk=pk).first()
        if source is None:
            raise Http404
        if not self.has_change_permission(request, source):
            raise PermissionDenied
        return source

    def perform_on(
        self, request: HttpRequest, verb: verbs.Verb, chosen: list[IngestionSource]
    ) -> HttpResponse | None:
        """Do a verb to many sources and say what came of each."""
        if verb.slug == "verify" and len(chosen) > verbs.MAX_CHECKS:
            self.message_user(
                request,
                f"Verify asks each provider, so it takes at most {verbs.MAX_CHECKS} sources at a"
                f" time. {len(chosen):,} are selected: select fewer.",
                messages.ERROR,
            )
            return None
        try:
            with _place(verb, request):
                outcomes = verbs.perform_all(verb, chosen, actor=Actor.of_request(request))
        except Throttled:
            self.message_user(request, FULL, messages.ERROR)
            return None
        reports.keep(request, verb.label, outcomes)
        return HttpResponseRedirect(reverse("admin:ingestion_source_report"))

    # -- the form --------------------------------------------------------------------------

    def get_form(
        self,
        request: HttpRequest,
        obj: IngestionSource | None = None,
        change: bool = False,
        **kwargs: Any,
    ) -> Any:
        made = source_form.form_class(way=None if obj else _way(request))
        wrong = made.base_fields.get(request.GET.get("field", ""))  # what "Edit host" leads to
        if wrong is not None:
            wrong.widget.attrs["autofocus"] = True
        return super().get_form(request, obj, change, form=made, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: IngestionSource | None = None) -> Any:
        if obj is not None and not self.has_change_permission(request, obj):
            return []  # the overview above says it all
        return source_form.fieldsets(adding=obj is None, way=None if obj else _way(request))

    def add_view(
        self,
        request: HttpRequest,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Ask for the way first; `?way=any` is the form with all fields of all providers."""
        way = _way(request)
        if request.method == "GET" and way is None and request.GET.get("way") != "any":
            if not self.has_add_permission(request):
                raise PermissionDenied
            return connecting.tiles(request, self.admin_site.each_context(request))
        context: dict[str, Any] = {"title": f"Add a source: {way.title}" if way else "Add a source"}
        if way is not None:
            back = consent.callback_url(request)
            context |= {"way": way, "steps": ways.steps(way, redirect_uri=back)}
        return super().add_view(request, form_url, context | (extra_context or {}))

    def trial_view(self, request: HttpRequest, pk: uuid.UUID | None = None) -> Any:
        """Try what the form holds, of a new source or of the one that it changes."""
        source = self.get_queryset(request).filter(pk=pk).first() if pk else None
        if pk is not None and source is None:
            raise Http404
        allowed = self.has_change_permission(request, source) if pk else None
        if not (self.has_add_permission(request) if allowed is None else allowed):
            raise PermissionDenied
        made = self.get_form(request, source, change=source is not None)
        user: Any = request.user  # staff, so no AnonymousUser
        return connecting.test(made(request.POST, instance=source), user)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        context = dict(extra_context or {})
        pk = as_uuid(object_id) if object_id else None
        for source in self.read(self.get_queryset(request).filter(pk=pk)) if pk else ():
            may_change = self.has_change_permission(request, source)
            context["overview"] = overview.of_source(source, request, may_change=may_change)
        kept = reverse("admin:ingestion_source_trial", args=(pk,)) if pk else None
        query = f"?{request.GET.urlencode()}" if request.GET else ""
        context["trial_url"] = kept or reverse("admin:ingestion_source_try") + query
        return super().changeform_view(request, object_id, form_url, context)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Create or change it through the service. Raises ServiceError: see changeform_view."""
        actor = Actor.of_request(request)
        given = form.changes
        if change:
            if given:
                seen = form.cleaned_data["version"]
                configuration.update(obj, changes=given, expected=seen, actor=actor)
        else:
            created = configuration.create(
                owner=request.user,  # type: ignore[arg-type] # staff, so no AnonymousUser
                name=given["name"],
                provider=given["provider"],
                provider_config=given["providerConfig"],
                options=given["options"],
                auto_import=form.cleaned_data["auto_import"],
                actor=actor,
            )
            obj.pk = created.pk
        obj.refresh_from_db()
        dispatching.on_commit(obj)
        for text in same_account.of_source(obj, user=request.user):  # type: ignore[arg-type] # staff
            self.message_user(request, text, messages.WARNING)

    def response_add(
        self, request: HttpRequest, obj: IngestionSource, post_url_continue: str | None = None
    ) -> HttpResponse:
        text = f"“{obj.name}” is added. Its credentials are being checked."
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(display.page_of(obj))

    def response_change(self, request: HttpRequest, obj: IngestionSource) -> HttpResponse:
        text = f"“{obj.name}” is saved."
        if obj.status == "pending_auth":
            text += " Its credentials are being checked."
        self.message_user(request, text, messages.SUCCESS)
        return HttpResponseRedirect(display.page_of(obj))

    # -- deletion --------------------------------------------------------------------------

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Ask for the source's name, and delete it."""
        source = self.get_object(request, object_id)
        if source is None:
            raise Http404
        if not self.has_delete_permission(request, source):
            raise PermissionDenied
        sure, lines = deleting.confirmed(request, [source])
        if not sure:
            return deleting.page(request, lines, self._context(request, display.page_of(source)))
        outcome = deleting.delete(source, actor=Actor.of_request(request))
        level = messages.SUCCESS if outcome.ok else messages.WARNING
        self.message_user(request, f"“{source.name}”: {outcome.text}", level)
        return HttpResponseRedirect(self._list())

    @admin.action(description="Delete", permissions=["delete"])
    def delete_selected(
        self, request: HttpRequest, chosen: QuerySet[IngestionSource]
    ) -> HttpResponse | None:
        """Ask for the name of each, and delete them."""
        found = list(chosen.order_by("name", "pk")[: deleting.MOST + 1])
        if len(found) > deleting.MOST:
            text = f"The name of each is typed, so at most {deleting.MOST} are deleted at a time."
            self.message_user(request, f"{text} Select fewer.", messages.ERROR)
            return None
        sure, lines = deleting.confirmed(request, found)
        if not sure:
            context = self._context(request, self._list())
            return deleting.page(request, lines, context, action="delete_selected")
        actor = Actor.of_request(request)
        outcomes = [deleting.delete(source, actor=actor) for source in found]
        reports.keep(request, "Delete", outcomes, done="Deleted")
        return HttpResponseRedirect(reverse("admin:ingestion_source_report"))

    def report_view(self, request: HttpRequest) -> HttpResponse:
        """Show what became of each source of the last bulk action."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        context = self._context(request, self._list())
        return reports.page(request, context) or HttpResponseRedirect(self._list())

    def _context(self, request: HttpRequest, back: str) -> dict[str, Any]:
        return {**self.admin_site.each_context(request), "opts": self.opts, "back": back}

    @staticmethod
    def _list() -> str:
        return reverse("admin:ingestion_ingestionsource_changelist")
