"""The HTML of a message, made safe to show in a frame that obeys nothing. Pure."""

from typing import NamedTuple

from ingestion.mail.mime import Raw


class Html(NamedTuple):
    """`markup` is sanitised, "" where the message has no HTML. `remote` is how many things of it
    would have been fetched from elsewhere, and were left out."""

    markup: str = ""
    remote: int = 0
    notes: tuple[str, ...] = ()


def html(raw: Raw, *, remote: bool) -> Html:  # noqa: ARG001 - soon
    """Return a message's HTML, of whatever bytes; with `remote`, pictures come from elsewhere."""
    return Html(notes=("This message's HTML can't be shown yet.",))
