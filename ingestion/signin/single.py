"""Single sign-on at an OpenID Connect provider: allauth's flow, with our rules for who comes in."""

from typing import Any
from urllib.parse import urlencode

import structlog
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter, _build_apps_from_settings
from allauth.socialaccount.providers import registry
from allauth.socialaccount.providers.openid_connect import views
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from django.conf import settings
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.cache import never_cache
from requests import RequestException, Session
from requests.adapters import HTTPAdapter

from connectors import net
from ingestion.addresses import client_address
from ingestion.services.operations import people, signing_in, single_sign_on
from ingestion.signin import clothes

log = structlog.get_logger(__name__)


class _Provider(OpenIDConnectProvider):  # type: ignore[misc] # untyped base
    """Knows people by issuer and subject: another issuer gives the same subjects to other people
    (OpenID Connect Core 1.0, 5.7)."""

    def sociallogin_from_response(self, request: HttpRequest, response: dict[str, Any]) -> Any:
        login = super().sociallogin_from_response(request, response)
        login.account.provider = response["id_token"][
            "iss"
        ]  # allauth compared it with whom it asked
        return login


# Here, where its pages are served: as an installed app it would be loaded by every command, with
# the HTTP client that it uses.
registry.register(_Provider)

PROVIDER = "sso"
#: In five minutes. A sign-in is two of them, and asks the provider; an office is one address.
_REQUESTS_OF_ADDRESS = 300
#: What a provider that is no OpenID Connect provider, or not there, makes of the flow.
_BROKEN = (RequestException, KeyError, ValueError, TypeError)


class SingleSignOn(DefaultSocialAccountAdapter):  # type: ignore[misc] # untyped base
    """What allauth asks about people who come from the provider."""

    def list_apps(self, request: HttpRequest, provider: Any = None, client_id: Any = None) -> Any:
        """Return the one of the settings: no row in the database is a door. Whatever provider is
        asked for: people's rows name an issuer there."""
        found = _build_apps_from_settings(client_id=client_id)
        return [app for apps in found.values() for app in apps]

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:
        return True  # whom `pre_social_login` let through

    def pre_social_login(self, request: HttpRequest, sociallogin: Any) -> None:
        """Decide who it is, and whether they come in."""
        if sociallogin.state.get("process") != "login":
            raise Http404
        told = sociallogin.account.extra_data
        known = sociallogin.user if sociallogin.is_existing else None
        try:
            claims = single_sign_on.claims(told.get("id_token"), told.get("userinfo"))
            user, groups = single_sign_on.admit(claims, known)
        except single_sign_on.Refused as refusal:
            people.refused(request, user=refusal.user, how="single sign-on", why=refusal.code)
            raise ImmediateHttpResponse(_refused(str(refusal))) from None
        vars(sociallogin)["groups"] = groups
        if user is None:
            sociallogin.email_addresses = []
            sociallogin.user.email = claims.verified_email
        elif known is None:
            sociallogin.connect(request, user)

    def save_user(self, request: HttpRequest, sociallogin: Any, form: Any = None) -> User:
        user: User = super().save_user(request, sociallogin, form)
        single_sign_on.made(user, vars(sociallogin)["groups"])
        return user

    def on_authentication_error(
        self,
        request: HttpRequest,
        provider: Any,
        error: Any = None,
        exception: Exception | None = None,
        extra_context: Any = None,
    ) -> None:
        log.warning("single_sign_on_failed", code=str(error), kind=type(exception).__name__)
        # Of a sign-in that this browser didn't begin the log tells enough: anybody can make those.
        if "state_id" not in (extra_context or {}):
            people.refused(request, user=None, how="single sign-on", why=str(error))
        if exception is None and request.GET.get("error") == "access_denied":
            text = f"You were not signed in at {settings.OIDC_NAME}, or did not agree."
        elif exception is None and "error" not in request.GET:
            text = "This sign-in was begun too long ago, or in another browser. Begin again."
        else:
            text = _TROUBLE.format(settings.OIDC_NAME)
        raise ImmediateHttpResponse(_refused(text))

    def get_requests_session(self) -> Session:
        session: Session = super().get_requests_session()
        session.mount("https://", _Tls())
        return session


_TROUBLE = (
    "{} does not answer as an OpenID Connect provider should. Try again in a minute. If it stays"
    " so, an administrator finds the reason in the log of web: OIDC_ISSUER, OIDC_CLIENT_ID or the"
    " secret may be wrong."
)


class _Tls(HTTPAdapter):
    """Trusts EXTRA_CA_FILE too."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = net.tls_context(verify=True, extra_ca_file=settings.EXTRA_CA_FILE)
        super().init_poolmanager(*args, ssl_context=context, **kwargs)


@never_cache
def begin(request: HttpRequest, provider_id: str) -> HttpResponse:
    """Send the person to the provider."""
    return _went(request, views.login, provider_id)


@never_cache
def finish(request: HttpRequest, provider_id: str) -> HttpResponse:
    """Take the person back from the provider."""
    return _went(request, views.callback, provider_id)


@never_cache
def end(request: HttpRequest) -> HttpResponse:
    """Send who is signed out here to sign out at the provider too (RP-Initiated Logout 1.0)."""
    return _went(request, _sign_out, PROVIDER)


def _sign_out(request: HttpRequest, provider_id: str) -> HttpResponse:
    told = OpenIDConnectOAuth2Adapter(request, provider_id).openid_config
    back = request.build_absolute_uri(reverse("account_login"))
    query = urlencode({"client_id": settings.OIDC_CLIENT_ID, "post_logout_redirect_uri": back})
    address = told.get("end_session_endpoint")
    return HttpResponseRedirect(f"{address}?{query}" if address else back)


def _went(request: HttpRequest, view: Any, provider_id: str) -> HttpResponse:
    if not settings.OIDC_ISSUER:
        raise Http404
    address = client_address(request)
    if address is not None:
        who = f"single sign-on from {signing_in.network(address)}"
        if wait := signing_in.wait_seconds_for(who, limit=_REQUESTS_OF_ADDRESS):
            return _too_many(wait)
    try:
        answer: HttpResponse = view(request, provider_id)
    except _BROKEN as error:
        return _not_there(error)
    return answer


def _not_there(error: Exception) -> HttpResponse:
    log.error("single_sign_on_broken", kind=type(error).__name__, exc_info=error)
    return _refused(_TROUBLE.format(settings.OIDC_NAME), status=502)


def _too_many(wait: int) -> HttpResponse:
    text = f"There were too many sign-ins from your address. Try again in {-(-wait // 60)} min."
    answer = _refused(text, status=429)
    answer["Retry-After"] = str(wait)
    return answer


def _refused(text: str, *, status: int = 403) -> HttpResponse:
    links = [("Back to the sign-in", reverse("account_login"))]
    return clothes.said(status, "Not signed in", text, links)
