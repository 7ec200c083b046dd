"""/api/v1/oauth/callback: where a provider sends people back to after they signed in."""

from typing import Any, cast

from django.contrib import messages
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils.http import urlencode
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import NotAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import dispatching
from ingestion.api import source_serializers
from ingestion.api.base import ApiViewSet
from ingestion.api.schema import ErrorOut
from ingestion.errors import ServiceError
from ingestion.models import IngestionSource
from ingestion.services.sources import consent

_MAX_CHARS = 4_000


class ConsentViewSet(ApiViewSet[IngestionSource]):
    """Answers browsers by a redirect to the source's page, programs by the source."""

    scope = "write"  # a GET that changes something: the protocol wants it so
    serializer_class = source_serializers.OneSourceOut
    _began_for: str | None = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Send on a browser that holds a consent link: it has no user, and pages of its own."""
        if request.method == "GET" and consent.is_of_link(request.GET.get("state", "")):
            answer = HttpResponseRedirect(f"{reverse('connect-back')}?{request.GET.urlencode()}")
            answer["Referrer-Policy"] = "no-referrer"
            answer["Cache-Control"] = "no-store"
            return answer
        return super().dispatch(request, *args, **kwargs)

    def handle_exception(self, exc: Exception) -> Response:
        """Send a browser to where a person can do something about it."""
        if isinstance(exc, NotAuthenticated) and self._is_browser():
            here = urlencode({"next": self.request.get_full_path()})
            return cast("Response", HttpResponseRedirect(f"{reverse('admin:login')}?{here}"))
        if isinstance(exc, ServiceError) and self._is_browser() and self._sees_admin():
            messages.error(self._django_request, f"Not signed in. {exc.words}")
            if self._began_for:
                return self._redirect("admin:ingestion_ingestionsource_change", self._began_for)
            return self._redirect("admin:ingestion_ingestionsource_changelist")
        return super().handle_exception(exc)

    @extend_schema(
        operation_id="finishSignIn",
        parameters=[
            OpenApiParameter("state", str, description="As `oauth/authorize` made it."),
            OpenApiParameter("code", str, description="What the provider gave."),
            OpenApiParameter("error", str, description="Why the provider gave no code."),
        ],
        responses={
            200: source_serializers.OneSourceOut,
            302: OpenApiResponse(description="For browsers."),
            409: OpenApiResponse(
                ErrorOut, description="This sign-in can't be finished: begin anew."
            ),
        },
    )
    def callback(self, request: Request) -> Response:
        """Finish a sign-in that `oauth/authorize` began, as the same user.

        Whatever else the provider puts into the address is left alone.
        """
        state, code, refusal = (
            request.query_params.get(name, "")[:_MAX_CHARS] for name in ("state", "code", "error")
        )
        self._began_for = consent.source_of(by=self.user, state=state)
        source = consent.finish(
            user=self.user, state=state, code=code, refusal=refusal, actor=self.actor
        )
        dispatching.on_commit(source)
        if self._is_browser() and self._sees_admin():
            text = f"Signed in. The credentials of “{source.name}” are being checked."
            messages.success(self._django_request, text)
            return self._redirect("admin:ingestion_ingestionsource_change", source.pk)
        found = source_serializers.source_rows(IngestionSource.objects.filter(pk=source.pk)).get()
        return Response(source_serializers.present_source(found, user=self.user))

    @property
    def _django_request(self) -> HttpRequest:
        return self.request._request  # noqa: SLF001 - DRF's own way to it

    def _is_browser(self) -> bool:
        return "text/html" in self.request.headers.get("Accept", "")

    def _sees_admin(self) -> bool:
        user = self.request.user
        return isinstance(user, User) and user.is_staff

    def _redirect(self, name: str, *arguments: Any) -> Response:
        return cast("Response", HttpResponseRedirect(reverse(name, args=arguments)))
