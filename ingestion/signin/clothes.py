"""Pages that say what went wrong, in the product's clothes. They ask nothing of the database."""

from collections.abc import Sequence

from django.http import HttpResponse
from django.template.loader import render_to_string

_HOME = [("To the first page", "/")]


def said(
    status: int,
    heading: str,
    text: str,
    links: Sequence[tuple[str, str]] = _HOME,
) -> HttpResponse:
    """Return a page with a sentence, and where one may go from there."""
    context = {"heading": heading, "text": text, "links": links}
    # Without the request: its context would ask for the user, and what it told them last.
    response = HttpResponse(render_to_string("account/said.html", context), status=status)
    response["Cache-Control"] = "no-store"
    return response


def bad_request() -> HttpResponse:
    return said(400, "This can't be understood", "The request is malformed.")


def not_allowed() -> HttpResponse:
    return said(
        403,
        "This page is not for you",
        "Your account lacks the permission. An administrator may add you to a group that has it.",
        [*_HOME, ("Your account", "/account/")],
    )


def not_found() -> HttpResponse:
    return said(
        404,
        "There is nothing here",
        "The address is wrong, or what was here is deleted.",
    )


def away() -> HttpResponse:
    return said(
        503,
        "The database can't be reached",
        "The service is there, and its database or Redis does not answer. Try again in a minute."
        " Where it stays so, tell the operator, to whom manage.py doctor says more.",
        [("Try again", "")],  # the page itself
    )


def took_too_long() -> HttpResponse:
    return said(
        503,
        "This takes too long",
        "The database was at it for half a minute, and was stopped, so that others have their turn."
        " Ask for less (a shorter time, one source), or try again in a few minutes. Where it stays"
        " so, tell the operator: the log has the statement's place.",
    )


def failed(told: str) -> HttpResponse:
    return said(500, "Something went wrong", told)


def form_too_old(path: str) -> HttpResponse:
    """Say that the CSRF token is of another session: mostly the page was left open too long."""
    return said(
        403,
        "This form is too old",
        "You were signed out or signed in anew since the page was opened, or the browser keeps no"
        " cookies for this site. Nothing was changed. Open the page again.",
        [("Open the page again", path if path.startswith(("/admin/", "/account/")) else "/")],
    )
