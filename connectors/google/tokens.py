"""Access tokens, by google-auth: one for each person and scope, kept by the process until it ends.

A worker comes back to the same thousand mailboxes every few minutes; a token lives for an hour.
So a sync without changes costs one request, not two.
"""

import collections
import functools
import hashlib
import json
import threading

import google_auth_httplib2
from google.auth.exceptions import GoogleAuthError, RefreshError
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from connectors import redaction
from connectors.config import Environment
from connectors.google import refusals
from connectors.google.config import GoogleConfig
from connectors.google.refusals import Asker
from connectors.google.transport import Http

#: More than the mailboxes that a process has in turn, or none finds its own again. 2.3 kB each.
_MAX_KEPT = 20_000


class Access:
    """One person's access token for one scope. Thread-safe."""

    def __init__(
        self, credentials: service_account.Credentials | user_credentials.Credentials, scope: str
    ) -> None:
        self._credentials, self._scope = credentials, scope
        self._lock = threading.Lock()

    def token(self, http: Http, asker: Asker) -> str:
        """Return a token that is good for some minutes. Raises ConnectorError."""
        with self._lock:
            if not self._credentials.valid:
                self._renew(http, asker)
            return str(self._credentials.token)

    def forget(self, token: str) -> None:
        """Drop a token that Google refused; not the one that another thread got meanwhile."""
        with self._lock:
            if self._credentials.token == token:
                self._credentials.token = None

    def _renew(self, http: Http, asker: Asker) -> None:
        try:
            self._credentials.refresh(google_auth_httplib2.Request(http))
        except RefreshError as error:
            raise refusals.of_token(error, asker, scope=self._scope) from None
        except (GoogleAuthError, OSError) as error:
            raise refusals.of_connection(error) from None
        except (TypeError, ValueError):  # google-auth takes what is no JSON for some
            raise refusals.no_json() from None
        redaction.remember([self._credentials.token])


_kept: collections.OrderedDict[str, Access] = collections.OrderedDict()
_kept_lock = threading.Lock()


def access(config: GoogleConfig, environment: Environment, *, person: str, scope: str) -> Access:
    """Return the access of a domain's user, or of the one account; where `person` is "", that of
    the service account itself. No network."""
    token_url = environment.endpoints["google.token"]
    secret = [config.serviceAccountKeyJson, config.clientId, config.clientSecret]
    whose = json.dumps([*secret, config.refreshToken, token_url, person, scope])
    name = hashlib.sha256(whose.encode()).hexdigest()
    with _kept_lock:
        found = _kept.get(name)
        if found is None:
            found = _kept[name] = Access(_credentials(config, token_url, person, scope), scope)
            if len(_kept) > _MAX_KEPT:
                _kept.popitem(last=False)
        _kept.move_to_end(name)
    return found


def _credentials(
    config: GoogleConfig, token_url: str, person: str, scope: str
) -> service_account.Credentials | user_credentials.Credentials:
    if config.is_domain:
        account = _service_account(config.serviceAccountKeyJson, token_url)
        return account.with_scopes([scope]).with_subject(person or None)
    return user_credentials.Credentials(
        token=None,
        refresh_token=config.refreshToken,
        token_uri=token_url,
        client_id=config.clientId,
        client_secret=config.clientSecret,
    )


@functools.lru_cache(maxsize=32)
def _service_account(key_json: str, token_url: str) -> service_account.Credentials:
    """Return a key's credentials. Reading a private key takes 30 ms, more than all the rest of a
    sync without changes; a domain's mailboxes share it."""
    info = GoogleConfig(serviceAccountKeyJson=key_json).key | {"token_uri": token_url}
    redaction.remember([info["private_key"]])
    try:
        return service_account.Credentials.from_service_account_info(info)
    except (ValueError, GoogleAuthError):
        raise refusals.unreadable_key() from None
