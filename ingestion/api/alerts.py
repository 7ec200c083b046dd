"""/api/v1/alerts: what needs somebody, and what did."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import queries
from ingestion.api import inputs
from ingestion.api.base import ApiViewSet
from ingestion.api.serializers import RowOut
from ingestion.models import Alert, AlertKind


class AlertQuery(inputs.PageQuery):
    open = serializers.BooleanField(
        required=False, allow_null=True, default=None, help_text="Those that are not over; or are."
    )
    kind = inputs.Choice(choices=AlertKind.values, required=False)


class AlertOut(RowOut[Alert]):
    """Something that needs somebody. `sourceId`: null where it is of the whole service."""

    sourceId = serializers.UUIDField(source="source_id", allow_null=True)
    sourceName = serializers.CharField(source="source.name", default=None, allow_null=True)
    beganAt = serializers.DateTimeField(source="began_at")
    endedAt = serializers.DateTimeField(source="ended_at", allow_null=True)

    class Meta:
        model = Alert
        fields = ("id", "kind", "sourceId", "sourceName", "message", "beganAt", "endedAt")


class AlertViewSet(ApiViewSet[Alert]):
    """Alerts."""

    serializer_class = AlertOut

    def get_queryset(self) -> Any:
        return queries.visible_alerts(self.user)

    @extend_schema(
        operation_id="listAlerts", parameters=[AlertQuery], responses={200: AlertOut(many=True)}
    )
    def list(self, request: Request) -> Response:
        """List the alerts of your sources, the newest first; of the service too for its operators.

        Who is told by mail is set in the admin; `alert.began` and `alert.ended` tell webhooks.
        """
        wanted = self.query(AlertQuery)
        found = self.get_queryset()
        if wanted["open"] is not None:
            found = found.filter(ended_at__isnull=wanted["open"])
        if "kind" in wanted:
            found = found.filter(kind=wanted["kind"])
        rows, headers = self.page(found, wanted, size=100)
        return Response(AlertOut(rows, many=True).data, headers=headers)
