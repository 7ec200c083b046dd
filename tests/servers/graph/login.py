"""The Microsoft identity platform, as much of it as a reader of mail meets.

Token endpoint v2.0: client credentials with a secret or a signed assertion, authorization code with
PKCE, device code, refresh tokens that rotate. Errors carry the AADSTS codes of Microsoft's
reference ("Microsoft Entra authentication and authorization error codes").
"""

import base64
import dataclasses
import hashlib
import json
import secrets
import time
import urllib.parse
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.servers.graph.http import Request, Response
from tests.servers.graph.store import Tenant, User

_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
#: learn.microsoft.com/graph/deployments: what Graph is called in each cloud, wherever this server is.
AUDIENCES = (
    "https://graph.microsoft.com",
    "https://graph.microsoft.us",
    "https://dod-graph.microsoft.us",
    "https://microsoftgraph.chinacloudapi.cn",
)
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_SHARED_TENANTS = ("common", "organizations")


class Refused(Exception):
    """An error of the token endpoint: OAuth's error, Microsoft's code, its words."""

    def __init__(self, error: str, code: int, text: str) -> None:
        self.error, self.code, self.text = error, code, text


@dataclasses.dataclass
class Claims:
    """Whom a token is for: the application alone, or a user."""

    roles: frozenset[str]
    expires_at: float
    user: User | None = None


class Login:
    """Issues tokens for one application of one tenant. `refuse` makes the token endpoint refuse."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.origin = ""
        self.client_id = "6731de76-14a6-49ae-97bc-6eba6914391e"
        self.client_secret = "canary-9f3b"
        self.is_public_client = False
        self.expired_secrets: set[str] = set()
        self.certificates: list[x509.Certificate] = []
        self.redirect_uris: set[str] = set()
        self.token_seconds = 3600
        self.refuse: Refused | Response | None = None
        self.tokens: dict[str, Claims] = {}
        self.refresh_tokens: dict[str, User] = {}
        #: Who types in each device code as soon as it is given.
        self.signs_in_at_once: User | None = None
        self.issued = 0
        self._codes: dict[str, tuple[User, str, str, str]] = {}
        self._devices: dict[str, User | None] = {}
        self._assertions: set[str] = set()

    def handle(self, request: Request) -> Response:
        tenant, *rest = request.segments
        if rest == ["v2.0", ".well-known", "openid-configuration"]:
            return self._discovery(tenant)
        if rest == ["oauth2", "v2.0", "token"]:
            return self._answer(lambda: self._token(tenant, request.form()))
        if rest == ["oauth2", "v2.0", "devicecode"]:
            return self._answer(lambda: self._device_code(tenant, request.form()))
        return Response.json({"error": "not_found", "path": request.path}, 404)

    def expire_tokens(self) -> None:
        """Let every access token end now."""
        for claims in list(self.tokens.values()):
            claims.expires_at = 0.0

    def claims_of(self, token: str) -> Claims | None:
        """Return whom a valid access token is for."""
        claims = self.tokens.get(token)
        return claims if claims is not None and claims.expires_at > time.time() else None

    # -- what a person does in a browser -----------------------------------------------------------

    def sign_in(self, authorize_url: str, user: User) -> dict[str, str]:
        """Consent as `user`; return what the browser brings to the redirect address."""
        parts = urllib.parse.urlsplit(authorize_url)
        asked = dict(urllib.parse.parse_qsl(parts.query))
        assert parts.path.endswith("/oauth2/v2.0/authorize"), parts.path
        assert asked["client_id"] == self.client_id
        assert asked["response_type"] == "code"
        assert asked["redirect_uri"] in self.redirect_uris, "AADSTS50011"
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(40)
        scope, challenge = asked["scope"], asked["code_challenge"]
        self._codes[code] = (user, asked["redirect_uri"], challenge, scope)
        return {"code": code, "state": asked.get("state", "")}

    def enter_device_code(self, user_code: str, user: User) -> None:
        assert user_code in self._devices
        self._devices[user_code] = user

    def refresh_token_of(self, user: User) -> str:
        token = "0.AXkA" + secrets.token_urlsafe(60)
        self.refresh_tokens[token] = user
        return token

    def application_token(self) -> str:
        """Return an access token of the application."""
        return str(self._issue(None)["access_token"])

    # -- endpoints ---------------------------------------------------------------------------------

    def _discovery(self, tenant: str) -> Response:
        if not self._knows(tenant):
            return _refusal(
                Refused(
                    "invalid_tenant",
                    90002,
                    f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant"
                    " ID and are signing into the correct cloud.",
                )
            )
        base = f"{self.origin}/{tenant}"
        return Response.json(
            {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "issuer": f"{self.origin}/{self.tenant.id}/v2.0",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
            }
        )

    def _answer(self, make: Any) -> Response:
        if isinstance(self.refuse, Response):
            return self.refuse
        try:
            if self.refuse is not None:
                raise self.refuse
            return Response.json(make())
        except Refused as refused:
            return _refusal(refused)

    def _knows(self, tenant: str) -> bool:
        return tenant in (self.tenant.id, self.tenant.domain, *_SHARED_TENANTS)

    def _token(self, tenant: str, form: dict[str, str]) -> dict[str, Any]:
        if not self._knows(tenant):
            raise Refused("invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if form.get("client_id") != self.client_id:
            text = "Application with identifier was not found in the directory 'Contoso'."
            raise Refused("unauthorized_client", 700016, text)
        grant = form.get("grant_type")
        if not (self.is_public_client and grant != "client_credentials"):
            self._authenticate(tenant, form)
        if grant == "client_credentials":
            _check_scope(form, ".default")
            return self._issue(None)
        if grant == "authorization_code":
            return self._issue(self._redeem(form), form["scope"])
        if grant == "refresh_token":
            _check_scope(form, "Mail.Read")
            user = self.refresh_tokens.pop(form["refresh_token"], None)  # it rotates
            if user is None:
                raise Refused("invalid_grant", 700082, "The refresh token has expired.")
            return self._issue(user, form["scope"])
        if grant == _DEVICE_GRANT:
            return self._issue(self._device(form["device_code"]), self._scope)
        raise Refused("unsupported_grant_type", 70003, "The grant type is not supported.")

    def _authenticate(self, tenant: str, form: dict[str, str]) -> None:
        if "client_assertion" in form:
            self._check_assertion(tenant, form)
        elif "client_secret" not in form:
            text = "The request body must contain: 'client_assertion' or 'client_secret'."
            raise Refused("invalid_client", 7000218, text)
        elif form["client_secret"] in self.expired_secrets:
            raise Refused("invalid_client", 7000222, "The provided client secret keys are expired.")
        elif form["client_secret"] != self.client_secret:
            text = "Invalid client secret provided. Ensure the secret being sent is the value."
            raise Refused("invalid_client", 7000215, text)

    def _check_assertion(self, tenant: str, form: dict[str, str]) -> None:
        """As "Certificate credentials" documents: signed by a registered certificate, once."""
        wrong = Refused("invalid_client", 700027, "The client assertion has an invalid signature.")
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            raise wrong
        assertion = form["client_assertion"]
        head = jwt.get_unverified_header(assertion)
        known = {_thumbprint(certificate): certificate for certificate in self.certificates}
        certificate = known.get(str(head.get("x5t#S256", "")).rstrip("="))
        if certificate is None or head.get("alg") != "PS256":
            raise wrong
        try:
            claims = jwt.decode(
                assertion,
                certificate.public_key(),  # type: ignore[arg-type] # an RSA key
                algorithms=["PS256"],
                audience=f"{self.origin}/{tenant}/oauth2/v2.0/token",
                options={"require": ["exp", "iss", "jti", "sub"]},
            )
        except jwt.InvalidTokenError:
            raise wrong from None
        if claims["iss"] != self.client_id or claims["sub"] != self.client_id:
            raise wrong
        if claims["jti"] in self._assertions:
            raise wrong
        self._assertions.add(claims["jti"])

    def _redeem(self, form: dict[str, str]) -> User:
        user, redirect, challenge, _ = self._codes.pop(form.get("code", ""), (None,) * 4)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if user is None or form.get("redirect_uri") != redirect:
            raise Refused("invalid_grant", 70008, "The authorization code has expired.")
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != challenge:
            raise Refused("invalid_grant", 50148, "The code_verifier does not match.")
        return user

    def _device_code(self, tenant: str, form: dict[str, str]) -> dict[str, Any]:
        if not self.is_public_client:
            raise Refused("invalid_client", 7000218, "The app is not a public client.")
        self._scope = form["scope"]
        code = secrets.token_hex(4).upper()
        self._devices[code] = self.signs_in_at_once
        return {
            "user_code": code,
            "device_code": f"device-{code}",
            "verification_uri": f"{self.origin}/device",
            "expires_in": 900,
            "interval": 1,
            "message": f"Enter the code {code}.",
        }

    def _device(self, device_code: str) -> User:
        user = self._devices.get(device_code.removeprefix("device-"))
        if user is None:
            raise Refused("authorization_pending", 70016, "The user has not yet signed in.")
        return user

    def _issue(self, user: User | None, scope: str = "") -> dict[str, Any]:
        self.issued += 1
        roles = frozenset(self.tenant.roles)
        claims: dict[str, Any] = {"aud": AUDIENCES[0], "jti": secrets.token_hex(8)}
        if user is None:
            claims["roles"] = sorted(roles)
        else:
            claims["scp"] = "Mail.Read User.Read"
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        token = f"eyJhbGciOiJSUzI1NiJ9.{payload}.{secrets.token_urlsafe(20)}"
        self.tokens[token] = Claims(roles, time.time() + self.token_seconds, user)
        answer = {"token_type": "Bearer", "expires_in": self.token_seconds, "access_token": token}
        if user is not None:
            answer["scope"] = scope
            if "offline_access" in scope:
                answer["refresh_token"] = self.refresh_token_of(user)
        return answer


def _check_scope(form: dict[str, str], permission: str) -> None:
    if not {f"{audience}/{permission}" for audience in AUDIENCES} & set(form["scope"].split()):
        raise Refused("invalid_scope", 70011, "The provided value for scope is not valid.")


def _refusal(refused: Refused) -> Response:
    status = 401 if refused.error == "invalid_client" else 400
    body = {
        "error": refused.error,
        "error_description": f"AADSTS{refused.code}: {refused.text} Trace ID: 0a Correlation ID:"
        " 0b Timestamp: 2026-01-05 08:00:00Z",
        "error_codes": [refused.code],
        "timestamp": "2026-01-05 08:00:00Z",
        "trace_id": "0a",
        "correlation_id": "0b",
    }
    return Response.json(body, status)


def _thumbprint(certificate: x509.Certificate) -> str:
    digest = certificate.fingerprint(hashes.SHA256())
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
