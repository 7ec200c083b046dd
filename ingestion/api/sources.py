"""/api/v1/ingestion: sources and what is done with them. Parses, authorises, calls one service."""

from typing import Any, cast

from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db.models import Sum
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import status, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import queries, tasks
from ingestion.api import events, serializers
from ingestion.models import FailedMessage, Folder, IngestionSource, Pack, Run
from ingestion.services import failures, sources
from ingestion.services.sources import Actor

_LISTED = 500  # runs, mailboxes and failures shown at most
_GONE = OpenApiResponse(description="Ingestion source not found.")


class SourceViewSet(viewsets.GenericViewSet[IngestionSource]):
    """Ingestion sources: one is a configured connection to an email provider."""

    serializer_class = serializers.SourceOut
    lookup_value_regex = "[^/]+"

    def get_queryset(self) -> Any:
        return queries.with_counts(queries.visible_sources(cast("User", self.request.user)))

    def _source(self) -> IngestionSource:
        return self.get_object()

    def _shown(self, source: IngestionSource, code: int = status.HTTP_200_OK) -> Response:
        fresh = queries.with_counts(IngestionSource.objects.filter(pk=source.pk)).get()
        return Response(self._present([fresh])[0], status=code)

    def _present(self, found: list[IngestionSource]) -> list[dict[str, Any]]:
        context = {"runs": queries.current_runs(found)}
        return list(serializers.SourceOut(found, many=True, context=context).data)

    # -- the reference -------------------------------------------------------------------------

    @extend_schema(
        parameters=[serializers.ListQuery],
        responses={200: serializers.SourceOut(many=True)},
        operation_id="listIngestionSources",
    )
    def list(self, request: Request) -> Response:
        """Retrieve all ingestion sources, ordered by name."""
        query = serializers.ListQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        wanted = query.validated_data
        found = self.get_queryset().order_by("name", "pk")
        for field in ("provider", "status"):
            if field in wanted:
                found = found.filter(**{field: wanted[field]})
        if "search" in wanted:
            found = found.filter(name__icontains=wanted["search"])
        if "page" not in wanted and "pageSize" not in wanted:
            return Response(self._present(list(found)))
        pages = Paginator(found, wanted.get("pageSize", 50))
        number = wanted.get("page", 1)
        rows = list(pages.page(number)) if number <= pages.num_pages else []
        headers = {"X-Total-Count": str(pages.count), "Link": _links(request, pages, number)}
        return Response(self._present(rows), headers=headers)

    @extend_schema(
        request=serializers.CreateIngestionSource, responses={201: serializers.SourceOut}
    )
    def create(self, request: Request) -> Response:
        """Create an ingestion source. Its credentials are checked in the background."""
        body = serializers.CreateIngestionSource(data=request.data)
        body.is_valid(raise_exception=True)
        given = body.validated_data
        source = sources.create(
            owner=cast("User", request.user),
            name=given["name"],
            provider=given["provider"],
            provider_config=given["providerConfig"],
            options=given.get("options") or {},
            auto_import=given["autoImport"],
            actor=Actor.of_request(request._request),  # noqa: SLF001 - DRF's own way to it
        )
        tasks.ring(source)
        return self._shown(source, status.HTTP_201_CREATED)

    @extend_schema(responses={200: serializers.SourceOut, 404: _GONE})
    def retrieve(self, request: Request, pk: str) -> Response:
        """Retrieve a single ingestion source by its ID."""
        return Response(self._present([self._source()])[0])

    @extend_schema(
        request=serializers.UpdateIngestionSource,
        responses={200: serializers.SourceOut, 404: _GONE},
    )
    def update(self, request: Request, pk: str) -> Response:
        """Update an ingestion source; fields that are left out keep their values."""
        source = self._source()
        body = serializers.UpdateIngestionSource(data=request.data)
        body.is_valid(raise_exception=True)
        source = sources.update(source, changes=body.validated_data, actor=self._actor())
        tasks.ring(source)
        return self._shown(source)

    @extend_schema(responses={204: None, 404: _GONE})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete an ingestion source and all associated data."""
        source = self._source()
        sources.delete(source, actor=self._actor())
        tasks.ring(source)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=None, responses={202: serializers.StartedOut, 404: _GONE})
    @action(detail=True, methods=["post"], url_path="import", url_name="import")
    def start_import(self, request: Request, pk: str) -> Response:
        """Trigger the initial import; while one runs, the same run is answered."""
        run = sources.start_import(source := self._source(), actor=self._actor())
        return self._started(source, run)

    @extend_schema(request=None, responses={202: serializers.StartedOut, 404: _GONE})
    @action(detail=True, methods=["post"])
    def sync(self, request: Request, pk: str) -> Response:
        """Trigger a forced synchronization."""
        run = sources.start_sync(source := self._source(), actor=self._actor())
        return self._started(source, run)

    @extend_schema(request=None, responses={200: serializers.SourceOut, 404: _GONE})
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Pause an ingestion source; running work stops within one page."""
        return self._shown(sources.pause(self._source(), actor=self._actor()))

    # -- extras --------------------------------------------------------------------------------

    @extend_schema(request=None, responses={200: serializers.SourceOut, 404: _GONE})
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on where pause or an error stopped."""
        source = sources.resume(self._source(), actor=self._actor())
        tasks.ring(source)
        return self._shown(source)

    @extend_schema(request=None, responses={200: serializers.VerdictOut, 404: _GONE})
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, pk: str) -> Response:
        """Check the credentials now, within 15 seconds, and answer the verdict."""
        source = self._source()
        verdict = sources.verify(source, actor=self._actor())
        tasks.ring(source)
        return Response(serializers.VerdictOut(verdict).data)

    @extend_schema(responses={200: serializers.RunOut(many=True), 404: _GONE})
    @action(detail=True, methods=["get"], filter_backends=[])
    def runs(self, request: Request, pk: str) -> Response:
        """List the latest imports and syncs, newest first."""
        found = Run.objects.filter(source=self._source())[:_LISTED]
        return Response(serializers.RunOut(found, many=True).data)

    @extend_schema(responses={200: serializers.MailboxOut(many=True), 404: _GONE})
    @action(detail=True, methods=["get"])
    def mailboxes(self, request: Request, pk: str) -> Response:
        """List the source's mailboxes by address."""
        found = self._source().mailboxes.all()[:_LISTED]
        return Response(serializers.MailboxOut(found, many=True).data)

    @extend_schema(responses={200: serializers.FailureOut(many=True), 404: _GONE})
    @action(detail=True, methods=["get"])
    def failures(self, request: Request, pk: str) -> Response:
        """List the messages that could not be had, latest first, with the reason."""
        found = FailedMessage.objects.filter(mailbox__source=self._source())
        found = found.select_related("mailbox", "folder")[:_LISTED]
        return Response(serializers.FailureOut(found, many=True).data)

    @extend_schema(
        request=serializers.RetryFailures, responses={202: serializers.RetriedOut, 404: _GONE}
    )
    @action(detail=True, methods=["post"], url_path="failures/retry")
    def retry_failures(self, request: Request, pk: str) -> Response:
        """Try failed messages again now: those of `ids`, or all."""
        source = self._source()
        body = serializers.RetryFailures(data=request.data)
        body.is_valid(raise_exception=True)
        ids = body.validated_data.get("ids")
        count = failures.retry(source, actor=self._actor(), ids=ids)
        tasks.ring(source)
        return Response({"retried": count}, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses={200: serializers.StatsOut, 404: _GONE})
    @action(detail=True, methods=["get"])
    def stats(self, request: Request, pk: str) -> Response:
        """Tell how much is archived, and how much space it takes."""
        source = self._source()
        packs = Pack.objects.filter(source=source)
        folders = Folder.objects.filter(mailbox__source=source, removed_at=None)
        return Response(
            {
                "messages": source.message_count,
                "archivedBytes": source.archived_bytes,
                "storedBytes": packs.aggregate(n=Sum("size_bytes"))["n"] or 0,
                "packs": packs.count(),
                "folders": folders.count(),
                "failures": FailedMessage.objects.filter(mailbox__source=source).count(),
            }
        )

    @extend_schema(
        responses={
            (200, "text/event-stream"): OpenApiResponse(description="Progress, once a second."),
            404: _GONE,
        },
        parameters=[OpenApiParameter("id", str, OpenApiParameter.PATH)],
    )
    @action(detail=True, methods=["get"], renderer_classes=[events.EventStreamRenderer])
    def events(self, request: Request, pk: str) -> HttpResponseBase:
        """Stream the progress of the source as server-sent events while a run is under way."""
        source = self._source()
        stream = StreamingHttpResponse(events.progress(source.pk), content_type="text/event-stream")
        stream["Cache-Control"] = "no-store"
        stream["X-Accel-Buffering"] = "no"
        return stream

    def _actor(self) -> Actor:
        return Actor.of_request(self.request._request)  # noqa: SLF001 - DRF's own way to it

    def _started(self, source: IngestionSource, run: Run) -> Response:
        tasks.ring(source)
        body = {"message": f"The {run.kind} is under way.", "run": serializers.RunOut(run).data}
        return Response(body, status=status.HTTP_202_ACCEPTED)

    def check_object_permissions(self, request: Request, obj: Any) -> None:
        try:
            super().check_object_permissions(request, obj)
        except PermissionDenied as error:
            raise PermissionDenied("You may see this source, not change it.") from error


def _links(request: Request, pages: "Paginator[Any]", number: int) -> str:
    def link(to: int, name: str) -> str:
        query = request.query_params.copy()
        query["page"] = str(to)
        return f'<{request.build_absolute_uri(request.path)}?{query.urlencode()}>; rel="{name}"'

    links = [link(1, "first"), link(pages.num_pages, "last")]
    if number > 1:
        links.append(link(number - 1, "prev"))
    if number < pages.num_pages:
        links.append(link(number + 1, "next"))
    return ", ".join(links)
