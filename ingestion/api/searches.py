"""/api/v1/searches: what a user keeps to search for again."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion.api import email_serializers, inputs
from ingestion.api.base import ApiViewSet
from ingestion.models import SavedSearch
from ingestion.services.operations import saved_searches


class SavedSearchViewSet(ApiViewSet[SavedSearch]):
    """A user's own saved searches; nobody sees another's."""

    serializer_class = email_serializers.SavedSearchOut

    def get_queryset(self) -> Any:
        return SavedSearch.objects.filter(owner=self.user.pk)

    @extend_schema(
        operation_id="listSearches", responses={200: email_serializers.SavedSearchOut(many=True)}
    )
    def list(self, request: Request) -> Response:
        """List your saved searches by name. `GET /emails?q=` takes their `query`."""
        self.query(inputs.Strict)
        return Response(email_serializers.SavedSearchOut(self.get_queryset(), many=True).data)

    @extend_schema(
        operation_id="saveSearch",
        request=inputs.NewSearch,
        responses={201: email_serializers.SavedSearchOut},
    )
    def create(self, request: Request) -> Response:
        """Keep a query under a name that you have not used yet."""
        given = self.body(inputs.NewSearch)
        saved = saved_searches.save(self.user, **given, actor=self.actor)
        saved.refresh_from_db()
        return Response(email_serializers.SavedSearchOut(saved).data, status.HTTP_201_CREATED)

    @extend_schema(operation_id="deleteSearch", responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Forget a saved search; the mail that it finds stays."""
        saved_searches.delete(self.get_object(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)
