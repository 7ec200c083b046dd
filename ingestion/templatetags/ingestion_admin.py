"""Template filters: the admin's display functions.

Django reads this module while it still imports the admin's base classes, so our admin is imported
when a filter is first used.
"""

import datetime as dt

from django import template
from django.utils.safestring import SafeString

from ingestion.models import Run, StatusChange

register = template.Library()


@register.filter("ing_time")
def time(moment: dt.datetime | None) -> SafeString | str:
    from ingestion.admin import display  # noqa: PLC0415 - see above

    return display.time_tag(moment)


@register.filter("ing_full_time")
def full_time(moment: dt.datetime | None) -> SafeString | str:
    from ingestion.admin import display  # noqa: PLC0415 - see above

    return display.full_time(moment)


@register.filter("ing_count")
def count(number: int) -> str:
    from ingestion.admin import display  # noqa: PLC0415 - see above

    return display.count(number)


@register.filter("ing_move")
def move(change: StatusChange) -> SafeString:
    from ingestion.admin import display  # noqa: PLC0415 - see above

    return display.status_move(change)


@register.filter("ing_run_badge")
def run_badge(run: Run) -> SafeString:
    from ingestion.admin import display  # noqa: PLC0415 - see above

    return display.badge(run.get_status_display(), display.RUN_TONES[run.status])


@register.filter("ing_size")
def size(size_bytes: int) -> str:
    from ingestion.admin import display  # noqa: PLC0415 - see above

    return display.size(size_bytes)
