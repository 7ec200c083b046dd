"""The shapes that go in: bodies and queries. They check types; what a value means, services check.

What is not known here is refused by name, never ignored.
"""

from typing import Any

from rest_framework import serializers

from ingestion.models.source import provider_choices
from ingestion.states import SourceStatus


class Strict(serializers.Serializer[Any]):
    """Refuses what it does not know, by name."""

    not_writable: tuple[str, ...] = ()

    def to_internal_value(self, data: Any) -> Any:
        unknown = {name[:100]: [self._refusal(name)] for name in data if name not in self.fields}
        if unknown:
            raise serializers.ValidationError(unknown)
        return super().to_internal_value(data)

    def _refusal(self, name: str) -> str:
        if name in self.not_writable:
            return "This field is read-only."
        known = ", ".join(self.fields)
        return f"Unknown. Known: {known}." if known else "Unknown: nothing is expected here."


class Text(serializers.CharField):
    """A JSON string, and no number that could be read as one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Name(Text):
    """A source's name. Checked by `sources.configuration`; see `api.schema`."""


class Flag(serializers.BooleanField):
    """true or false, and no "yes"."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class Choice(serializers.ChoiceField):
    """One of some texts. What was given instead is not echoed: it may be a secret gone astray."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str) or data not in self.choices:
            raise serializers.ValidationError(
                f"Must be one of: {', '.join(self.choices)}.", code="invalid_choice"
            )
        return data


class RowId(serializers.IntegerField):
    """A number in a body, and no text that looks like one."""

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:
            self.fail("invalid")
        return super().to_internal_value(data)


class ProviderConfig(serializers.DictField):
    """What a provider needs to connect. Checked by `connectors.config`; see `api.schema`."""


class SourceOptions(serializers.DictField):
    """What is archived and how often. Checked by `sources.options`; see `api.schema`."""


# -- bodies ------------------------------------------------------------------------------------

_READ_ONLY = (
    *("id", "statusMessage", "lastSyncStartedAt", "lastSyncFinishedAt", "lastSyncStatusMessage"),
    *("nextSyncAt", "mailboxCount", "messageCount", "archivedBytes", "failedMessageCount"),
    *("currentRun", "createdAt", "updatedAt", "credentialsExpireOn", "archivedUpTo", "incomplete"),
    *("attention", "warnings"),
)


class Nothing(Strict):
    """The body of a verb: empty, or {}."""


class CreateIngestionSource(Strict):
    """CreateIngestionSourceDto."""

    not_writable = (*_READ_ONLY, "status")
    name = Name(max_length=200, trim_whitespace=False)
    provider = Choice(choices=provider_choices())
    providerConfig = ProviderConfig()
    options = SourceOptions(required=False)
    autoImport = Flag(
        default=False, help_text="Start the import as soon as the credentials are proven."
    )


class TestConfiguration(CreateIngestionSource):
    """What a source would be made of: the body that creates it, whose name may be left out."""

    name = Name(max_length=200, required=False, trim_whitespace=False)


class UpdateIngestionSource(Strict):
    """UpdateIngestionSourceDto: all fields are optional.

    A secret that is left out or empty keeps its stored value, unless the server, the account or
    the encryption that it was given for changes: then it must be given again. A changed provider
    needs a whole providerConfig. `status` accepts the moves that are allowed now; a 409 names them.
    """

    not_writable = (*_READ_ONLY, "autoImport")
    name = Name(max_length=200, required=False, trim_whitespace=False)
    provider = Choice(choices=provider_choices(), required=False)
    providerConfig = ProviderConfig(required=False)
    options = SourceOptions(required=False)
    status = Choice(choices=SourceStatus.choices, required=False)


class NewConsentLink(Strict):
    hours = serializers.IntegerField(
        default=72, min_value=1, max_value=720, help_text="For how long it is good."
    )


class RetryFailures(Strict):
    """Which failed messages are tried again."""

    ids = serializers.ListField(
        child=RowId(min_value=1, max_value=2**62),
        required=False,
        max_length=1000,
        help_text="Which failures; all of them where it is left out.",
    )


# -- queries -----------------------------------------------------------------------------------


class PageQuery(Strict):
    page = serializers.IntegerField(required=False, min_value=1, max_value=1_000_000)
    pageSize = serializers.IntegerField(required=False, min_value=1, max_value=1000)


class ListQuery(PageQuery):
    provider = Choice(choices=provider_choices(), required=False)
    status = Choice(choices=SourceStatus.choices, required=False)
    search = serializers.CharField(
        required=False, max_length=200, help_text="A part of the name, in any case."
    )


class StatsQuery(PageQuery):
    mailbox = serializers.UUIDField(required=False, help_text="Only this mailbox's folders.")


class NewSearch(Strict):
    name = Text(max_length=100, help_text="Unique among yours.")
    query = Text(max_length=2_000, trim_whitespace=False, help_text="In the query language.")


class ReadQuery(Strict):
    html = serializers.BooleanField(
        default=False, help_text="With its HTML, sanitised: no script, no form, nothing fetched."
    )
    remote = serializers.BooleanField(
        default=False, help_text="In the HTML, leave the addresses of pictures that are elsewhere."
    )


class EmailQuery(Strict):
    q = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=2_000,
        trim_whitespace=False,
        help_text="A query, as README has the language: words, operators, OR, -without.",
    )
    source = serializers.UUIDField(required=False)  # type: ignore[assignment] # Field.source
    mailbox = serializers.UUIDField(required=False)
    folder = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=2**62,
        help_text="The id of a folder: what lies there or has since it was archived; in a search "
        "what lies there now, as `folder:` has it.",
    )
    label = serializers.CharField(  # type: ignore[assignment] # Field.label
        required=False, max_length=200, help_text="In a search."
    )
    sender = serializers.CharField(
        required=False,
        max_length=200,
        help_text="A part of the From header, in any case; in a search as `from:` has it.",
    )
    recipient = serializers.CharField(
        required=False, max_length=200, help_text="To, Cc or Bcc, as `to:` has it."
    )
    subject = serializers.CharField(
        required=False,
        max_length=200,
        help_text="A part of the subject, in any case; in a search as `subject:` has it.",
    )
    hasAttachment = serializers.BooleanField(required=False, allow_null=True, default=None)
    receivedFrom = serializers.DateTimeField(required=False, help_text="At this time or later.")
    receivedBefore = serializers.DateTimeField(required=False, help_text="Before this time.")
    sort = serializers.ChoiceField(
        required=False,
        choices=["-archived", "-date", "date", "relevance"],
        help_text="`-archived`: as they were archived, newest first; the order without a search. "
        "`-date` and `date`: as they were received, newest or oldest first. `relevance`: the "
        "1,000 newest of what is found. What is indexed between two pages is on none of them where "
        "it is newer than all that was found; older mail may move others by a place.",
    )
    count = serializers.BooleanField(
        required=False,
        default=False,
        help_text="Count what is found, up to 10,000; of a phrase, up to 1,000.",
    )
    facets = serializers.BooleanField(
        required=False, default=False, help_text="Tell how the newest 1,000 hits divide."
    )
    highlight = serializers.BooleanField(
        required=False, default=False, help_text="Show where the words of `q` stand."
    )
    cursor = serializers.CharField(
        required=False, max_length=500, help_text="`nextCursor` of the page before."
    )
    pageSize = serializers.IntegerField(required=False, default=50, min_value=1, max_value=500)
