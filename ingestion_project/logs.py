"""How everything logs: one line per event on stderr, JSON or for a console.

Constant event text plus fields (source, mailbox, run, code). No mail address, subject, secret or
query string belongs into a log; local variables of a traceback are never shown, for they hold them.
Web server, Celery, Django and our own code go the same way.
"""

import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from connectors import redaction

#: Loggers that say at INFO what our own lines say better, or what nobody wants every three seconds.
_QUIET = ("botocore", "celery.app.trace", "celery.beat", "celery.worker.strategy", "httpx", "kombu")


def configure(
    log_format: str, *, sentry_dsn: str = "", note: Processor | None = None
) -> dict[str, Any]:
    """Set up structlog and return Django's LOGGING. `log_format` is "json" or "console"; `note`
    sees each line of our own."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_query,
        _escape_event,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            *([note] if note else []),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handlers: dict[str, Any] = {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}}
    if sentry_dsn:
        handlers["sentry"] = {"()": "ingestion_project.telemetry.sentry.Handler", "dsn": sentry_dsn}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [*shared, structlog.stdlib.ExtraAdder(allow=())],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    *_renderers(log_format),
                    _redact_line,
                ],
            }
        },
        "handlers": handlers,
        "root": {"handlers": list(handlers), "level": "INFO"},
        "loggers": {
            **{name: {"level": "WARNING"} for name in _QUIET},
            "django": {"handlers": [], "level": "WARNING", "propagate": True},
            "django.request": {"level": "ERROR"},  # django_structlog logs every status
            "django.server": {"handlers": [], "level": "ERROR", "propagate": True},
            "gunicorn.error": {"handlers": [], "level": "WARNING", "propagate": True},
            "gunicorn.access": {"handlers": [], "level": "ERROR", "propagate": False},
        },
    }


def _renderers(log_format: str) -> list[Processor]:
    if log_format == "json":
        transform = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(transform),
            structlog.processors.JSONRenderer(),
        ]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=0,
            repr_native_str=True,
            sort_keys=False,
        )
    ]


def _redact_line(logger: WrappedLogger, method: str, line: Any) -> str:
    """Take known secrets out of the finished line: a traceback ends with a foreign text."""
    del logger, method
    return redaction.redact(str(line))


def _without_query(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Cut the query from django_structlog's `request`: people search for addresses."""
    del logger, method
    request = event.get("request")
    if isinstance(request, str):
        event["request"] = request.partition("?")[0]
    return event


def _escape_event(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Escape control characters in the text of foreign events: some quote what strangers sent."""
    del logger, method
    text = str(event.get("event", ""))
    if not text.isprintable():
        event["event"] = "".join(
            c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text
        )
    return event
