"""The second step after a password: codes of an app, recovery codes, security keys."""

from collections.abc import Callable
from typing import Any

from allauth.account.internal.flows.login import get_authentication_records
from allauth.core import context
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.base.forms import AuthenticateForm, ReauthenticateForm
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.forms import ActivateTOTPForm
from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.messages import warning
from django.http import HttpRequest, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from ingestion import crypto
from ingestion.services.operations import signing_in
from ingestion.signin import brake


def has(user: User) -> bool:
    """Tell whether a user has a second step; recovery codes are none by themselves."""
    return bool(_all_of(user).exclude(type=Authenticator.Type.RECOVERY_CODES).exists())


def _all_of(user: User) -> Any:
    return Authenticator.objects.filter(user=user)


class SecondSteps(DefaultMFAAdapter):  # type: ignore[misc] # untyped base
    """Secrets are stored encrypted, by the keys that credentials of sources have."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": "This code is wrong, used already or too old. Wait for the next one.",
    }

    def encrypt(self, text: str) -> str:
        return crypto.encrypted(text)

    def decrypt(self, encrypted_text: str) -> str:
        return crypto.decrypted(encrypted_text)

    def generate_authenticator_name(self, user: User, type: str) -> str:  # noqa: A002 - allauth's
        return f"Key {_all_of(user).filter(type=type).count() + 1}"

    def _get_site_name(self) -> str:
        return "Email ingestion"


_CODES = {
    Authenticator.Type.TOTP: "Code of your app",
    Authenticator.Type.RECOVERY_CODES: "Recovery code",
}


class _Braked:
    """A form with a code of six digits or a recovery code, which could be guessed by trying."""

    user: User
    fields: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["code"].label = self._label()
        self.fields["code"].widget.attrs.pop("placeholder", None)

    def _label(self) -> str:
        """Return what the code is that this user may have; "" for who has none to give."""
        has = {one.type for one in _all_of(self.user)}
        codes = [label for kind, label in _CODES.items() if kind in has]
        return ", or ".join(codes).capitalize()

    def clean_code(self) -> str:
        request, name = context.request, self.user.get_username()
        brake.count(request, name, step=signing_in.CODE)
        code: str = super().clean_code()  # type: ignore[misc] # the form's
        brake.right(request, name, step=signing_in.CODE)
        return code


class Authenticate(_Braked, AuthenticateForm):  # type: ignore[misc] # untyped base
    """After the password."""

    def has_key(self) -> bool:
        return bool(_all_of(self.user).filter(type=Authenticator.Type.WEBAUTHN).exists())


class Reauthenticate(_Braked, ReauthenticateForm):  # type: ignore[misc] # untyped base
    """Before something that must not be done by who finds the screen unlocked."""


class ActivateTotp(_Braked, ActivateTOTPForm):  # type: ignore[misc] # untyped base
    """The first code of a new app."""

    def _label(self) -> str:
        return _CODES[Authenticator.Type.TOTP]


class Required:
    """With REQUIRE_SECOND_FACTOR, staff who signed in by password alone come to one page only: the
    one where they set up a second step. A single sign-on has its own."""

    _OPEN = ("/account/", "/admin/logout/", "/admin/login/", "/static/")

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not settings.REQUIRE_SECOND_FACTOR or request.path.startswith(self._OPEN):
            return self._get_response(request)
        user: Any = request.user
        if not user.is_staff or has(user) or _came_otherwise(request, user):
            return self._get_response(request)
        text = "This service asks staff for a second step. Set one up to go on."
        if request.path.startswith("/api/"):
            error = {"code": "second_step_required", "detail": text, "attr": None}
            return JsonResponse({"type": "client_error", "errors": [error]}, status=403)
        warning(request, text)
        return HttpResponseRedirect(reverse("mfa_index"))


def _came_otherwise(request: HttpRequest, user: User) -> bool:
    records = get_authentication_records(request, user)
    return any(record["method"] == "socialaccount" for record in records)
