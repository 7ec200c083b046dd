"""Our copies of unfold's templates are theirs, but for what is named here.

Where an upgrade fails this: copy theirs, and change what is named.
"""

import re
from pathlib import Path

import unfold
from django.conf import settings
from django.http import HttpRequest

from ingestion.admin import navigation


def _theirs(name: str) -> str:
    return (Path(unfold.__file__).parent / "templates" / name).read_text()


def _ours(name: str) -> str:
    return (Path(settings.BASE_DIR) / "templates" / name).read_text()


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _without(text: str, start: str, end: str) -> str:
    """Take out what goes from `start` to the first `end` after it, both included."""
    assert text.count(start) == 1, start
    at = text.index(start)
    return text[:at] + text[text.index(end, at) + len(end) :]


def test_the_skeleton_has_our_search_and_no_library_that_no_page_uses() -> None:
    name = "unfold/layouts/skeleton.html"
    chart = """        <script src="{% static 'unfold/js/chart/chart.js' %}"></script>\n"""
    expected = _replaced(_theirs(name), chart, "")
    search = '{% include "admin/ingestion/find/dialog.html" %}'
    expected = _replaced(expected, '{% include "unfold/helpers/command.html" %}', search)
    assert _ours(name) == expected


def test_rows_of_lists_are_not_asked_for_what_no_list_has() -> None:
    """Forms, sections, actions and handles in rows: to ask each row takes as long as the row."""
    name = "admin/change_list_results.html"
    opened = (
        ' x-data="{rowOpen: false}" {% if cl.model_admin.ordering_field %}x-sort:item{% endif %}'
    )
    expected = _replaced(_theirs(name), opened, "")
    indent = " " * 20
    expected = _without(expected, indent + "{% if result.form and", "{% endif %}\n\n")
    for condition in ("ordering_field", "list_sections|length > 0"):
        start = f"{indent}    {{% if cl.model_admin.{condition} %}}\n"
        expected = _without(expected, start, "{% endif %}\n\n")
    cells = (
        f"{{% for item in result %}}\n{indent}        {{{{ item }}}}\n{indent}    {{% endfor %}}"
    )
    expected = _replaced(expected, cells, '{{ result|join:"" }}')
    actions = f"\n\n{indent}    {{% include 'unfold/helpers/actions_row.html'"
    expected = _without(expected, actions, "%}")
    section = f"\n\n{indent}{{% if cl.model_admin.list_sections|length > 0 %}}\n"
    expected = _without(expected, section, f"</tr>\n{indent}{{% endif %}}")
    assert _ours(name) == expected


def test_the_side_bar_looks_as_theirs_and_has_all_that_is_asked_of_it() -> None:
    """Ours lacks badges, groups that fold, and addresses that are called for."""
    name = "unfold/helpers/app_list.html"
    ours, theirs = (
        {part for found in re.findall(r'class="([^"]*)"', text) for part in found.split()}
        for text in (_ours(name), _theirs(name))
    )
    assert ours <= theirs
    for group in navigation.sections(HttpRequest()):
        assert set(group) <= {"title", "items"}
        for item in group["items"]:
            assert set(item) <= {"title", "icon", "link", "permission"}
