"""Our copy of unfold's outermost template is theirs, but for what is named here."""

from pathlib import Path

import unfold
from django.conf import settings

_NAME = "unfold/layouts/skeleton.html"
_THEIRS = Path(unfold.__file__).parent / "templates" / _NAME
_OURS = Path(settings.BASE_DIR) / "templates" / _NAME
#: Theirs -> ours. A library of 200 kB that no page uses; our own search (`ingestion.admin.find`).
_CHANGED = {
    """        <script src="{% static 'unfold/js/chart/chart.js' %}"></script>\n""": "",
    '{% include "unfold/helpers/command.html" %}': '{% include "admin/ingestion/find/dialog.html" %}',
}


def test_the_skeleton_is_unfolds_but_for_what_is_named() -> None:
    """Where an upgrade fails this: copy theirs, and change what is named above."""
    expected = _THEIRS.read_text()
    for theirs, ours in _CHANGED.items():
        assert expected.count(theirs) == 1, theirs
        expected = expected.replace(theirs, ours)
    assert _OURS.read_text() == expected
