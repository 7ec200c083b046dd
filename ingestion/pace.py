"""How often a mailbox is looked for new mail: the longer none came, the more rarely.

    at the most     at its source's interval
    in between      after a QUIET_SHAREth of the time for which nothing came (or went)
    at the least    every SLOWEST_INTERVALS intervals, and every hour, unless the interval is longer

One definition for whoever makes mailboxes due and whoever judges that one is late. It is of what
stands in the row, as the last success left it, so that it is no setting and nothing to keep.
"""

import datetime as dt
from typing import Any

from django.db.models import DurationField, ExpressionWrapper, F, FloatField, IntegerField, Value
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Coalesce, Extract, Greatest, Least, Now

QUIET_SHARE = 24
SLOWEST_INTERVALS, SLOWEST_SECONDS = 4, 3600
_USUAL_INTERVAL_SECONDS = 300
#: A mailbox is late once its turn is so many intervals ago, and never before 15 minutes.
LATE_INTERVALS, LATE = 2, dt.timedelta(minutes=15)


_OPTIONS = F("source__options")


def interval_seconds(options: Any = _OPTIONS) -> Any:
    """Of a Mailbox: how often its source is to be followed, in seconds. `options`: the source's,
    where a query has them without looking for them."""
    told = Cast(KeyTextTransform("syncIntervalSeconds", options), IntegerField())
    return Coalesce(told, _USUAL_INTERVAL_SECONDS)


def seconds(options: Any = _OPTIONS) -> Any:
    """Of a Mailbox: how long after its last success its next turn is, in seconds."""
    interval = interval_seconds(options)
    quiet = ExpressionWrapper(F("last_synced_at") - F("last_mail_at"), DurationField())
    # As a float: PostgreSQL's exact numbers take longer, and it is reckoned of each mailbox.
    quiet_seconds = Coalesce(Cast(Extract(quiet, "epoch"), FloatField()), 0.0)
    slowest = Least(SLOWEST_INTERVALS * interval, SLOWEST_SECONDS)
    wanted = Least(quiet_seconds / QUIET_SHARE, slowest, output_field=FloatField())
    return Greatest(interval, wanted, output_field=FloatField())


def late_before(options: Any = _OPTIONS) -> Any:
    """Of a Mailbox: whatever last succeeded before this moment is late."""
    intervals = LATE_INTERVALS * interval_seconds(options)
    patience = Greatest(seconds(options) + intervals, LATE.total_seconds())
    return Now() - as_span(patience)


def as_span(of_seconds: Any) -> Any:
    """Return a number of seconds as a duration."""
    span = Cast(of_seconds, FloatField()) * Value(dt.timedelta(seconds=1))
    return ExpressionWrapper(span, output_field=DurationField())
