"""What every page of the admin shares: who may, counts that stay cheap, and read-only pages.

The admin is an interface: it reads with querysets and writes through `ingestion.services` alone.
Tables may hold hundreds of millions of rows, so nothing here counts, collects or sorts them all.
"""

import uuid
from typing import TYPE_CHECKING, Any, TypeAlias

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters, admin_urlname
from django.contrib.admin.utils import quote
from django.contrib.postgres.expressions import ArraySubquery
from django.core.paginator import Paginator
from django.db.models import Func, IntegerField, Model, QuerySet, Value
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.safestring import SafeString, mark_safe
from unfold.admin import checkbox
from unfold.templatetags import unfold_list

from ingestion.admin import display
from ingestion.errors import InvalidInput, NotAllowedNow

if TYPE_CHECKING:
    from django.contrib.admin.views.main import ChangeList

    UnfoldAdmin: TypeAlias = admin.ModelAdmin[Any]
else:
    from unfold.admin import ModelAdmin as UnfoldAdmin
    from unfold.views import ChangeList

#: What stands for a row's id in the box that selects it: made once, and not by a template for each
#: row of each list.
_PLACE = "place-of-the-id"
_CHECK_ONE = checkbox.render(helpers.ACTION_CHECKBOX_NAME, _PLACE)
_CHECK_ALL = mark_safe(checkbox.render("action_toggle_all", 1))  # noqa: S308 - a widget's

#: Lists count and page through this many rows; a filter or a search narrows down the rest.
MAX_COUNTED_ROWS = 10_000


class CappedPaginator(Paginator):  # type: ignore[type-arg] # the stubs' generic fails at run time
    """Counts at most MAX_COUNTED_ROWS, so that a list of 100 million messages opens at once."""

    template_name = "admin/ingestion/pagination.html"

    @cached_property
    def counted(self) -> int:
        rows = self.object_list
        if isinstance(rows, QuerySet):
            return rows.order_by().values("pk")[: MAX_COUNTED_ROWS + 1].count()
        return len(rows)

    @cached_property
    def count(self) -> int:
        return min(self.counted, MAX_COUNTED_ROWS)

    @property
    def count_text(self) -> str:
        more = "+" if self.counted > MAX_COUNTED_ROWS else ""
        return f"{self.count:,}{more}"


class CappedChangeList(ChangeList):
    """A change list that never counts the whole table."""

    @cached_property
    def headers(self) -> list[Any]:
        return list(_headers(self))

    @cached_property
    def _address(self) -> str:
        context: dict[str, Any] = {"preserved_filters": self.preserved_filters, "opts": self.opts}
        name = admin_urlname(self.opts, SafeString("change"))
        found: str = add_preserved_filters(context, reverse(name, args=[_PLACE]))
        return found

    def url_for_result(self, result: Any) -> str:
        return self._address.replace(_PLACE, quote(str(result.pk)))

    def get_results(self, request: HttpRequest) -> None:
        """Read the page's rows by their ids: what a list annotates is made of these alone, which
        PostgreSQL would prepare for all that there are. What they were found by isn't asked of
        them again."""
        super().get_results(request)
        ids = list(self.result_list.values_list("pk", flat=True))
        rows = self.apply_select_related(self.root_queryset.order_by().filter(pk__in=ids))
        found = {row.pk: row for row in self.model_admin.read(rows)}  # type: ignore[attr-defined] # ours
        self.result_list = [found[pk] for pk in ids if pk in found]
        if not self.query and not self.has_active_filters:
            self.full_result_count = self.result_count  # "10 results (show all)" says nothing here


#: unfold makes the headers of all columns, and a row's address with the filters that it leads back
#: to, anew for each row, and fills in each cell as Django does (`display.html`).
_headers = unfold_list.result_headers
unfold_list.result_headers = lambda cl: cl.headers if hasattr(cl, "headers") else _headers(cl)
unfold_list.add_preserved_filters = lambda _context, url: url
unfold_list.format_html = display.html


def capped_count(rows: QuerySet[Any], *, cap: int) -> Func:
    """Return an expression that counts a correlated queryset up to `cap`, whatever its size."""
    one = rows.order_by().annotate(one=Value(1)).values("one")  # nothing but what an index has
    return Func(
        ArraySubquery(one[:cap]),
        function="cardinality",
        output_field=IntegerField(),
    )


def as_uuid(text: str) -> uuid.UUID | None:
    """Return the UUID that a search box holds, or None."""
    try:
        return uuid.UUID(text.strip())
    except ValueError:
        return None


class OperatorAdmin(UnfoldAdmin):
    """Base of all pages: capped counts, 50 rows a page, an exact id found from any search box."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # counts of every filter would read the whole table
    list_per_page = 50
    list_max_show_all = 200
    search_by_id = True
    nothing_yet = ""  # what an empty list says
    empty_value_display = display.NOTHING

    def read(self, rows: QuerySet[Any]) -> list[Any]:
        """Read the rows of a page, with all that its columns show."""
        return list(rows)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return CappedChangeList

    @admin.display(description=_CHECK_ALL)
    def action_checkbox(self, obj: Any) -> SafeString:
        box: SafeString = mark_safe(_CHECK_ONE.replace(_PLACE, str(obj.pk)))  # noqa: S308 - ids are ours
        return box

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        wanted = as_uuid(search_term) if self.search_by_id else None
        if wanted is not None:
            return queryset.filter(pk=wanted), False
        return super().get_search_results(request, queryset, search_term)


class AuditedAdmin(OperatorAdmin):
    """Rows that services write, each change with its AuditEvent: Django keeps no second log."""

    actions_detail_hide_default = True  # so its history would always be empty

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Offer one way to save: what is made is looked at next. Say what a service refuses."""
        context = {"show_save_and_continue": False, "show_save_and_add_another": False}
        try:
            return super().changeform_view(
                request, object_id, form_url, context | (extra_context or {})
            )
        except (InvalidInput, NotAllowedNow) as refusal:
            self.message_user(request, f"Not saved. {refusal}", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Leave it to the audit."""

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """Leave it to the audit."""

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """Leave it to the audit."""


class OwnersAdmin(AuditedAdmin):
    """Rows that are their owner's alone to change and delete, with buttons beside Save that tell on
    the page what came of them."""

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and self._is_theirs(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request, obj) and self._is_theirs(request, obj)

    def _is_theirs(self, request: HttpRequest, obj: Any) -> bool:
        return obj is None or obj.owner_id == request.user.pk

    def get_actions_submit_line(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Offer nothing that is refused."""
        row = self.model.objects.filter(pk=object_id).first()
        if row is None or not self.has_change_permission(request, row):
            return []
        offered: list[Any] = super().get_actions_submit_line(request, object_id)  # type: ignore[misc] # unfold's
        return offered

    def press_button(self, request: HttpRequest, row: Any) -> None:
        """Do what the button says by which the form was saved."""
        for pressed in self.get_actions_submit_line(request, row.pk):
            if pressed.action_name in request.POST:
                pressed.method(request, row)

    def response_post_save_change(self, request: HttpRequest, obj: Any) -> HttpResponseRedirect:
        """Stay on the page."""
        return HttpResponseRedirect(display.page_of(obj))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for row in queryset:
            self.delete_model(request, row)


class ReadOnlyAdmin(AuditedAdmin):
    """Rows that the service alone writes: shown, never edited."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False
