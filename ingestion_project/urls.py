"""All addresses: the admin, the API with its documentation, and what machines ask."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from ingestion.admin import consent_page, owners_page
from ingestion.admin.find import find
from ingestion.admin.mail import saving
from ingestion.admin.mail.views import mail
from ingestion.api import monitoring

admin.autodiscover()

handler400 = "ingestion.api.errors.bad_request"
handler403 = "ingestion.api.errors.not_allowed"
handler404 = "ingestion.api.errors.not_found"
handler500 = "ingestion.api.errors.server_error"


urlpatterns = [
    path("", include("ingestion.signin.urls")),  # before the admin's own sign-in, with no brake
    path("admin/mail/", mail, name="mail"),
    path("admin/mail/<uuid:pk>/", mail, name="mail"),
    path("admin/mail/searches/", saving.save_search, name="mail_search_save"),
    path(
        "admin/mail/searches/<int:pk>/rename/",
        saving.rename_search,
        name="mail_search_rename",
    ),
    path(
        "admin/mail/searches/<int:pk>/forget/",
        saving.forget_search,
        name="mail_search_forget",
    ),
    path("admin/find/", admin.site.admin_view(find), name="find"),
    path("admin/", admin.site.urls),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("sources/<uuid:pk>/", owners_page.page, name="own_source"),
    path("sources/<uuid:pk>/sync/", owners_page.sync, name="own_source_sync"),
    path("sources/<uuid:pk>/grant/", owners_page.grant, name="own_source_grant"),
    path("connect/", consent_page.page, name="connect"),
    path("connect/open/", consent_page.opened, name="connect-open"),
    path("connect/go/", consent_page.go, name="connect-go"),
    path("connect/give/", consent_page.give, name="connect-give"),
    path("connect/back/", consent_page.back, name="connect-back"),
    path("api/", include("ingestion.api.urls")),
    path("healthz", monitoring.healthz),
    path("readyz", monitoring.readyz),
    path("metrics", monitoring.metrics),
]
