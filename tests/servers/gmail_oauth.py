"""Google's authorization: signed assertions of service accounts, consent with PKCE, refresh tokens.

Errors have the bodies that Google documents (developers.google.com/identity/protocols/oauth2).
"""

import base64
import dataclasses
import hashlib
import json
import secrets
import time
import urllib.parse
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.servers.gmail_http import Request, Response

AUDIENCE = "https://oauth2.googleapis.com/token"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # one for all: it is slow
_OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    subject: str
    scopes: frozenset[str]
    project: str
    expires_at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Code:
    subject: str
    scope: str
    challenge: str
    redirect_uri: str


class OAuth:
    """The token endpoint and the consent page of one scripted Google."""

    def __init__(self, addresses: Any) -> None:
        self._addresses = addresses  # address -> Person
        self.account = "archiver@project-1.iam.gserviceaccount.com"
        self.account_id = "104000000000000000001"
        self.delegated: set[str] = set()
        self.client_id, self.client_secret = "client-1.apps.googleusercontent.com", "secret"
        self.redirect_uris: set[str] = set()
        self.refresh_tokens: dict[str, tuple[str, str]] = {}  # token -> subject, scope
        self.tokens: dict[str, Token] = {}
        self.token_seconds = 3600.0
        self.clock_offset = 0.0  # of this server's clock against the client's
        self.key_deleted = False
        self.signs_in_as = ""
        self.grants: str | None = None  # another scope than was asked for; "" refuses
        self._codes: dict[str, Code] = {}

    def key_json(self) -> dict[str, Any]:
        """Return a key as Google's console downloads it."""
        return {
            "type": "service_account",
            "project_id": "project-1",
            "private_key_id": "f00dcafe",
            "private_key": _pem(_KEY),
            "client_email": self.account,
            "client_id": self.account_id,
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": AUDIENCE,
            "universe_domain": "googleapis.com",
        }

    def grant(self, subject: str, scope: str) -> str:
        """Return a refresh token, as if the person had consented before."""
        token = f"1//{secrets.token_urlsafe(24)}"
        self.refresh_tokens[token] = (subject, scope)
        return token

    def holder(self, bearer: str) -> Token | None:
        token = self.tokens.get(bearer)
        return token if token and token.expires_at > time.time() else None

    # -- POST /token -----------------------------------------------------------------------------

    def token(self, request: Request) -> Response:
        form = {k: v[0] for k, v in urllib.parse.parse_qs(request.body.decode()).items()}
        grants = {
            _JWT_BEARER: self._by_assertion,
            "refresh_token": self._by_refresh_token,
            "authorization_code": self._by_code,
        }
        grant = grants.get(form.get("grant_type", ""))
        return grant(form) if grant else _refused("unsupported_grant_type", "Invalid grant_type")

    def _by_assertion(self, form: dict[str, str]) -> Response:
        head, claims_text, signature = form["assertion"].split(".")
        claims = json.loads(_decoded(claims_text))
        genuine = claims["iss"] == self.account and not self.key_deleted
        if not genuine or not _is_signed(f"{head}.{claims_text}", _decoded(signature)):
            return _refused("invalid_grant", "Invalid JWT Signature.")
        now = time.time() + self.clock_offset
        short = 0 < claims["exp"] - claims["iat"] <= 3600
        if not short or not claims["iat"] - 300 <= now < claims["exp"]:
            return _refused(
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable"
                " timeframe. Check your iat and exp values in the JWT claim.",
            )
        if claims["aud"] != AUDIENCE:
            return _refused("invalid_grant", "Invalid JWT: Failed audience check.")
        if "sub" not in claims:  # the service account itself: what it may do is up to IAM
            return self._issued(self.account, claims["scope"], project="project-1")
        subject = claims["sub"]
        if subject not in self._addresses or self._addresses[subject].suspended:
            return _refused("invalid_grant", "Invalid email or User ID")
        scopes = claims["scope"].split()
        if not scopes or not set(scopes) <= self.delegated:
            return _refused(
                "unauthorized_client",
                "Client is unauthorized to retrieve access tokens using this method, or client not"
                " authorized for any of the scopes requested.",
                status=401,
            )
        return self._issued(subject, claims["scope"], project="project-1")

    def _by_refresh_token(self, form: dict[str, str]) -> Response:
        if refusal := self._wrong_client(form):
            return refusal
        held = self.refresh_tokens.get(form.get("refresh_token", ""))
        if held is None:
            return _refused("invalid_grant", "Token has been expired or revoked.")
        return self._issued(*held, project=self.client_id)

    def _by_code(self, form: dict[str, str]) -> Response:
        if refusal := self._wrong_client(form):
            return refusal
        code = self._codes.pop(form.get("code", ""), None)
        if code is None:
            return _refused("invalid_grant", "Malformed auth code.")
        verifier = form.get("code_verifier", "")
        if not 43 <= len(verifier) <= 128 or _challenge(verifier) != code.challenge:
            return _refused("invalid_grant", "Invalid code verifier.")
        if form.get("redirect_uri") != code.redirect_uri:
            return _refused("redirect_uri_mismatch", "Bad Request")
        refresh = self.grant(code.subject, code.scope)
        return self._issued(code.subject, code.scope, project=self.client_id, refresh=refresh)

    def _wrong_client(self, form: dict[str, str]) -> Response | None:
        if form.get("client_id") != self.client_id:
            return _refused("invalid_client", "The OAuth client was not found.", status=401)
        if form.get("client_secret") != self.client_secret:
            return _refused("invalid_client", "The provided client secret is invalid.", status=401)
        return None

    def _issued(self, subject: str, scope: str, *, project: str, refresh: str = "") -> Response:
        token = f"ya29.{secrets.token_urlsafe(24)}"
        expires_at = time.time() + self.token_seconds
        self.tokens[token] = Token(subject, frozenset(scope.split()), project, expires_at)
        answer = {
            "access_token": token,
            "expires_in": int(self.token_seconds),
            "token_type": "Bearer",
            "scope": scope,
        }
        return _json(200, answer | ({"refresh_token": refresh} if refresh else {}))

    # -- GET /o/oauth2/v2/auth -------------------------------------------------------------------

    def page(self, request: Request) -> Response:
        """Stand for the consent page and the person who clicks on it: send them back at once."""
        query = {name: values[0] for name, values in request.query.items()}
        if query.get("client_id") != self.client_id or query.get("response_type") != "code":
            return Response(400, b"Error 401: invalid_client")
        back = query.get("redirect_uri", "")
        if back not in self.redirect_uris:
            return Response(400, b"Error 400: redirect_uri_mismatch")
        if query.get("code_challenge_method") != "S256" or query.get("access_type") != "offline":
            return Response(400, b"Error 400: invalid_request")
        answer = {"state": query["state"]}
        scope = query["scope"] if self.grants is None else self.grants
        if not scope:
            answer["error"] = "access_denied"
        else:
            code = f"4/{secrets.token_urlsafe(24)}"
            subject = self.signs_in_as or query.get("login_hint", "")
            self._codes[code] = Code(subject, scope, query["code_challenge"], back)
            answer |= {"code": code, "scope": scope, "authuser": "0", "prompt": "consent"}
        return Response(302, headers={"Location": f"{back}?{urllib.parse.urlencode(answer)}"})


def another_key() -> str:
    """Return a private key that no service account has."""
    return _pem(_OTHER_KEY)


def _pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _is_signed(text: str, signature: bytes) -> bool:
    try:
        _KEY.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _json(status: int, answer: dict[str, Any]) -> Response:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Response(status, json.dumps(answer).encode(), headers)


def _refused(error: str, description: str, *, status: int = 400) -> Response:
    return _json(status, {"error": error, "error_description": description})
