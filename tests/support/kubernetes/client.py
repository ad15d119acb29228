"""A bare client of an API server for tests: what was answered, as it was answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson

from scheduler.execution.kubernetes.access import Access

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        body: parsed.
        headers: as sent.
    """

    status: int
    body: Json
    headers: Mapping[str, str]

    def ok(self) -> Json:
        """The body of an answer that is no refusal."""
        assert self.status < 300, (self.status, self.body.get("message"))
        return self.body


class Client:
    """`async with Client(access) as client`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        self._connector: aiohttp.TCPConnector | None = None

    async def __aenter__(self) -> Self:
        self._connector = aiohttp.TCPConnector(ssl=self._access.ssl_context or True, limit=64)
        self._session = aiohttp.ClientSession(
            base_url=self._access.base_url,
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=_PATIENCE_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        assert self._connector is not None
        # A farewell over TLS would outlive the loop.
        await self._connector.close(abort_ssl=True)
        await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
        **query: Any,
    ) -> Reply:
        """One request; query parameters as keywords."""
        assert self._session is not None
        headers = {**self._access.headers(), "Content-Type": kind}
        data = None if body is None else orjson.dumps(body)
        async with self._session.request(
            method, path, data=data, headers=headers, params=_query(query)
        ) as response:
            text = await response.read()
            is_json = response.content_type == "application/json"
            parsed = orjson.loads(text) if is_json else {"text": text.decode()}
            return Reply(response.status, parsed, response.headers)

    async def get(self, path: str, **query: Any) -> Reply:
        """GET."""
        return await self.ask("GET", path, **query)

    async def post(self, path: str, body: Any, **query: Any) -> Reply:
        """POST."""
        return await self.ask("POST", path, body, **query)

    async def put(self, path: str, body: Any) -> Reply:
        """PUT."""
        return await self.ask("PUT", path, body)

    async def patch(self, path: str, body: Any, kind: str = MERGE) -> Reply:
        """PATCH."""
        return await self.ask("PATCH", path, body, kind=kind)

    async def delete(self, path: str, body: Any = None, **query: Any) -> Reply:
        """DELETE."""
        return await self.ask("DELETE", path, body, **query)

    @asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[WatchStream]:
        """An open watch."""
        assert self._session is not None
        async with self._session.get(
            path,
            headers=self._access.headers(),
            params=_query({"watch": "1", **query}),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as response:
            try:
                yield WatchStream(response)
            finally:
                # The server would have more to say; and see `__aexit__` on farewells.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()


def _query(query: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in query.items()
    }


class WatchStream:
    """Events of an open watch.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self._response = response

    async def next(self, within_s: float = _PATIENCE_S) -> Json | None:
        """The next event; None at the end.

        Raises:
            TimeoutError: there was none in time.
        """
        async with asyncio.timeout(within_s):
            line = await self._response.content.readline()
        if not line:
            return None
        event: Json = orjson.loads(line)
        return event

    async def take(self, count: int) -> list[tuple[str, str]]:
        """Type and object name of the next events, bookmarks left out."""
        taken: list[tuple[str, str]] = []
        while len(taken) < count:
            event = await self.next()
            assert event is not None, f"the watch ended after {taken}"
            if event["type"] != "BOOKMARK":
                taken.append((event["type"], event["object"]["metadata"]["name"]))
        return taken

    async def rest(self) -> list[Json]:
        """All events until it ends."""
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events
