"""What strangers sent can neither colour a terminal nor make a log line of its own."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest
from django.conf import settings

from ingestion_project import logs

HOSTILE = 'a\x1b[31m\x07red \u202e "x": {}'


@pytest.fixture(autouse=True)
def configured_again() -> Iterator[None]:
    yield
    logs.configure(settings.LOG_FORMAT)


def line(log_format: str, record: logging.LogRecord) -> str:
    options = dict(logs.configure(log_format)["formatters"]["line"])
    formatter: logging.Formatter = options.pop("()")(**options)
    return formatter.format(record)


def record(text: str, error: Exception | None = None) -> logging.LogRecord:
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    return logging.LogRecord("foreign", logging.WARNING, "x.py", 1, text, None, info)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_controls_in_a_foreign_text_are_escaped(log_format: str) -> None:
    shown = line(log_format, record(HOSTILE))
    assert "red" in shown
    assert shown.isprintable()


def test_a_json_line_is_one_line_whatever_was_said() -> None:
    forged = 'x\n{"event": "forged"}'
    shown = line("json", record(forged, ValueError(forged)))
    assert "\n" not in shown
    said = json.loads(shown)
    assert said["event"] == forged
    assert said["exception"][0]["exc_value"] == forged


def test_fields_of_our_own_are_escaped() -> None:
    options = dict(logs.configure("console")["formatters"]["line"])
    renderers = options["processors"][1:]
    event: object = {"event": "folder_gone", "path": HOSTILE + "\n", "level": "info"}
    for render in renderers:
        event = render(None, "info", event)
    assert isinstance(event, str)
    assert event.isprintable()
