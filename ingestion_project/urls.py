"""All addresses: the admin, the API with its documentation, and a sign of life."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.views.generic import RedirectView

from ingestion.admin.mail.views import forget_search, mail, save_search
from ingestion.admin.sign_in import change_own_password, sign_in

admin.autodiscover()

handler400 = "ingestion.api.errors.bad_request"
handler404 = "ingestion.api.errors.not_found"
handler500 = "ingestion.api.errors.server_error"


def healthz(_: HttpRequest) -> HttpResponse:
    """Tell that this process answers; `manage.py doctor` looks at the rest."""
    return HttpResponse("ok\n", content_type="text/plain")


urlpatterns = [
    path("admin/login/", sign_in),  # before the admin's own, which has no brake
    path("admin/password_change/", admin.site.admin_view(change_own_password)),
    path("admin/mail/", admin.site.admin_view(mail), name="mail"),
    path("admin/mail/<uuid:pk>/", admin.site.admin_view(mail), name="mail"),
    path("admin/mail/searches/", admin.site.admin_view(save_search), name="mail_search_save"),
    path(
        "admin/mail/searches/<int:pk>/forget/",
        admin.site.admin_view(forget_search),
        name="mail_search_forget",
    ),
    path("admin/", admin.site.urls),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("api/", include("ingestion.api.urls")),
    path("healthz", healthz),
    path("", RedirectView.as_view(url="/admin/")),
]
