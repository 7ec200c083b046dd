"""What every shape that comes out is made of. The shapes are in source_serializers.py and
email_serializers.py. No cursor, token, key or password ever appears in one."""

import datetime as dt
import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

from django.db.models import Model
from rest_framework import serializers

M = TypeVar("M", bound=Model)


class Moment(serializers.DateTimeField):
    """A moment as the database gives it, in UTC. DRF's own looks for the time zone each time, which
    is a tenth of a long list."""

    def to_representation(self, value: Any) -> str:
        moment: dt.datetime = value
        return moment.isoformat().replace("+00:00", "Z")


class Shape(serializers.Serializer[Any]):
    # Of rows of which a list may have a thousand: DRF finds out of each row anew how each field is
    # read, here that is found out once. No field of it is ever left out. A docstring would stand in
    # the document.

    def to_representation(self, instance: Any) -> dict[str, Any]:
        return {
            name: None if (value := read(instance)) is None else show(value)
            for name, read, show in self._plan
        }

    @functools.cached_property
    def _plan(self) -> list[tuple[str, Callable[[Any], Any], Callable[[Any], Any]]]:
        return [
            (str(field.field_name), getattr(self, str(field.method_name)), _as_it_is)
            if isinstance(field, serializers.SerializerMethodField)
            else (str(field.field_name), operator.attrgetter(str(field.source)), _shower(field))
            for field in self._readable_fields
        ]


def _as_it_is(value: Any) -> Any:
    return value


def _shower(field: Any) -> Callable[[Any], Any]:
    plain = (serializers.CharField, serializers.IntegerField, serializers.FloatField)
    return _as_it_is if isinstance(field, plain) else field.to_representation


class RowOut(serializers.ModelSerializer[M]):
    # A docstring would stand in the document. What comes out is always there, also where the model
    # has a default for it: a generated client must not take it for optional.

    def get_extra_kwargs(self) -> dict[str, dict[str, Any]]:
        return {name: {"read_only": True} for name in self.Meta.fields}
