"""The API's addresses. Both spellings answer, with and without a trailing slash."""

from django.urls import include, path, re_path
from rest_framework.routers import SimpleRouter

from ingestion.api import docs
from ingestion.api.alerts import AlertViewSet
from ingestion.api.changes import ChangesViewSet
from ingestion.api.consent import ConsentViewSet
from ingestion.api.emails import EmailViewSet
from ingestion.api.exports import ExportViewSet
from ingestion.api.searches import SavedSearchViewSet
from ingestion.api.sources import SourceViewSet
from ingestion.api.webhooks import WebhookViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("ingestion", SourceViewSet, basename="ingestion")
router.register("emails", EmailViewSet, basename="emails")
router.register("exports", ExportViewSet, basename="exports")
router.register("searches", SavedSearchViewSet, basename="searches")
router.register("changes", ChangesViewSet, basename="changes")
router.register("alerts", AlertViewSet, basename="alerts")
router.register("webhooks", WebhookViewSet, basename="webhooks")

urlpatterns = [
    path("v1/", include(router.urls)),
    re_path(
        r"^v1/oauth/callback/?$",
        ConsentViewSet.as_view({"get": "callback"}),
        name="oauth-callback",
    ),
    re_path(r"^schema/?$", docs.document, name="schema"),
    re_path(r"^docs/?$", docs.page, name="docs"),
    re_path(r"^docs/introduction/?$", docs.introduction, name="api-introduction"),
    re_path(r"^docs/errors/?$", docs.errors, name="api-errors"),
]
