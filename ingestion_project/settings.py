"""All settings, from the environment. README.md has the table; a test keeps the two together.

Without DATABASE_URL and REDIS_URL the service uses the PostgreSQL and Redis that
`ingestion_project.embedded` runs under VAR_DIR.
"""

import ipaddress
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured
from django.templatetags.static import static
from structlog.typing import Processor

from ingestion.packs import location
from ingestion_project import assets, embedded, logs, secret_files


class _Env(environ.Env):  # type: ignore[misc] # untyped base
    """Says which setting it is whose value can't be read."""

    def get_value(self, var: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().get_value(var, *args, **kwargs)
        except ValueError as error:
            raise ImproperlyConfigured(f"{var} has no usable value: {error}") from None

    def names(self, var: str, default: Sequence[str] = ()) -> list[str]:
        """Read a list, with blanks as people write them: " b" of "a, b" is nobody's name."""
        return [one.strip() for one in self.list(var, default=default) if one.strip()]


def _process_name(argv: list[str]) -> str:
    """Return by what a process is known in pg_stat_activity: who has a lock is told by it. Without
    what people typed, which may be words of mail."""
    program, *words = [Path(argv[0]).name, *argv[1:]]
    if "--queues" in words:
        words = words[words.index("--queues") + 1 :]
    elif program == "celery":
        words = ["beat"] if "beat" in words else []
    return " ".join([program, *(word for word in words[:1] if not word.startswith("-"))])


# What any process of the service writes is mail, or secrets that lead to it: this user's alone.
os.umask(0o077)

BASE_DIR = embedded.BASE_DIR
secret_files.read()
env = _Env()

_local = embedded.Local.of_environment()
VAR_DIR = _local.var_dir

# Whoever waits for a page waits no longer, nor does their proxy; a plan that is bad holds a thread
# and a core no longer either. Each statement has the time, so that what is streamed may take hours.
_serves_pages = any(word.startswith("ingestion_project.wsgi") for word in sys.argv)
_statement_timeout = "30s" if _serves_pages else "10min"

# -- data ----------------------------------------------------------------------------------------
try:
    _database = env.db_url("DATABASE_URL") if "DATABASE_URL" in env else _local.database()
except (ValueError, ImproperlyConfigured):  # whose words may hold a part of the password
    _database = {}
if not (_database.get("NAME") or "service" in _database.get("OPTIONS", {})):
    raise ImproperlyConfigured(
        "DATABASE_URL must look like postgres://user:password@host/name, with the signs of user and"
        " password percent-encoded (/ is %2F, ? is %3F)."
    )
DATABASES = {
    "default": {
        **_database,
        "ENGINE": "django.db.backends.postgresql",
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        # A host that vanishes says nothing: a thread would wait for it as long as TCP does. Of one
        # that is there the kernel hears, however long a statement takes, or the server does not
        # read. Linux gives up once nothing came for tcp_user_timeout, and that is longer than four
        # keepalives take: with fewer, one lost packet would end a connection that waits. Measured,
        # packets dropped: noticed after 15 s, asked or waiting (60 s with 30, 10, 3 and 60 s); what
        # outlives it: a statement of 75 s with 4 s of each 12 dropped, a COPY of 64 MB to a server
        # that was stopped for 25 s.
        # What a URL says itself wins. (A pooler may want `ignore_startup_parameters = options`.)
        "OPTIONS": {
            "connect_timeout": 10,
            "keepalives_idle": 5,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,  # ms
            "fallback_application_name": _process_name(sys.argv),
            # Compiling a query of a few thousand index look-ups takes longer than they do.
            "options": "-c jit=off"
            f" -c statement_timeout={_statement_timeout}"
            " -c lock_timeout=1min -c tcp_keepalives_idle=30"
            " -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
            **_database.get("OPTIONS", {}),
        },
    }
}
REDIS_URL = env.str("REDIS_URL", default=_local.redis_url)
try:
    _ports = [urlsplit(one).port for one in re.split("[;,]", REDIS_URL)]  # as Django reads it
except ValueError:  # likewise
    raise ImproperlyConfigured(
        "REDIS_URL must look like redis://:password@host:6379/0, with the signs of the password"
        " percent-encoded (/ is %2F, ? is %3F)."
    ) from None
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "OPTIONS": {"serializer": "ingestion_project.serializer.Json"},
    }
}
ARCHIVE_DIR = Path(env.str("ARCHIVE_DIR", default=str(VAR_DIR / "archive"))).resolve()
ARCHIVE_URL = env.str("ARCHIVE_URL", default="")
if ARCHIVE_URL:
    if "ARCHIVE_DIR" in env:
        raise ImproperlyConfigured("Set ARCHIVE_URL or ARCHIVE_DIR, not both.")
    try:
        _archive = location.parse(ARCHIVE_URL)
    except ValueError as _error:
        raise ImproperlyConfigured(f"ARCHIVE_URL has no usable value: {_error}.") from None
    if isinstance(_archive, Path):  # the long form
        ARCHIVE_URL, ARCHIVE_DIR = "", _archive
ARCHIVE_LOCK_DAYS = env.int("ARCHIVE_LOCK_DAYS", default=0)
EXPORT_DIR = Path(env.str("EXPORT_DIR", default=str(VAR_DIR / "exports"))).resolve()

# -- secrets -------------------------------------------------------------------------------------
# Where a database of one's own is used, the keys must be given too: two machines that each made
# their own could not read each other's credentials. Else they are in VAR_DIR once a service began
# there (`embedded.Local.make_secrets`): whoever only looks makes none, and is told so.
_secrets = _local.secrets()
_has_service = "DATABASE_URL" in env or bool(_secrets)
_required: Any = environ.Env.NOTSET
SECRET_KEY = env.str(
    "SECRET_KEY", default=_secrets.get("SECRET_KEY", _required if _has_service else "")
)
ENCRYPTION_KEYS = env.list(
    "ENCRYPTION_KEYS", default=_secrets.get("ENCRYPTION_KEYS", _required if _has_service else [])
)
#: What a command says that has no service to be about.
NO_SERVICE = (
    ""
    if _has_service
    else f"There is no service in {VAR_DIR}. Set VAR_DIR to where yours keeps its data, or "
    "DATABASE_URL to its database; make run begins one."
)
FERNET_KEYS = ENCRYPTION_KEYS
FERNET_USE_HKDF = True

# -- web -----------------------------------------------------------------------------------------
HOST = env.str("HOST", default="127.0.0.1")
PORT = env.int("PORT", default=8000)
DEBUG = env.bool("DEBUG", default=False)
#: Asked from inside: without the proxy, by an address alone.
PROBES = "^/?(healthz|readyz|metrics)$"
ALLOWED_HOSTS = env.names("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.names("CSRF_TRUSTED_ORIGINS")
HTTPS = env.bool("HTTPS", default=False)
TRUSTED_PROXIES = env.names("TRUSTED_PROXIES")
try:
    for _proxy in TRUSTED_PROXIES:
        ipaddress.ip_network(_proxy)
except ValueError as _error:
    raise ImproperlyConfigured(
        f"TRUSTED_PROXIES must be IP addresses or networks, separated by commas: {_error}."
    ) from None
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_REDIRECT_EXEMPT = [PROBES]
METRICS_TOKEN = env.str("METRICS_TOKEN", default="")
#: Other hosts of the domain are not ours to decide about.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]
SESSION_COOKIE_SAMESITE = "Lax"
# ASVS 4.0.3, 3.3.2; `ingestion.middleware.SessionEnd` keeps both.
SESSION_COOKIE_AGE = 12 * 3600  # since the sign-in, however busy
SESSION_IDLE_SECONDS = 30 * 60  # since the last request of a person
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 1_000_000
FILE_UPLOAD_HANDLERS = ["ingestion.uploads.Refused"]

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin.apps.SimpleAdminConfig",  # urls.py discovers: commands need no admin
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.humanize",  # the page of security keys
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "rest_framework",
    "knox",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "django_structlog",
    "allauth",
    "allauth.account",
    "allauth.socialaccount",  # its one provider registers with `ingestion.signin.single`
    "allauth.mfa",
    "ingestion",
]
MIDDLEWARE = [
    "ingestion.api.monitoring.RequestTimes",
    "ingestion.middleware.Compression",
    "django.middleware.security.SecurityMiddleware",
    "ingestion.middleware.ContentPolicy",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "ingestion.middleware.Hosts",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "ingestion.middleware.SessionEnd",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "ingestion.middleware.RequestLog",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "ingestion.signin.second_step.Required",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "ingestion_project.urls"
WSGI_APPLICATION = "ingestion_project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
# An address changes with what is there, so that browsers ask once: other files, another version.
STATICFILES_DIRS = [BASE_DIR / "static"]  # in place of unfold's own
STATIC_URL = f"/static/{assets.version(*STATICFILES_DIRS, BASE_DIR / 'ingestion' / 'static')}/"
WHITENOISE_USE_FINDERS = True  # serves from the packages: no collectstatic step to forget
WHITENOISE_IMMUTABLE_FILE_TEST = lambda path, url: not DEBUG  # noqa: ARG005, E731 - any of them
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},  # ASVS 4.0.3, 2.1.1
    },
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = False  # a redirected POST loses its body; both spellings answer instead
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
LANGUAGES = [("en", "English")]  # each page of unfold looks up all that there are
USE_I18N = False

# -- signing in ----------------------------------------------------------------------------------
# The pages are django-allauth's; what of it is used, and by which rules, is `ingestion.signin`.
LOGIN_URL = "/admin/login/"
LOGIN_REDIRECT_URL = "/"
SSO_ONLY = env.bool("SSO_ONLY", default=False)
REQUIRE_SECOND_FACTOR = env.bool("REQUIRE_SECOND_FACTOR", default=False)
OIDC_ISSUER = env.str("OIDC_ISSUER", default="").rstrip("/")
OIDC_CLIENT_ID = env.str("OIDC_CLIENT_ID", default="")
OIDC_CLIENT_SECRET = env.str("OIDC_CLIENT_SECRET", default="")
OIDC_NAME = env.str("OIDC_NAME", default="single sign-on")
OIDC_GROUPS_CLAIM = env.str("OIDC_GROUPS_CLAIM", default="groups")
OIDC_GROUPS = {
    theirs.strip(): ours.strip() for theirs, ours in env.dict("OIDC_GROUPS", default={}).items()
}
OIDC_DEFAULT_GROUP = env.str("OIDC_DEFAULT_GROUP", default="")
if OIDC_ISSUER and not (OIDC_CLIENT_ID and OIDC_CLIENT_SECRET):
    raise ImproperlyConfigured("OIDC_ISSUER needs OIDC_CLIENT_ID and OIDC_CLIENT_SECRET.")
if SSO_ONLY and not OIDC_ISSUER:
    raise ImproperlyConfigured("SSO_ONLY needs OIDC_ISSUER: else nobody could sign in.")
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "sso",
                "name": OIDC_NAME,
                "client_id": OIDC_CLIENT_ID,
                "secret": OIDC_CLIENT_SECRET,
                "settings": {"server_url": OIDC_ISSUER},
            }
        ]
        if OIDC_ISSUER
        else [],
    }
}
SOCIALACCOUNT_ADAPTER = "ingestion.signin.single.SingleSignOn"
SOCIALACCOUNT_LOGIN_ON_GET = True  # a form may lead nowhere but to this site: ContentPolicy
SOCIALACCOUNT_EMAIL_VERIFICATION = "none"
SOCIALACCOUNT_STORE_TOKENS = False
CSRF_FAILURE_VIEW = "ingestion.api.errors.form_too_old"
ACCOUNT_ADAPTER = "ingestion.signin.own.Accounts"
ACCOUNT_FORMS = {
    "login": "ingestion.signin.own.SignIn",
    "reauthenticate": "ingestion.signin.own.IsItYou",
}
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SESSION_REMEMBER = True  # until SessionEnd ends it
ACCOUNT_RATE_LIMITS = False  # the brake is `services.operations.signing_in`, for all ways
ACCOUNT_REAUTHENTICATION_METHODS = ["mfa"] if SSO_ONLY else ["password", "mfa"]
MFA_ADAPTER = "ingestion.signin.second_step.SecondSteps"
MFA_FORMS = {
    "authenticate": "ingestion.signin.second_step.Authenticate",
    "reauthenticate": "ingestion.signin.second_step.Reauthenticate",
    "activate_totp": "ingestion.signin.second_step.ActivateTotp",
}
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_TOTP_ISSUER = "Email ingestion"
MFA_TOTP_TOLERANCE = 1  # a clock may be half a minute off
MFA_ALLOW_UNVERIFIED_EMAIL = True  # nobody makes their own account here

# -- API -----------------------------------------------------------------------------------------
API_REQUESTS_PER_MINUTE = env.int("API_REQUESTS_PER_MINUTE", default=1200)
KNOX_TOKEN_MODEL = "ingestion.ApiKey"  # noqa: S105 - a model's name
# knox's own migrations make its table even where the model is swapped for ours: a table that
# no model knows, which nothing would ever empty.
MIGRATION_MODULES = {"knox": None}
REST_KNOX = {
    "AUTH_HEADER_PREFIX": "Bearer",
    "TOKEN_TTL": None,
    "AUTO_REFRESH": False,
    "TOKEN_MODEL": "ingestion.ApiKey",
}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "ingestion.api.access.BearerKey",
        "ingestion.api.access.Session",
    ],
    "DEFAULT_PERMISSION_CLASSES": [
        "ingestion.api.access.HasScope",
        "ingestion.api.access.OwnsOrMay",
    ],
    "DEFAULT_THROTTLE_CLASSES": ["ingestion.api.access.PerUser"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_SCHEMA_CLASS": "ingestion.api.schema.Schema",
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "ingestion.api.errors.Handler",
    "EXCEPTION_FORMATTER_CLASS": "ingestion.api.errors.Formatter",
    "ENABLE_IN_DEBUG_FOR_UNHANDLED_EXCEPTIONS": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Ingestion Service API",
    "DESCRIPTION": "Manages ingestion sources, which connect to email providers and import emails."
    "\n\n[How to use it](/api/docs/introduction): a key, examples for each provider, paging,"
    " limits, a generated client. [Error codes](/api/docs/errors): what happened, and what to do.",
    "VERSION": "1.0.0",
    "TAGS": [
        {"name": "ingestion", "description": "Sources, and what is done with them."},
        {"name": "emails", "description": "What was archived."},
        {"name": "exports", "description": "Mail as one file, made in the background."},
        {"name": "searches", "description": "Searches that a user keeps under a name."},
        {"name": "changes", "description": "What changed in the archive, for programs."},
        {"name": "alerts", "description": "What needs somebody, and what did."},
        {"name": "webhooks", "description": "Who is told of events, as they happen."},
    ],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    # An operation's address would be a link within the button that opens it (ARIA has none).
    "SWAGGER_UI_SETTINGS": {"deepLinking": False},
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "ENUM_NAME_OVERRIDES": {
        "SourceStatusEnum": "ingestion.states.SourceStatus",
        "RunStatusEnum": "ingestion.states.RunStatus",
        "RunKindEnum": "ingestion.states.RunKind",
        "ExportStateEnum": "ingestion.states.ExportState",
        "MailboxStateEnum": "ingestion.states.MailboxState",
        "FolderRoleEnum": "ingestion.states.FolderRole",
        "ChangeKindEnum": "ingestion.api.changes.KINDS",
        "ErrorTypeEnum": "ingestion.api.schema.ERROR_TYPES",
        "TrialStepEnum": "ingestion.services.sources.trial.STEPS",
        "ExportFormatEnum": "ingestion.services.archive.exports.formats.FORMATS",
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "ingestion.api.schema.paths_of_the_reference",
    ],
}

# -- admin ---------------------------------------------------------------------------------------
UNFOLD = {
    "SITE_TITLE": "Email ingestion",
    "SITE_HEADER": "Email ingestion",
    "SITE_SYMBOL": "stacked_email",
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": lambda _: static("ingestion/favicon.svg"),
        }
    ],
    "SITE_URL": "/api/docs",
    "SHOW_VIEW_ON_SITE": False,
    "STYLES": [lambda _: static("ingestion/admin.css")],
    "SCRIPTS": [
        lambda _: static("ingestion/live.js"),
        lambda _: static("ingestion/find.js"),
    ],
    "DASHBOARD_CALLBACK": "ingestion.admin.dashboard.context",
    "SIDEBAR": {"show_search": True, "navigation": "ingestion.admin.navigation.sections"},
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .214 259.815)",
            "600": "oklch(54.6% .245 262.881)",
            "700": "oklch(48.8% .243 264.376)",
            "800": "oklch(42.4% .199 265.638)",
            "900": "oklch(37.9% .146 265.522)",
            "950": "oklch(28.2% .091 267.935)",
        }
    },
}

# -- engine --------------------------------------------------------------------------------------
FORBID_PRIVATE_ADDRESSES = env.bool("FORBID_PRIVATE_ADDRESSES", default=False)
IMAP_CONNECTIONS_PER_ACCOUNT = env.int("IMAP_CONNECTIONS_PER_ACCOUNT", default=2)
NETWORK_TIMEOUT_SECONDS = env.float("NETWORK_TIMEOUT_SECONDS", default=30.0)
MAX_MESSAGE_BYTES = env.int("MAX_MESSAGE_BYTES", default=1_000_000_000)
EXTRA_CA_FILE = env.str("EXTRA_CA_FILE", default="")

# -- providers -------------------------------------------------------------------------------------
#: Where the providers are: tests and private gateways point these elsewhere.
PROVIDER_ENDPOINTS = {
    "google.gmail": env.str("GOOGLE_GMAIL_URL", default="https://gmail.googleapis.com"),
    "google.directory": env.str("GOOGLE_DIRECTORY_URL", default="https://admin.googleapis.com"),
    "google.pubsub": env.str("GOOGLE_PUBSUB_URL", default="https://pubsub.googleapis.com"),
    "google.auth": env.str(
        "GOOGLE_AUTH_URL", default="https://accounts.google.com/o/oauth2/v2/auth"
    ),
    "google.token": env.str("GOOGLE_TOKEN_URL", default="https://oauth2.googleapis.com/token"),
    # Empty: where the source's cloud is.
    "microsoft.login": env.str("MICROSOFT_LOGIN_URL", default=""),
    "microsoft.graph": env.str("MICROSOFT_GRAPH_URL", default=""),
}
#: developers.google.com/workspace/gmail/api/reference/quota: units, per minute. "new" is for Cloud
#: projects that began to use the API in May 2026 or later, "old" for those before.
_GOOGLE_QUOTAS = {
    "new": {"user": 6_000, "project": 1_200_000, "get": 20, "list": 5, "history": 2, "watch": 100},
    "old": {"user": 15_000, "project": 1_200_000, "get": 5, "list": 5, "history": 2, "watch": 100},
}
_quota = env.str("GOOGLE_QUOTA", default="new")
if _quota not in _GOOGLE_QUOTAS:
    raise ImproperlyConfigured(f"GOOGLE_QUOTA must be one of: {', '.join(_GOOGLE_QUOTAS)}.")
_google = _GOOGLE_QUOTAS[_quota]
PROVIDER_QUOTAS = {
    "google": {
        **_google,
        "user": env.int("GOOGLE_UNITS_PER_USER", default=_google["user"]),
        "project": env.int("GOOGLE_UNITS_PER_PROJECT", default=_google["project"]),
        "connections": env.int("GOOGLE_CONNECTIONS_PER_MAILBOX", default=8),
    },
    # learn.microsoft.com/graph/throttling-limits: in 10 minutes, for each application and mailbox.
    "microsoft": {
        "mailbox": env.int("MICROSOFT_REQUESTS_PER_MAILBOX", default=10_000),
        "connections": env.int("MICROSOFT_CONNECTIONS_PER_MAILBOX", default=4),
    },
}

# -- alerts --------------------------------------------------------------------------------------
EMAIL_URL = env.str("EMAIL_URL", default="")
try:
    _mail = _Env.email_url_config(EMAIL_URL or "dummymail://")
except (ValueError, ImproperlyConfigured):  # whose words may hold a part of the password
    raise ImproperlyConfigured(
        "EMAIL_URL must look like smtp+tls://user:password@host:587 (or smtp+ssl://, or smtp://),"
        " with the signs of user and password percent-encoded."
    ) from None
EMAIL_BACKEND = _mail["EMAIL_BACKEND"].replace(
    "django.core.mail.backends.smtp.EmailBackend",
    "ingestion.services.operations.alerting.mail.Backend",
)
EMAIL_HOST, EMAIL_FILE_PATH = _mail["EMAIL_HOST"], _mail["EMAIL_FILE_PATH"]
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _mail["EMAIL_HOST_USER"], _mail["EMAIL_HOST_PASSWORD"]
EMAIL_USE_TLS, EMAIL_USE_SSL = "EMAIL_USE_TLS" in _mail, "EMAIL_USE_SSL" in _mail
EMAIL_PORT = _mail["EMAIL_PORT"] or (587 if EMAIL_USE_TLS else 465 if EMAIL_USE_SSL else 25)
EMAIL_TIMEOUT = 15
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="ingestion@localhost")
PUBLIC_URL = env.str("PUBLIC_URL", default="").rstrip("/")
ALERT_IDLE_HOURS = env.int("ALERT_IDLE_HOURS", default=72)

# -- logs ----------------------------------------------------------------------------------------
LOG_FORMAT = env.str("LOG_FORMAT", default="json")  # or "console"
# Where both are empty, nothing of `telemetry` is imported, nor its packages.
SENTRY_DSN = env.str("SENTRY_DSN", default="")
OTEL_EXPORTER_OTLP_ENDPOINT = env.str("OTEL_EXPORTER_OTLP_ENDPOINT", default="")
note: Processor | None = None
try:
    if SENTRY_DSN:
        from ingestion_project.telemetry import sentry  # noqa: F401 - whether it is there
    if OTEL_EXPORTER_OTLP_ENDPOINT:
        from ingestion_project.telemetry.traces import note

        MIDDLEWARE.insert(0, "ingestion_project.telemetry.traces.Requests")
except ModuleNotFoundError as error:
    raise ImproperlyConfigured(
        f"SENTRY_DSN and OTEL_EXPORTER_OTLP_ENDPOINT need more packages ({error.name} is missing):"
        " .venv/bin/pip install --require-hashes -r requirements-telemetry.txt,"
        " or in a container an image that is built with --build-arg TELEMETRY=1"
    ) from None
LOGGING = logs.configure(LOG_FORMAT, sentry_dsn=SENTRY_DSN, note=note)
DJANGO_STRUCTLOG_STATUS_START_LOG_LEVEL = logging.DEBUG  # the line at the end says it all
DJANGO_STRUCTLOG_TRUST_UPSTREAM_REQUEST_ID = True  # middleware.RequestLog looks at it first

# -- Celery --------------------------------------------------------------------------------------
TASKS_APP = "ingestion_project.celery"
CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://")
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "control"
# A last resort: every network operation has its own deadline, of 40 minutes at most (one message).
CELERY_TASK_TIME_LIMIT = 3600
CELERY_WORKER_CONCURRENCY = env.int("WORKER_CONCURRENCY", default=os.cpu_count() or 1)
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_DB_REUSE_MAX = sys.maxsize  # tasks keep their connection as requests do (`celery.py`)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {"visibility_timeout": 7200, "socket_timeout": 30}
CELERY_BEAT_SCHEDULER = "celery.beat:Scheduler"  # in memory: no schedule file to lose or lock
