"""Signing in with Microsoft: by the browser's way back with a code, or by a code that is typed in.

learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow and .../v2-oauth2-device-code.
What is asked for is delegated Mail.Read, and User.Read to know who signed in.
"""

import dataclasses
import urllib.parse
from collections.abc import Mapping
from typing import Any

from connectors import web
from connectors.base import Consent, DeviceConsent, DevicePrompt
from connectors.config import Environment
from connectors.errors import Fatal, NeedsReauth
from connectors.microsoft import directory, tokens
from connectors.microsoft.client import Graph
from connectors.microsoft.config import MicrosoftConfig

#: OpenID Connect's own; offline_access is what makes Microsoft give a refresh token.
_OIDC = ("openid", "profile", "offline_access")
#: RFC 8628 section 3.5: the person has not finished yet.
_PENDING = frozenset({"authorization_pending", "slow_down"})


class MicrosoftConsent(Consent):
    def __init__(self, config: MicrosoftConfig, environment: Environment) -> None:
        self._config, self._environment = config, environment
        self._cloud = config.where(environment)

    def authorize_url(self, *, redirect_uri: str, state: str, code_challenge: str) -> str:
        asked = {
            "client_id": self._config.clientId,
            "response_type": "code",
            "response_mode": "query",
            "redirect_uri": redirect_uri,
            "scope": " ".join((*tokens.scopes(self._config), *_OIDC)),
            "state": state,
            "code_challenge": code_challenge,
            "code_challenge_method": "S256",
            "login_hint": self._config.email,
        }
        page = f"{self._cloud.login}/{tokens.tenant_of(self._config)}/oauth2/v2.0/authorize"
        return f"{page}?{urllib.parse.urlencode(asked)}"

    def redeem(self, *, code: str, code_verifier: str, redirect_uri: str) -> Mapping[str, Any]:
        with web.client(self._environment) as http, tokens.asking(http, self._environment) as login:
            app = tokens.application(self._config, self._cloud.login, login)
            answer = login.granted(
                app.acquire_token_by_authorization_code(
                    code,
                    tokens.scopes(self._config),
                    redirect_uri=redirect_uri,
                    data={"code_verifier": code_verifier},
                )
            )
        return self._fields(answer)

    def _fields(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        refresh_token = answer.get("refresh_token")
        if not isinstance(refresh_token, str) or not refresh_token:
            raise Fatal("Microsoft gave no refresh token. Sign in again.")
        granted = {part.rpartition("/")[2] for part in str(answer.get("scope", "")).split()}
        if "Mail.Read" not in granted:
            raise NeedsReauth(
                "Reading mail was not granted. Sign in again and consent to it; where that is not"
                " allowed, an administrator must grant the delegated permission Mail.Read.",
                code="no_mail_read",
            )
        config = dataclasses.replace(self._config, refreshToken=refresh_token)
        graph = Graph(config, self._environment)
        try:
            graph.tokens.adopt(answer)
            directory.own_mailbox(graph, config)  # it is the person that the source is for
        finally:
            graph.close()
        return {"refreshToken": refresh_token}


class MicrosoftPublicConsent(MicrosoftConsent, DeviceConsent):
    """For an application without a secret. Typing in a code is for public clients only."""

    def begin(self) -> DevicePrompt:
        with web.client(self._environment) as http, tokens.asking(http, self._environment) as login:
            app = tokens.application(self._config, self._cloud.login, login)
            flow = app.initiate_device_flow(tokens.scopes(self._config))
            if "user_code" not in flow:
                raise login.refusal(flow)
        return DevicePrompt(
            user_code=str(flow["user_code"]),
            page=str(flow["verification_uri"]),
            seconds=float(flow["expires_in"]),
            interval_seconds=float(flow.get("interval", 5)),
            secret=str(flow["device_code"]),
        )

    def poll(self, prompt: DevicePrompt) -> Mapping[str, Any] | None:
        with web.client(self._environment) as http, tokens.asking(http, self._environment) as login:
            app = tokens.application(self._config, self._cloud.login, login)
            flow = {"device_code": prompt.secret, "expires_at": 0}  # asks once, and does not wait
            answer = app.acquire_token_by_device_flow(flow)
            if answer.get("error") in _PENDING:
                return None
            answer = login.granted(answer)
        return self._fields(answer)


def consent(config: MicrosoftConfig, environment: Environment) -> MicrosoftConsent | None:
    """Return how a person signs in; None for a tenant."""
    if not config.signs_in:
        return None
    public = not (config.clientSecret or config.certificatePem)
    return (MicrosoftPublicConsent if public else MicrosoftConsent)(config, environment)
