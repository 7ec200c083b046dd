"""The API's addresses. Both spellings answer, with and without a trailing slash."""

from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView
from rest_framework.routers import SimpleRouter

from ingestion.api import schema  # noqa: F401 - registers its extensions
from ingestion.api.emails import EmailViewSet
from ingestion.api.sources import SourceViewSet

router = SimpleRouter()
router.trailing_slash = "/?"
router.register("ingestion", SourceViewSet, basename="ingestion")
router.register("emails", EmailViewSet, basename="emails")

urlpatterns = [
    path("v1/", include(router.urls)),
    re_path(r"^schema/?$", SpectacularAPIView.as_view(), name="schema"),
    re_path(r"^docs/?$", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
]
