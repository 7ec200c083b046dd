"""/api/v1/webhooks: who is told of events, and what came of it."""

from typing import Any

from django.db.models import Exists, OuterRef
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import queries
from ingestion.api import inputs
from ingestion.api.base import ApiViewSet
from ingestion.api.serializers import RowOut
from ingestion.models import WebhookDelivery, WebhookEndpoint
from ingestion.models.webhook import Event
from ingestion.places import Places
from ingestion.services.operations import webhooks

#: Each waits for somebody's server.
_tests = Places(total=4, per_user=1, retry_seconds=5)


class NewWebhook(inputs.Strict):
    """An address, and what it is told of.

    `source.error`: a source needs somebody. `run.finished`: an import or sync ended.
    `archive.changed`: /api/v1/changes has something new, at most every five seconds.
    `archive.corrupt`: something archived is damaged or missing. `alert.began`, `alert.ended`:
    something of /api/v1/alerts needs somebody, or is over.
    """

    url = inputs.Text(max_length=2000, help_text="https://, or http:// in a network you trust.")
    events = serializers.ListField(
        child=inputs.Choice(choices=Event.values), min_length=1, max_length=20
    )


class UpdateWebhook(inputs.Strict):
    """What is left out stays. Disabled, it is told nothing, and not later either."""

    url = inputs.Text(max_length=2000, required=False)
    events = serializers.ListField(
        child=inputs.Choice(choices=Event.values), min_length=1, max_length=20, required=False
    )
    enabled = inputs.Flag(required=False)


_SHOWN: tuple[str, ...] = (
    *("id", "url", "events", "enabled", "lastResult", "lastResultAt", "lastDeliveredAt"),
    "createdAt",
)


class WebhookOut(RowOut[WebhookEndpoint]):
    """`url`: of somebody else's the host alone, as the rest may have a token in it. `lastResult`:
    what came of the last try, in words. `lastDeliveredAt`: of the last success."""

    url = serializers.SerializerMethodField()
    lastResult = serializers.CharField(source="last_result")
    lastResultAt = serializers.DateTimeField(source="last_result_at", allow_null=True)
    lastDeliveredAt = serializers.DateTimeField(source="last_delivered_at", allow_null=True)
    createdAt = serializers.DateTimeField(source="created_at")

    class Meta:
        model = WebhookEndpoint
        fields = _SHOWN

    def get_url(self, row: WebhookEndpoint) -> str:
        return webhooks.shown_url(row, self.context["user"])


class NewWebhookOut(WebhookOut):
    """A new webhook with the secret that its server checks signatures with (standardwebhooks.com).

    It is shown this one time.
    """

    secret = serializers.CharField()

    class Meta(WebhookOut.Meta):
        fields = (*_SHOWN, "secret")


class WebhookSecretOut(serializers.Serializer[Any]):
    """The new secret, shown this one time. The one before is good for a day more."""

    secret = serializers.CharField()


class WebhookAnswerOut(serializers.Serializer[Any]):
    """What came of a test. `status`: what the server answered, null where nothing."""

    ok = serializers.BooleanField()
    status = serializers.IntegerField(allow_null=True)
    message = serializers.CharField(source="text")


class WebhookDeliveryOut(RowOut[WebhookDelivery]):
    """An event for a webhook: `id` is the `webhook-id` that its server is sent. `data`: empty where
    it is of a source that you may not see any more."""

    id = serializers.CharField(source="pk.hex")
    sourceId = serializers.UUIDField(source="source_id", allow_null=True)
    createdAt = serializers.DateTimeField(source="created_at")
    nextAttemptAt = serializers.SerializerMethodField()
    finishedAt = serializers.DateTimeField(source="finished_at", allow_null=True)

    class Meta:
        model = WebhookDelivery
        fields = (
            *("id", "event", "sourceId", "data", "outcome", "attempts", "result"),
            *("createdAt", "nextAttemptAt", "finishedAt"),
        )

    def to_representation(self, instance: Any) -> dict[str, Any]:
        shown: dict[str, Any] = super().to_representation(instance)
        return shown | {"data": {}} if instance.is_hidden else shown

    def get_nextAttemptAt(self, row: WebhookDelivery) -> str | None:  # noqa: N802 - the API's name
        """UTC; null where no try is left."""
        if row.outcome != WebhookDelivery.Outcome.PENDING:
            return None
        return serializers.DateTimeField().to_representation(row.not_before)


class WebhookViewSet(ApiViewSet[WebhookEndpoint]):
    """Webhooks."""

    serializer_class = WebhookOut
    staff_need = {"create": "ingestion.add_webhookendpoint"}
    sealed = True

    def get_queryset(self) -> Any:
        return queries.visible_webhooks(self.user)

    def _answer(
        self, shape: type[WebhookOut], row: WebhookEndpoint, code: int = status.HTTP_200_OK
    ) -> Response:
        return Response(shape(row, context={"user": self.user}).data, code)

    @extend_schema(
        operation_id="listWebhooks",
        parameters=[inputs.PageQuery],
        responses={200: WebhookOut(many=True)},
    )
    def list(self, request: Request) -> Response:
        """List your webhooks, the oldest first."""
        return self.paged(self.get_queryset(), WebhookOut, context={"user": self.user})

    @extend_schema(operation_id="createWebhook", request=NewWebhook, responses={201: NewWebhookOut})
    def create(self, request: Request) -> Response:
        """Have an address told of events of your sources. Only this answer has the secret."""
        given = self.body(NewWebhook)
        made, secret = webhooks.create(self.user, **given, actor=self.actor)
        vars(made)["secret"] = secret
        return self._answer(NewWebhookOut, made, status.HTTP_201_CREATED)

    @extend_schema(operation_id="getWebhook", responses={200: WebhookOut})
    def retrieve(self, request: Request, pk: str) -> Response:
        """Retrieve a webhook, and what came of its last delivery."""
        return self._answer(WebhookOut, self.get_object())

    @extend_schema(operation_id="updateWebhook", request=UpdateWebhook, responses={200: WebhookOut})
    def update(self, request: Request, pk: str) -> Response:
        """Change its address or events, enable or disable it."""
        endpoint = self.get_object()
        given = self.body(UpdateWebhook)
        return self._answer(WebhookOut, webhooks.change(endpoint, **given, actor=self.actor))

    @extend_schema(operation_id="deleteWebhook", responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Forget a webhook, and what was to be delivered to it."""
        webhooks.delete(self.get_object(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="rotateWebhookSecret",
        request=inputs.Nothing,
        responses={200: WebhookSecretOut},
    )
    @action(detail=True, methods=["post"], url_path="rotate-secret")
    def rotate_secret(self, request: Request, pk: str) -> Response:
        """Make a new secret. For a day, what is sent is signed with the one before as well."""
        endpoint = self.get_object()
        self.body(inputs.Nothing)
        return Response({"secret": webhooks.rotate_secret(endpoint, actor=self.actor)})

    @extend_schema(
        operation_id="testWebhook", request=inputs.Nothing, responses={200: WebhookAnswerOut}
    )
    @action(detail=True, methods=["post"], idempotent=False)
    def test(self, request: Request, pk: str) -> Response:
        """Send a test now, and tell what the server answered.

        One at a time of one user, and four of all in one process; others are answered 429.
        """
        endpoint = self.get_object()
        self.body(inputs.Nothing)
        with _tests.place(self.user.pk):
            answer = webhooks.test(endpoint, actor=self.actor)
        return Response(WebhookAnswerOut(answer).data)

    @extend_schema(
        operation_id="listWebhookDeliveries",
        parameters=[inputs.PageQuery],
        responses={200: WebhookDeliveryOut(many=True)},
    )
    @action(detail=True, methods=["get"])
    def deliveries(self, request: Request, pk: str) -> Response:
        """List what was to be delivered within 30 days, the newest first, and what came of it."""
        hidden = queries.hidden_sources(self.user).filter(pk=OuterRef("source_id"))
        rows = self.get_object().deliveries.annotate(is_hidden=Exists(hidden))
        return self.paged(rows, WebhookDeliveryOut)
