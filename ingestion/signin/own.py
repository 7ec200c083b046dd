"""The password: the form, the pages around it, and what allauth asks of us about accounts."""

from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.forms import LoginForm, ReauthenticateForm
from allauth.account.views import LoginView, LogoutView
from django import forms
from django.conf import settings
from django.contrib.auth import authenticate, update_session_auth_hash
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.models import User
from django.contrib.messages import success
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables

from ingestion import queries
from ingestion.addresses import client_address
from ingestion.services.audit import Actor
from ingestion.services.operations import people, signing_in
from ingestion.signin import brake, clothes, second_step


class Accounts(DefaultAccountAdapter):  # type: ignore[misc] # untyped base
    """What allauth asks about accounts: nobody makes their own, passwords have one brake."""

    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "username_password_mismatch": "This user name and this password do not belong together. "
        "Both are case-sensitive.",
        "incorrect_password": "This is not your password.",
        "incorrect_code": "This code is wrong, used already or too old. Wait for the next one.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def get_client_ip(self, request: HttpRequest) -> str:
        return client_address(request) or ""

    @method_decorator(sensitive_variables())
    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """Hash no password, which costs most of a second, where too many were tried."""
        username = credentials["username"]
        brake.count(request, username, step=signing_in.PASSWORD)
        user = authenticate(request, username=username, password=credentials["password"])
        if user is not None:
            brake.right(request, username, step=signing_in.PASSWORD)
        return user

    def is_reauthentication_required(self, *, app: str, **kwargs: Any) -> bool:
        """Ask again who it is, of those who have anything to show for it here."""
        return bool(self.get_reauthentication_methods(self.request.user)) and bool(
            super().is_reauthentication_required(app=app, **kwargs)
        )

    def get_reauthentication_methods(self, user: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = super().get_reauthentication_methods(user)
        words = {"mfa_reauthenticate": "Use a code"}
        return [way | {"description": words.get(way["id"], way["description"])} for way in found]

    def add_message(self, *args: Any, **kwargs: Any) -> None:
        """Say what a page does not show itself: not that one has just signed in or out."""
        if kwargs.get("message_template", args[2] if len(args) > 2 else "") not in {
            "account/messages/logged_in.txt",
            "account/messages/logged_out.txt",
        }:
            super().add_message(*args, **kwargs)


class SignIn(LoginForm):  # type: ignore[misc] # untyped base
    """allauth's, with the field names that Django's has: password managers know them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.fields["login"]
        self.fields["username"] = forms.CharField(
            label="User name",
            max_length=150,
            widget=forms.TextInput(attrs={"autocomplete": "username", "autofocus": True}),
        )
        self.fields["password"].widget.attrs.pop("placeholder", None)
        self.fields["password"].help_text = ""
        self.order_fields(["username", "password"])

    def clean(self) -> Any:
        self.cleaned_data["login"] = self.cleaned_data.get("username")
        return super().clean()


class IsItYou(ReauthenticateForm):  # type: ignore[misc] # untyped base
    """allauth's, asking for the password once more, in the clothes of the others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["password"].widget.attrs.pop("placeholder", None)
        self.fields["password"].help_text = ""


class SignInView(LoginView):  # type: ignore[misc] # untyped base
    """The one page to sign in at, of the admin too."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if settings.SSO_ONLY and request.method == "POST":
            return clothes.said(
                403,
                "No passwords here",
                f"This service is signed in to with {settings.OIDC_NAME} alone. Nothing was looked"
                " at.",
                [("Sign in", reverse("account_login"))],
            )
        if request.user.is_authenticated and not request.user.is_staff:
            return _home_of_no_staff(request)
        answer: HttpResponse = super().dispatch(request, *args, **kwargs)
        return answer

    def form_invalid(self, form: SignIn) -> HttpResponse:
        response: HttpResponse = super().form_invalid(form)
        return _throttled(form, response)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context_data(**kwargs)
        sso = reverse("openid_connect_login", kwargs={"provider_id": "sso"})
        return context | {
            "fields": {"form": context["form"]},
            "sso_only": settings.SSO_ONLY,
            "sso_name": settings.OIDC_NAME,
            "sso_url": self.passthrough_next_url(sso) if settings.OIDC_ISSUER else "",
        }


def _throttled(form: SignIn, response: HttpResponse) -> HttpResponse:
    """Answer 429 with Retry-After where the password was not looked at."""
    for error in form.errors.as_data().get(NON_FIELD_ERRORS, []):
        if isinstance(error, ValidationError) and error.code == brake.THROTTLED:
            response.status_code = 429
            response["Retry-After"] = str((error.params or {})["seconds"])
    return response


def _home_of_no_staff(request: HttpRequest) -> HttpResponse:
    """Answer who is signed in and was sent here by the admin, which is for staff."""
    wanted = request.GET.get("next", "")
    if wanted.startswith("/admin/") and wanted != "/admin/":
        return clothes.said(
            403,
            "This page is not for you",
            f"You are signed in as {request.user}, and the admin is for staff. An administrator may"
            " turn on “Staff status” for you, under Users.",
            [("Your account", reverse("account_home"))],
        )
    return HttpResponseRedirect(reverse("account_home"))


class SignOutView(LogoutView):  # type: ignore[misc] # untyped base
    """A POST signs out; where one came by single sign-on, that may end too."""

    def post(self, *args: Any, **kwargs: Any) -> HttpResponse:
        self.logout()
        if self.get_next_url():  # out of the second step: back to the first
            return HttpResponseRedirect(self.get_next_url())
        links = [("Sign in again", reverse("account_login"))]
        text = "You are signed out."
        if settings.OIDC_ISSUER:
            links.append((f"Sign out of {settings.OIDC_NAME} too", reverse("sso_end")))
            text = f"You are signed out here. {settings.OIDC_NAME} may still know this browser."
        return clothes.said(200, "Signed out", text, links)


def home(request: HttpRequest) -> HttpResponse:
    """Send people where they belong: staff to the admin, others to their account."""
    staff = not request.user.is_authenticated or request.user.is_staff
    return redirect("admin:index" if staff else "account_home")


@never_cache
@login_required
def account(request: HttpRequest) -> HttpResponse:
    """Show what one has here."""
    user = request.user
    assert isinstance(user, User)
    own = queries.visible_sources(user).filter(owner_id=user.pk).order_by("name")
    context = {
        "groups": sorted(user.groups.values_list("name", flat=True)),
        "sources": own[:50],
        "reads_mail": queries.reads_mail(user),
        "has_password": user.has_usable_password() and not settings.SSO_ONLY,
        "second_step": second_step.has(user),
    }
    return render(request, "account/home.html", context)


@never_cache
@sensitive_post_parameters()
@login_required
def change_password(request: HttpRequest) -> HttpResponse:
    """Set one's own password; the other sessions end. The old one is tried under the brake."""
    user = request.user
    assert isinstance(user, User)
    if settings.SSO_ONLY or not user.has_usable_password():
        return redirect("account_home")
    form = _OwnPassword(user, request.POST or None)
    form.request = request
    if form.is_valid():
        form.save()
        update_session_auth_hash(request, user)
        actor = Actor.of_request(request)
        people.rights_changed(user, verb="update", fields=["Password"], actor=actor)
        success(request, "Your password is changed.")
        return redirect("account_home")
    context = {"form": form, "fields": {"form": form}}
    return render(request, "account/password.html", context)


class _OwnPassword(PasswordChangeForm):
    request: HttpRequest

    def clean_old_password(self) -> str:
        name = self.user.get_username()
        brake.count(self.request, name, step=signing_in.PASSWORD)
        old: str = super().clean_old_password()
        brake.right(self.request, name, step=signing_in.PASSWORD)
        return old


def inactive(request: HttpRequest) -> HttpResponse:
    """Say why somebody who is known does not come in."""
    return clothes.said(
        403,
        "This account is switched off",
        "An administrator may switch it on again.",
        [("Sign in as somebody else", reverse("account_login"))],
    )
