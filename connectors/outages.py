"""Tells an outage from single messages that can't be had: one rule for every provider.

A provider in trouble may refuse every body, one by one, while logins and listings still work. Each
refusal alone looks like a bad message; ten in a row, with no body between, are an outage.
"""

from connectors.errors import MessageRefused, Unavailable
from connectors.types import Missing, RawMessage

#: OpenArchiver's number too. Damaged messages lie in clusters, but say what is wrong with them.
MAX_IN_A_ROW = 10


def without_a_byte() -> MessageRefused:
    """Say what an empty body is: no mail, which has a header section (RFC 5322 section 3.6)."""
    return MessageRefused(
        "The provider handed out no byte of this message. It is asked for again.", code="empty"
    )


class RefusalGuard:
    """The refusals of one `fetch()`. Not thread-safe: ask it where answers are put in order.

    A refusal that may be an outage's first sign is held back until a body comes or the fetch ends,
    so that an outage leaves no message recorded as failed.
    """

    def __init__(self) -> None:
        self._held: list[Missing] = []

    def take(self, answer: RawMessage | Missing) -> list[RawMessage | Missing]:
        """Take the next answer; return those to be told now, in order. Raises as `refused` does."""
        if isinstance(answer, Missing):
            return [*self.refused(answer)]
        if answer.body == b"":  # a provider that hands out nothing is no better for saying 200
            return [*self.refused(Missing(answer.ref, without_a_byte()))]
        return [*self.delivered(), answer]

    def delivered(self) -> list[Missing]:
        """A body came: return the refusals before it, which are about their messages alone."""
        held, self._held = self._held, []
        return held

    end = delivered  #: All was answered: so few refusals are no outage.

    def refused(self, missing: Missing) -> list[Missing]:
        """Take a message that can't be had; return those to be told now.

        Raises Unavailable at the tenth in a row: ask again later, for all of them.
        """
        if not isinstance(missing.error, MessageRefused) or missing.error.of_item:
            return [missing]
        self._held.append(missing)
        if len(self._held) >= MAX_IN_A_ROW:
            raise Unavailable(
                f"The provider refused {MAX_IN_A_ROW} messages in a row, so it is taken for an"
                f" outage. The last answer: {missing.error}",
                code="refuses_all",
            )
        return []
