"""The pages of sign-in and of one's own password: Django's, with a brake on tries and an audit."""

from http import HTTPStatus
from typing import Any, cast

from django import forms
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.exceptions import NON_FIELD_ERRORS
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_variables
from unfold.forms import AuthenticationForm

from ingestion.addresses import client_address
from ingestion.services.audit import Actor
from ingestion.services.operations import people, signing_in


class SignInForm(AuthenticationForm):  # type: ignore[misc] # untyped base
    """Hashes no password, which costs most of a second, where too many were tried."""

    retry_after = 0

    @method_decorator(sensitive_variables())
    def clean(self) -> Any:
        username = self.cleaned_data.get("username")
        if username is None or self.cleaned_data.get("password") is None:
            return super().clean()
        address = client_address(self.request) if self.request else None
        self.retry_after = signing_in.wait_seconds(username, address)
        if self.retry_after:
            minutes = -(-self.retry_after // 60)
            raise forms.ValidationError(
                "Too many passwords were tried for this user or from this address, so this one was "
                f"not looked at. Try again in {minutes} min. Nothing else stops: imports go on, "
                "and who is signed in stays so.",
                code="throttled",
            )
        cleaned = super().clean()
        signing_in.succeeded(username, address)
        return cleaned


def sign_in(request: HttpRequest) -> HttpResponse:
    """Answer 429 with Retry-After where the form was not looked at."""
    response = admin.site.login(request)
    form = response.context_data["form"] if isinstance(response, TemplateResponse) else None  # type: ignore[index] # AdminSite gives one
    if isinstance(form, SignInForm) and form.has_error(NON_FIELD_ERRORS, "throttled"):
        response.status_code = 429
        response["Retry-After"] = str(form.retry_after)
    return response


def change_own_password(request: HttpRequest) -> HttpResponse:
    """Django's, which tells no model admin of it. The other sessions of the user end."""
    response = admin.site.password_change(request)
    if request.method == "POST" and response.status_code == HTTPStatus.FOUND:
        user = cast("User", request.user)
        actor = Actor.of_request(request)
        people.rights_changed(user, verb="update", fields=["Password"], actor=actor)
    return response
