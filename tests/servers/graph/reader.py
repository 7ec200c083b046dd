"""Reads the scripted Graph with Microsoft's own client, msgraph-sdk, and prints what it understood.

    python -m tests.servers.graph.reader WHEELS ORIGIN CA_FILE TOKEN USER_ID

That client raises on bad dates, makes None of values of the wrong type, and puts names that it does
not know aside (additional_data): `unknown` lists these.
"""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.servers.graph import wheels

#: OData's own annotations are not part of the model; so is delta query's mark of a removal.
_ANNOTATIONS = ("@odata.", "@removed")


async def read(origin: str, ca_file: str, token: str, user_id: str) -> dict[str, Any]:
    from kiota_abstractions.authentication import (
        AccessTokenProvider,
        AllowedHostsValidator,
        BaseBearerTokenAuthenticationProvider,
    )
    from kiota_abstractions.base_request_configuration import (
        RequestConfiguration,
    )
    from msgraph import GraphRequestAdapter, GraphServiceClient
    from msgraph.generated.models.o_data_errors.o_data_error import ODataError

    class Token(AccessTokenProvider):  # type: ignore[misc] # untyped base
        async def get_authorization_token(
            self, uri: str, additional_authentication_context: Any = None
        ) -> str:
            return token

        def get_allowed_hosts_validator(self) -> Any:
            return AllowedHostsValidator([])

    context = ssl.create_default_context(cafile=ca_file)
    prefer = RequestConfiguration()
    prefer.headers.add("Prefer", 'IdType="ImmutableId", odata.maxpagesize=2')
    async with httpx.AsyncClient(verify=context, trust_env=False) as http:
        adapter = GraphRequestAdapter(BaseBearerTokenAuthenticationProvider(Token()), client=http)
        adapter.base_url = f"{origin}/v1.0"
        client = GraphServiceClient(request_adapter=adapter)
        user = client.users.by_user_id(user_id)
        seen = _Seen()
        users = seen.of(await client.users.get())
        folders = seen.of(await user.mail_folders.get())
        inbox = user.mail_folders.by_mail_folder_id("inbox")
        children = seen.of(await inbox.child_folders.get())
        page = await inbox.messages.delta.get(prefer)
        messages = seen.of(page)
        delta_link = None
        while page.odata_next_link:
            page = await inbox.messages.delta.with_url(page.odata_next_link).get(prefer)
            messages += seen.of(page)
            delta_link = page.odata_delta_link
        body = await user.messages.by_message_id(messages[0]["id"]).content.get(prefer)
        refused: Any = None
        try:
            await user.mail_folders.by_mail_folder_id("no-such-folder").get()
        except ODataError as error:
            refused = error
        return {
            "users": users,
            "folders": folders,
            "children": children,
            "messages": messages,
            "deltaLink": delta_link,
            "body": body.decode(),
            "error": [refused.response_status_code, refused.error.code, refused.error.message],
            "errorDate": str(refused.error.inner_error.date),
            "unknown": sorted(seen.unknown),
        }


class _Seen:
    """Turns models into plain values, and notes the names that the models don't know."""

    def __init__(self) -> None:
        self.unknown: set[str] = set()

    def of(self, collection: Any) -> list[dict[str, Any]]:
        self._note(collection)
        return [self._plain(item) for item in collection.value]

    def _plain(self, item: Any) -> dict[str, Any]:
        self._note(item)
        found: dict[str, Any] = {"class": type(item).__name__}
        for name, value in vars(item).items():
            if name in ("backing_store", "additional_data") or value is None:
                continue
            if isinstance(value, list):
                found[name] = [self._value(entry) for entry in value]
            else:
                found[name] = self._value(value)
        return found

    def _value(self, value: Any) -> Any:
        if hasattr(value, "additional_data"):
            return self._plain(value)
        return value if isinstance(value, str | int | bool) else str(value)

    def _note(self, model: Any) -> None:
        self.unknown.update(
            name for name in model.additional_data if not name.startswith(_ANNOTATIONS)
        )


def main(arguments: list[str]) -> None:
    folder, origin, ca_file, token, user_id = arguments
    wheels.install(Path(folder))
    json.dump(asyncio.run(read(origin, ca_file, token, user_id)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
