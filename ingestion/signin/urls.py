"""The addresses of signing in and of one's account: those of allauth that are used alone."""

from allauth.account.views import reauthenticate
from django.urls import include, path

from ingestion.signin import own, single

urlpatterns = [
    path("admin/login/", own.SignInView.as_view(), name="account_login"),
    path("admin/logout/", own.SignOutView.as_view(), name="account_logout"),
    path("admin/password_change/", own.change_password, name="account_change_password"),
    path("account/", own.account, name="account_home"),
    path("account/inactive/", own.inactive, name="account_inactive"),
    path("account/reauthenticate/", reauthenticate, name="account_reauthenticate"),
    path("account/second-step/", include("allauth.mfa.urls")),
    path(
        "account/sso/login/",
        single.begin,
        {"provider_id": single.PROVIDER},
        name="openid_connect_login",
    ),
    path(
        "account/sso/callback/",
        single.finish,
        {"provider_id": single.PROVIDER},
        name="openid_connect_callback",
    ),
    path("account/sso/logout/", single.end, name="sso_end"),
    path("", own.home),
]
