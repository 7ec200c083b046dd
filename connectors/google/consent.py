"""Signing in with Google: the consent page, and the tokens for its code.

developers.google.com/identity/protocols/oauth2/web-server. The scope is gmail.readonly, the least
that reads mail, and pubsub where there is a topic to listen to; the address comes from Gmail's own
profile, so none is needed for that.
"""

import json
import threading
import urllib.parse
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import httplib2

from connectors import redaction
from connectors.base import Consent
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, Unavailable
from connectors.google import refusals
from connectors.google.config import GoogleConfig
from connectors.google.mailbox import GmailMailbox
from connectors.google.refusals import MAIL_SCOPE, TOPIC_SCOPE, Asker
from connectors.google.tokens import access
from connectors.google.transport import Http


class GoogleConsent(Consent):
    def __init__(self, config: GoogleConfig, environment: Environment) -> None:
        self._config, self._environment = config, environment

    def authorize_url(self, *, redirect_uri: str, state: str, code_challenge: str) -> str:
        asked = {
            "client_id": self._config.clientId,
            "redirect_uri": redirect_uri,
            "response_type": "code",
            "scope": f"{MAIL_SCOPE} {TOPIC_SCOPE}"
            if self._config.notificationTopic
            else MAIL_SCOPE,
            "state": state,
            "code_challenge": code_challenge,
            "code_challenge_method": "S256",
            "access_type": "offline",  # with a refresh token,
            "prompt": "consent",  # also the second time
        }
        if self._config.email:
            asked["login_hint"] = self._config.email
        return f"{self._environment.endpoints['google.auth']}?{urllib.parse.urlencode(asked)}"

    def redeem(self, *, code: str, code_verifier: str, redirect_uri: str) -> Mapping[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "code_verifier": code_verifier,
            "redirect_uri": redirect_uri,
            "client_id": self._config.clientId,
            "client_secret": self._config.clientSecret,
        }
        answer = self._posted(form)
        if MAIL_SCOPE not in str(answer.get("scope", "")).split():
            raise refusals.scope_not_granted()
        refresh_token = answer.get("refresh_token")
        if not isinstance(refresh_token, str) or not refresh_token:
            raise Fatal("Google gave no refresh token. Sign in again.")
        redaction.remember([refresh_token])
        address = self._address_of(refresh_token)
        if self._config.email and self._config.email.casefold() != address.casefold():
            raise refusals.other_account(address, self._config.email)
        return {"refreshToken": refresh_token, "email": address}

    def _posted(self, form: dict[str, str]) -> dict[str, Any]:
        http = Http(self._environment, one_large=threading.Lock())
        try:
            response, content = http.request(
                self._environment.endpoints["google.token"],
                method="POST",
                body=urllib.parse.urlencode(form),
                headers={"content-type": "application/x-www-form-urlencoded"},
            )
        except (OSError, httplib2.HttpLib2Error, HTTPException) as error:
            raise refusals.of_connection(error) from None
        finally:
            http.close()
        try:
            answer: Any = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unavailable("Google's token server does not answer as it should. Try again.")
        if response.status != 200:
            raise self._meaning(answer)
        return answer

    def _meaning(self, answer: dict[str, Any]) -> ConnectorError:
        if answer.get("error") == "redirect_uri_mismatch":
            return Fatal("The redirect URI is not the one that the sign-in began with.")
        return refusals.of_code(str(answer.get("error", "")))

    def _address_of(self, refresh_token: str) -> str:
        config = GoogleConfig(
            clientId=self._config.clientId,
            clientSecret=self._config.clientSecret,
            refreshToken=refresh_token,
        )
        held = access(config, self._environment, person="", scope=MAIL_SCOPE)
        asker = Asker("the account", project=config.project.partition("-")[0])
        stop = threading.Event()
        mailbox = GmailMailbox(self._environment, held, asker, project=config.project, stop=stop)
        try:
            return str(mailbox.profile()["emailAddress"])
        finally:
            mailbox.close()
