"""/api/v1/ingestion: sources and what is done with them. Parses, authorises, calls one service."""

import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound
from rest_framework.generics import get_object_or_404
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from ingestion import dispatching, index_health, queries
from ingestion.api import events, inputs, source_serializers
from ingestion.api.base import ApiViewSet
from ingestion.errors import LostRace
from ingestion.models import FEW_SOURCES, FailedMessage, IngestionSource, Run
from ingestion.places import Places
from ingestion.services.engine import failures
from ingestion.services.sources import (
    configuration,
    consent,
    consent_links,
    credentials,
    same_account,
    trial,
    verbs,
)

_PAGED = [
    OpenApiParameter("X-Total-Count", int, OpenApiParameter.HEADER, response=[200]),
    OpenApiParameter("Link", str, OpenApiParameter.HEADER, response=[200]),
]

#: A check may wait 15 s for a server, and holds one of the 32 threads of its process meanwhile.
_checks = Places(total=8, per_user=2, retry_seconds=5)


class SourceViewSet(ApiViewSet[IngestionSource]):
    """Ingestion sources: one is a configured connection to an email provider."""

    serializer_class = source_serializers.SourceOut
    staff_need = dict.fromkeys(("create", "test"), "ingestion.add_ingestionsource")

    def get_queryset(self) -> Any:
        """Return what a verb is done with; what is shown of it takes ten times as long."""
        rows = queries.visible_sources(self.user)
        return source_serializers.source_rows(rows) if self.action == "retrieve" else rows

    def handle_exception(self, exc: Exception) -> Response:
        if (
            isinstance(exc, LostRace)
            and not self.get_queryset().filter(pk=self.kwargs["pk"]).exists()
        ):
            exc = NotFound()  # somebody deleted it while we looked
        return super().handle_exception(exc)

    # -- the reference -------------------------------------------------------------------------

    @extend_schema(
        operation_id="listIngestionSources",
        parameters=[inputs.ListQuery, *_PAGED],
        responses={200: source_serializers.SourceOut(many=True)},
    )
    def list(self, request: Request) -> Response | StreamingHttpResponse:
        """Retrieve all ingestion sources, ordered by name.

        With `page` or `pageSize` (default 50) one page of them, and the headers that tell of the
        others. Else all; more than a hundred come as they are read: an array that is not closed
        was cut off.
        """
        wanted = self.query(inputs.ListQuery)
        found = self.get_queryset().defer(*source_serializers.NOT_SHOWN).order_by("name", "pk")
        for field in ("provider", "status"):
            if field in wanted:
                found = found.filter(**{field: wanted[field]})
        if "search" in wanted:
            found = found.filter(name__icontains=wanted["search"])
        if "page" not in wanted and "pageSize" not in wanted:
            return _everything(found)
        rows, headers = self.page(source_serializers.source_rows(found), wanted, size=50)
        return Response(source_serializers.present_sources(rows), headers=headers)

    @extend_schema(
        operation_id="createIngestionSource",
        request=inputs.CreateIngestionSource,
        responses={201: source_serializers.OneSourceOut},
    )
    def create(self, request: Request) -> Response:
        """Create an ingestion source. Its credentials are checked in the background."""
        given = self.body(inputs.CreateIngestionSource)
        source = configuration.create(
            owner=self.user,
            name=given["name"],
            provider=given["provider"],
            provider_config=given["providerConfig"],
            options=given.get("options", {}),
            auto_import=given["autoImport"],
            actor=self.actor,
        )
        return self._after(source, status.HTTP_201_CREATED)

    @extend_schema(
        operation_id="testConfiguration",
        request=inputs.TestConfiguration,
        responses={200: source_serializers.TrialOut},
    )
    @action(detail=False, methods=["post"], idempotent=False)
    def test(self, request: Request) -> Response:
        """Try a configuration without storing anything: as far as one message that was read.

        Takes the body that is to create the source; autoImport changes nothing here.
        Each step takes up to some 15 seconds. A configuration that can't be right: 400. Two at a
        time of one user, and eight of all in one process; others are answered 429. A refresh token
        that serves once is used up.
        """
        given = self.body(inputs.TestConfiguration)
        if "name" in given:
            configuration.check_name(given["name"])
        with _checks.place(self.user.pk):
            steps = list(
                trial.steps(
                    provider=given["provider"],
                    provider_config=given["providerConfig"],
                    options=given.get("options"),
                )
            )
        ok = all(step.ok for step in steps)
        known = same_account.Known(self.user)
        warnings = known.warnings(given["provider"], given["providerConfig"], is_proven=ok)
        shown = {"ok": ok, "steps": steps, "warnings": warnings}
        return Response(source_serializers.TrialOut(shown).data)

    @extend_schema(
        operation_id="getIngestionSource", responses={200: source_serializers.OneSourceOut}
    )
    def retrieve(self, request: Request, pk: str) -> Response:
        """Retrieve a single ingestion source by its ID."""
        return self._shown(self.get_object())

    @extend_schema(
        operation_id="updateIngestionSource",
        parameters=[OpenApiParameter("If-Match", str, OpenApiParameter.HEADER)],
        request=inputs.UpdateIngestionSource,
        responses={200: source_serializers.OneSourceOut},
    )
    def update(self, request: Request, pk: str) -> Response:
        """Update an ingestion source; fields that are left out keep their values.

        With `If-Match: ETAG`, of an answer before, only where nobody else changed it meanwhile;
        else 412.
        """
        source = self.get_object()
        changes = self.body(inputs.UpdateIngestionSource)
        changed = configuration.update(
            source, changes=changes, expected=_if_match(request), actor=self.actor
        )
        return self._after(changed)

    @extend_schema(operation_id="deleteIngestionSource", responses={204: None})
    def destroy(self, request: Request, pk: str) -> Response:
        """Delete an ingestion source and all associated data.

        It is gone from every answer at once; what it archived is removed in the background.
        """
        source = self.get_object()
        verbs.delete(source, actor=self.actor)
        dispatching.on_commit(source)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="startImport",
        request=inputs.Nothing,
        responses={202: source_serializers.StartedOut},
    )
    @action(detail=True, methods=["post"], url_path="import", url_name="import")
    def start_import(self, request: Request, pk: str) -> Response:
        """Trigger the initial import; while a run is under way, that one is answered."""
        source = self._named_by_a_verb()
        return self._started(source, verbs.start_import(source, actor=self.actor))

    @extend_schema(
        operation_id="startSync",
        request=inputs.Nothing,
        responses={202: source_serializers.StartedOut},
    )
    @action(detail=True, methods=["post"])
    def sync(self, request: Request, pk: str) -> Response:
        """Trigger a forced synchronization. A source that was never imported is imported."""
        source = self._named_by_a_verb()
        return self._started(source, verbs.start_sync(source, actor=self.actor))

    @extend_schema(
        operation_id="pauseIngestionSource",
        request=inputs.Nothing,
        responses={200: source_serializers.OneSourceOut},
    )
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Pause an ingestion source; running work stops within one page, keeping all it has."""
        source = self._named_by_a_verb()
        return self._after(verbs.pause(source, actor=self.actor))

    # -- extras --------------------------------------------------------------------------------

    @extend_schema(
        operation_id="resumeIngestionSource",
        request=inputs.Nothing,
        responses={200: source_serializers.OneSourceOut},
    )
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Go on where a pause or an error stopped."""
        source = self._named_by_a_verb()
        return self._after(verbs.resume(source, actor=self.actor))

    @extend_schema(
        operation_id="verifyIngestionSource",
        request=inputs.Nothing,
        responses={200: source_serializers.VerdictOut},
    )
    @action(detail=True, methods=["post"], idempotent=False)
    def verify(self, request: Request, pk: str) -> Response:
        """Check the credentials now, within 15 seconds, and answer the verdict.

        Two at a time of one user, and eight of all in one process; others are answered 429.
        """
        source = self._named_by_a_verb()
        with _checks.place(self.user.pk):
            verdict = credentials.check(source, actor=self.actor)
        dispatching.on_commit(source)
        return Response(source_serializers.VerdictOut(verdict).data)

    @extend_schema(
        operation_id="beginSignIn",
        request=inputs.Nothing,
        responses={200: source_serializers.SignInOut},
    )
    @action(detail=True, methods=["post"], url_path="oauth/authorize", url_name="authorize")
    def authorize(self, request: Request, pk: str) -> Response:
        """Begin a sign-in at the provider: open the answered address in a browser.

        It comes back to /api/v1/oauth/callback, within ten minutes and as the same user. A source
        whose credentials are of another kind: 409.
        """
        source = self._named_by_a_verb()
        back = consent.callback_url(request._request)  # noqa: SLF001 - DRF's own way to it
        url = consent.begin(source, by=self.user, redirect_uri=back)
        return Response(source_serializers.SignInOut({"url": url, "redirect_uri": back}).data)

    @extend_schema(
        operation_id="makeConsentLink",
        request=inputs.NewConsentLink,
        responses={201: source_serializers.ConsentLinkOut},
    )
    @action(
        detail=True,
        methods=["post"],
        url_path="consent-link",
        url_name="consent-link",
        sealed=True,
    )
    def consent_link(self, request: Request, pk: str) -> Response:
        """Make a link for the owner of the account, who needs no user here.

        It shows who asks for what, and lets them sign in at the provider, or type in their own
        password, once. The link before is revoked. A source to which nobody grants access: 409.
        """
        source: IngestionSource = self.get_object()
        hours = self.body(inputs.NewConsentLink)["hours"]
        link, token = consent_links.make(source, hours=hours, actor=self.actor)
        url = consent_links.address(token, here=request.build_absolute_uri("/"))
        shown = source_serializers.ConsentLinkOut({"url": url, "expires_at": link.expires_at})
        return Response(shown.data, status=status.HTTP_201_CREATED)

    @extend_schema(operation_id="revokeConsentLink", request=None, responses={204: None})
    @consent_link.mapping.delete
    def revoke_consent_link(self, request: Request, pk: str) -> Response:
        """Revoke the link that is open, where there is one."""
        consent_links.revoke(self.get_object(), actor=self.actor)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="listRuns",
        parameters=[inputs.PageQuery, *_PAGED],
        responses={200: source_serializers.RunOut(many=True)},
    )
    @action(detail=True, methods=["get"])
    def runs(self, request: Request, pk: str) -> Response:
        """List imports and syncs, newest first."""
        return self.paged(Run.objects.filter(source=self.get_object()), source_serializers.RunOut)

    @extend_schema(
        operation_id="listMailboxes",
        parameters=[inputs.PageQuery, *_PAGED],
        responses={200: source_serializers.MailboxOut(many=True)},
    )
    @action(detail=True, methods=["get"])
    def mailboxes(self, request: Request, pk: str) -> Response:
        """List the source's mailboxes by address."""
        return self.paged(self.get_object().mailboxes.all(), source_serializers.MailboxOut)

    @extend_schema(
        operation_id="listFailures",
        parameters=[inputs.PageQuery, *_PAGED],
        responses={200: source_serializers.FailureOut(many=True)},
    )
    @action(detail=True, methods=["get"])
    def failures(self, request: Request, pk: str) -> Response:
        """List the messages that could not be had, with the reason and the next try."""
        found = FailedMessage.objects.filter(mailbox__source=self.get_object())
        return self.paged(found.select_related("mailbox", "folder"), source_serializers.FailureOut)

    @extend_schema(
        operation_id="retryFailures",
        request=inputs.RetryFailures,
        responses={202: source_serializers.RetriedOut},
    )
    @action(detail=True, methods=["post"], url_path="failures/retry")
    def retry_failures(self, request: Request, pk: str) -> Response:
        """Try failed messages again now: those of `ids`, or all."""
        source = self.get_object()
        ids = self.body(inputs.RetryFailures).get("ids")
        count = failures.retry(source, actor=self.actor, ids=ids)
        dispatching.on_commit(source)
        return Response({"retried": count}, status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        operation_id="getStats",
        parameters=[inputs.StatsQuery, *_PAGED],
        responses={200: source_serializers.StatsOut},
    )
    @action(detail=True, methods=["get"])
    def stats(self, request: Request, pk: str) -> Response:
        """Tell how much is archived, in all and by folder, how much of that can be found, and how
        much space it takes."""
        source = self.get_object()
        wanted = self.query(inputs.StatsQuery)
        folders = queries.folders_with_counts(source)
        if "mailbox" in wanted:
            folders = folders.filter(mailbox=wanted["mailbox"])
        rows, headers = self.page(folders, wanted, size=100)
        health = index_health.in_all(IngestionSource.objects.filter(pk=source.pk))
        shown = {**queries.stats(source), **index_health.as_object(health), "byFolder": rows}
        return Response(source_serializers.StatsOut(shown).data, headers=headers)

    @extend_schema(
        operation_id="followProgress",
        responses={
            # A schema here is each event's to some, the whole stream's to others (OpenAPI 3.2).
            (200, "text/event-stream"): OpenApiResponse(
                OpenApiTypes.ANY,
                description="Events `progress` once a second, `end` when no run is under way; the"
                " data is JSON: status, counts and currentRun.",
            ),
        },
    )
    @action(detail=True, methods=["get"])
    def events(self, request: Request, pk: str) -> HttpResponseBase:
        """Follow the source's progress as server-sent events while a run is under way.

        A stream lasts five minutes at most; connect again for more. Where too many are open, 429.
        """
        progress = events.Progress(self.get_object().pk, self.user)
        stream = StreamingHttpResponse(progress, content_type="text/event-stream")
        stream["Cache-Control"] = "no-store"
        stream["X-Accel-Buffering"] = "no"  # nginx would hold events back
        return stream

    # -- inside --------------------------------------------------------------------------------

    def _named_by_a_verb(self) -> IngestionSource:
        """Return the source of a request whose body says nothing. Raises where it does."""
        source: IngestionSource = self.get_object()
        self.body(inputs.Nothing)
        return source

    def _after(self, source: IngestionSource, code: int = status.HTTP_200_OK) -> Response:
        """Ring for what a verb left due, and answer the source as it is now."""
        dispatching.on_commit(source)
        now = source_serializers.source_rows(IngestionSource.objects.filter(deleted_at=None))
        found = get_object_or_404(now, pk=source.pk)
        return self._shown(found, status=code)

    def _started(self, source: IngestionSource, run: Run) -> Response:
        dispatching.on_commit(source)
        body = {
            "message": f"The {run.kind} is under way.",
            "run": source_serializers.RunOut(run).data,
        }
        return Response(body, status=status.HTTP_202_ACCEPTED)

    def _shown(self, source: IngestionSource, status: int = status.HTTP_200_OK) -> Response:
        """Answer a source, with the version of what it is configured to be as ETag."""
        etag = f'"{configuration.version(source)}"'
        shown = source_serializers.present_source(source, user=self.user)
        return Response(shown, status=status, headers={"ETag": etag})


def _if_match(request: Request) -> str | None:
    """Return the one version that If-Match names; None where there is none, or it is "*"."""
    given = request.headers.get("If-Match", "*").strip()
    return None if given == "*" else given.strip('"')


#: So many are read at a time, once the first are on their way.
_AT_ONCE = 1_000


def _everything(found: QuerySet[IngestionSource]) -> Response | StreamingHttpResponse:
    """Answer all of them. Many are read and sent some at a time: the first come as soon as those of
    a short list, and no process holds all, however many there are."""
    ids = list(found.values_list("pk", flat=True))
    first = _present(found, ids[:FEW_SOURCES])  # what fails here is still answered as an error
    if len(ids) <= FEW_SOURCES:
        return Response(first)
    starts = range(FEW_SOURCES, len(ids), _AT_ONCE)
    others = (_present(found, ids[start : start + _AT_ONCE]) for start in starts)
    parts = _as_array(itertools.chain([first], others))
    return StreamingHttpResponse(parts, content_type="application/json")


def _present(found: QuerySet[IngestionSource], ids: Sequence[uuid.UUID]) -> list[dict[str, Any]]:
    """Return the objects of those that are still there, and still what was asked for."""
    rows = source_serializers.source_rows(found.filter(pk__in=ids))
    return source_serializers.present_sources(rows)


def _as_array(parts: Iterable[list[dict[str, Any]]]) -> Iterator[bytes]:
    before = b"["
    for part in parts:
        if part:
            yield before + JSONRenderer().render(part)[1:-1]
            before = b","
    yield b"]" if before == b"," else b"[]"
