"""Access tokens, through msal: for an application, or for a person who signed in.

They are kept by `connectors.tokens`. msal's own caches are not used, since a connector does not
live as long as a token does.
"""

import base64
import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msal

from connectors import tokens, web
from connectors.config import Environment
from connectors.errors import ConnectorError, Fatal, NeedsReauth
from connectors.microsoft import refusals
from connectors.microsoft.config import MicrosoftConfig

#: Not Mail.ReadBasic, which has no bodies.
_READS_MAIL = frozenset({"Mail.Read", "Mail.ReadWrite"})
_MAX_ANSWER_BYTES = 1_000_000

#: It logs addresses of people, and answers that are no JSON.
logging.getLogger("msal").setLevel(logging.CRITICAL)


class Tokens(tokens.Tokens):
    """The access tokens of one configuration. Thread-safe. `http` is the way to the login."""

    def __init__(
        self, config: MicrosoftConfig, environment: Environment, http: httpx.Client
    ) -> None:
        self._config, self._http = config, http
        self._cloud = config.where(environment)
        about = (
            self._cloud.login,
            config.audience,
            config.tenantId,
            config.clientId,
            config.clientSecret,
            config.certificatePrivateKeyPem,
            config.email,
        )
        super().__init__(environment, about=about, refresh_token=config.refreshToken)

    def lacks_mail_read(self) -> bool:
        """Tell whether the token certainly does not let its bearer read mail.

        Tokens are Microsoft's own affair, so this only ever words an error that Graph gave.
        """
        claims = _claims(self.known() or "")
        granted = claims.get("scp") if self._config.signs_in else claims.get("roles")
        names = granted.split() if isinstance(granted, str) else granted
        if not claims or (names is not None and not isinstance(names, list)):
            return False
        return not _READS_MAIL.intersection(map(str, names or ()))

    # -- asking ------------------------------------------------------------------------------------

    def _ask(self, refresh_token: str) -> Mapping[str, Any]:
        if self._config.signs_in:
            return self._ask_for_person(refresh_token)
        return self._ask_for_application()

    def _ask_for_application(self) -> Mapping[str, Any]:
        with asking(self._http, self._environment) as login:
            app = application(self._config, self._cloud.login, login)
            return login.granted(
                app.acquire_token_for_client([f"{self._config.audience}/.default"])
            )

    def _ask_for_person(self, refresh_token: str) -> Mapping[str, Any]:
        if not refresh_token:
            raise NeedsReauth("Nobody has signed in yet. Sign in with Microsoft to grant access.")
        with asking(self._http, self._environment) as login:
            app = application(self._config, self._cloud.login, login)
            return login.granted(
                app.acquire_token_by_refresh_token(refresh_token, scopes(self._config))
            )


def tenant_of(config: MicrosoftConfig) -> str:
    """Return whom the login is asked about: a tenant, or whoever signs in."""
    return config.tenantId or "common"


def scopes(config: MicrosoftConfig) -> list[str]:
    """Return what is asked of a person. msal adds offline_access, for the refresh token."""
    return [f"{config.audience}/Mail.Read", f"{config.audience}/User.Read"]


def application(config: MicrosoftConfig, login_url: str, login: "Login") -> msal.ClientApplication:
    """Return msal's application. It asks only `login_url`: no instance discovery."""
    about: dict[str, Any] = {
        "authority": f"{login_url}/{tenant_of(config)}",
        "http_client": login,
        # Else it asks login.microsoftonline.com, whatever the authority is.
        "instance_discovery": False,
    }
    if config.clientSecret or config.certificatePem:
        credential = config.clientSecret or {
            "private_key": config.certificatePrivateKeyPem,
            "public_certificate": config.certificatePem,
        }
        return msal.ConfidentialClientApplication(
            config.clientId, client_credential=credential, **about
        )
    return msal.PublicClientApplication(config.clientId, **about)


@contextlib.contextmanager
def asking(http: httpx.Client, environment: Environment) -> Iterator["Login"]:
    """Give a Login; what goes wrong on the way comes out as a ConnectorError."""
    login = Login(http, only=environment.endpoints.get("microsoft.login", "").rstrip("/"))
    try:
        yield login
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise web.problem(error, "Microsoft's login") from error
    # msal raises the latter two where there is no such tenant, and of what is no JSON.
    except (
        httpx.HTTPStatusError,
        msal.exceptions.MsalServiceError,
        ValueError,
        RuntimeError,
    ) as error:
        raise login.problem(error) from None


class Login:
    """What msal calls its http_client, over httpx; remembers the last refusal.

    `only`: ask nothing but what is below this URL; "" for anything. msal asks for tokens where the
    authority's own configuration says that they are issued, and that may name any host.
    """

    def __init__(self, http: httpx.Client, *, only: str = "") -> None:
        self._http, self._only = http, only
        self._refused: tuple[int, Mapping[str, str], Mapping[str, Any]] | None = None

    def get(self, url: str, **given: Any) -> httpx.Response:
        return self._send("GET", url, **given)

    def post(self, url: str, **given: Any) -> httpx.Response:
        return self._send("POST", url, **given)

    def close(self) -> None:
        """Nothing of its own."""

    def granted(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return msal's answer where it has a token. Raises what its refusal means."""
        if "access_token" in answer:
            return answer
        raise self.refusal(answer)

    def refusal(self, answer: Mapping[str, Any]) -> ConnectorError:
        """Return what an answer without a token means."""
        status, headers = self._refused[:2] if self._refused else (400, {})
        return refusals.of_login(status, headers, answer)

    def problem(self, error: Exception) -> ConnectorError:
        """Return what msal's exception means, by the answer that it made it of."""
        if self._refused is None:
            return refusals.no_login(type(error).__name__)
        return refusals.of_login(*self._refused)

    def _send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str | bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> httpx.Response:
        if self._only and not url.startswith(f"{self._only}/"):
            raise Fatal(
                "The login at MICROSOFT_LOGIN_URL sends elsewhere for tokens. Have its openid-"
                "configuration name itself.",
                code="link",
            )
        # msal gives the assertion as bytes, which httpx would send as "b'...'".
        form = {k: v.decode() if isinstance(v, bytes) else v for k, v in (data or {}).items()}
        with self._http.stream(
            method, url, params=params, data=form or None, headers=headers
        ) as response:
            body = io.BytesIO()
            for chunk in response.iter_bytes():
                body.write(chunk)
                if body.tell() > _MAX_ANSWER_BYTES:
                    raise httpx.DecodingError("too long")
        whole = httpx.Response(
            response.status_code,
            headers={k: v for k, v in response.headers.items() if k != "content-encoding"},
            content=body.getvalue(),
            request=response.request,
        )
        if whole.status_code != 200:
            self._refused = (whole.status_code, dict(whole.headers), _object(whole.text))
        return whole


def _object(text: str) -> Mapping[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}


def _claims(token: str) -> Mapping[str, Any]:
    """Return what a token says, unverified: a hint for the words of an error."""

    parts = token.split(".")
    if len(parts) != 3:
        return {}
    with contextlib.suppress(ValueError):
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        return _object(base64.urlsafe_b64decode(padded).decode())
    return {}
