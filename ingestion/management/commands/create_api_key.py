"""create_api_key: make a bearer key for a program."""

import datetime as dt
import math
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.utils import timezone

from ingestion.management.base import Exit, OperatorCommand
from ingestion.models import ApiKey
from ingestion.services.operations import api_keys

_MAX_DAYS = 36_500


def _days(text: str) -> float | None:
    """Read a number of days; None for "never". Raises ArgumentTypeError, which argparse shows."""
    if text == "never":
        return None
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 < days <= _MAX_DAYS:
        raise ArgumentTypeError(
            f"must be a number of days up to {_MAX_DAYS:,}, or never, not {text!r}"
        )
    return days


class Command(OperatorCommand):
    help = (
        "Make an API key of a user and print it, alone, on stdout. It is shown this once: only its "
        "hash is kept. revoke_key refuses it again."
    )
    example = (
        "KEY=$(manage.py create_api_key --user alice --name reports --scopes read "
        "--expires-days 90)\n"
        'curl -H "Authorization: Bearer $KEY" http://127.0.0.1:8000/api/v1/ingestion'
    )
    reports = False  # the key alone is the report

    def add_own_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", required=True, metavar="U", help="whose key it is")
        parser.add_argument("--name", required=True, metavar="N", help="what it is for")
        parser.add_argument(
            "--scopes",
            nargs="+",
            choices=ApiKey.SCOPES,
            default=list(ApiKey.SCOPES),
            help="what it may do: read sources and mail, write sources, export mail (default: all)",
        )
        parser.add_argument(
            "--expires-days",
            type=_days,
            default=float(api_keys.LIFETIME.days),
            metavar="D",
            help=f"refused after this many days (default: {api_keys.LIFETIME.days}), or never",
        )

    def perform(self, options: dict[str, Any]) -> Exit:
        days = options["expires_days"]
        user = self.find_user(options["user"])
        _, plain = api_keys.create(
            user,
            name=options["name"],
            scopes=options["scopes"],
            expires_at=None if days is None else timezone.now() + dt.timedelta(days=days),
            actor=self.actor,
        )
        self.stdout.write(plain)
        until = "never expires" if days is None else f"expires in {days:g} days"
        self.say(f"Keep it safe: it is not shown again. It acts as {user.get_username()}, {until}.")
        return Exit.OK
