"""The pages of people: Django's own, in this admin's clothes."""

import json
from typing import Any

import allauth.account.admin
import allauth.mfa.admin
import allauth.socialaccount.admin  # noqa: F401 - each registers pages, which go again below
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db.models import ManyToManyField, Q
from django.http import HttpRequest
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from ingestion import queries
from ingestion.admin.base import OperatorAdmin
from ingestion.amounts import counted
from ingestion.models import AlertRule, IngestionSource, WebhookEndpoint
from ingestion.services.audit import Actor
from ingestion.services.operations import groups, people

admin.site.unregister(User)
admin.site.unregister(Group)
# Rows of django-allauth: a provider is made by settings alone, and a second step by its person.
for _model in list(admin.site._registry):  # noqa: SLF001 - its only list
    if _model._meta.app_label in {"account", "mfa", "socialaccount"}:  # noqa: SLF001 - Django documents it
        admin.site.unregister(_model)

_APPS = ("auth", "ingestion")


class Audited:
    """Rows that Django itself writes: each change goes to our audit, which knows the address."""

    actions_detail_hide_default = True  # its history would always be empty
    search_by_id = False

    class Media:
        js = ("ingestion/filter_boxes.js",)

    def formfield_for_manytomany(
        self,
        db_field: "ManyToManyField[Any, Any]",
        request: HttpRequest | None = None,
        **kwargs: Any,
    ) -> Any:
        """Offer the permissions of what has a page, and those that this row has: saving takes away
        whatever is not shown."""
        field: Any = super().formfield_for_manytomany(db_field, request, **kwargs)  # type: ignore[misc] # the admin's
        if db_field.related_model is Permission:
            match = request.resolver_match if request else None
            pk = match.kwargs.get("object_id") if match else None
            row = db_field.model._default_manager.filter(pk=pk)  # noqa: SLF001 - Django documents it
            field.queryset = field.queryset.filter(
                Q(content_type__app_label__in=_APPS) | Q(pk__in=row.values(db_field.name))
            )
        return field

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        people.rights_changed(obj, verb="create", actor=Actor.of_request(request))

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        told = json.loads(message) if isinstance(message, str) else message
        fields = [name for part in told for name in part.get("changed", {}).get("fields", [])]
        people.rights_changed(obj, verb="update", fields=fields, actor=Actor.of_request(request))

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for row in queryset:
            people.rights_changed(row, verb="delete", actor=Actor.of_request(request))


class _UserForm(UserChangeForm):  # type: ignore[misc] # untyped base
    """Has no right less mean more mail: no staff read that of the sources they made."""

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean()
        user: User = self.instance  # as it was: Django fills it in afterwards
        names = {group.name for group in given.get("groups", ())}
        stays = given.get("is_staff") or not user.is_staff
        if stays or queries.reads_mail(user) or groups.OWNER.name in names:
            return given
        own = IngestionSource.objects.filter(owner=user, deleted_at=None).count()
        if own:
            self.add_error(
                "is_staff",
                f"“{user}” made {counted(own, 'source')} and, without staff status, would read"
                " their mail. Turn off “Active” alone where they are to come in no more. Where they"
                f" are to read it, add the group “{groups.OWNER.name}”.",
            )
        return given


@admin.register(User)
class UserAdmin(Audited, DjangoUserAdmin, OperatorAdmin):  # type: ignore[type-arg] # not generic at run time
    form = _UserForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What is a person's alone to delete goes with the person."""
        listed, counts, needed, protected = super().get_deleted_objects(objs, request)
        theirs = {kind._meta.verbose_name for kind in (AlertRule, WebhookEndpoint)}  # noqa: SLF001 - Django documents it
        return listed, counts, needed - theirs, protected

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        user = form.instance
        if not user.is_staff and user.groups.exclude(name=groups.OWNER.name).exists():
            text = (
                f"“{user}” is in a group whose members work in the admin, and is not let in there."
                " Turn on “Staff status” too."
            )
            self.message_user(request, text, messages.WARNING)


@admin.register(Group)
class GroupAdmin(Audited, DjangoGroupAdmin, OperatorAdmin):
    """Django's, in this admin's clothes."""
