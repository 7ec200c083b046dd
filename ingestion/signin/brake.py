"""The one brake on guessing, as forms have it."""

from django.core.exceptions import ValidationError
from django.http import HttpRequest

from ingestion.addresses import client_address
from ingestion.services.operations import signing_in

THROTTLED = "throttled"


def count(request: HttpRequest, username: str, *, step: str) -> None:
    """Count a try before it is looked at. Raises ValidationError where there were too many."""
    seconds = signing_in.wait_seconds(username, client_address(request), step=step)
    if seconds:
        raise ValidationError(
            "Too many %(what)s were tried for this user or from this address, so this one was not"
            " looked at. Try again in %(minutes)d min. Nothing else stops: imports go on, and who"
            " is signed in stays so.",
            code=THROTTLED,
            params={
                "what": "passwords" if step == signing_in.PASSWORD else "codes",
                "minutes": -(-seconds // 60),
                "seconds": seconds,
            },
        )


def right(request: HttpRequest, username: str, *, step: str) -> None:
    """Begin anew for who knew it."""
    signing_in.succeeded(username, client_address(request), step=step)
