"""The benchmark's own client of the API server, so that its records do not depend on the code that it measures.

Every request is sent once; an error status is an exception. Watches are raw: each change is passed on as it arrives.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import urlencode

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import load_kube_config

Object: TypeAlias = dict[str, Any]

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
CLUSTER_WIDE = frozenset(
    {
        "Namespace",
        "Node",
        "PersistentVolume",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    }
)
_FIRST_ERROR = 400
_MOST_CONNECTIONS = 1000
"""Watches stay open, and a simulated node writes the status of many pods at once."""


class Refused(Exception):
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


def path_of(item: Object) -> str:
    """The URL path of an object by its kind, name and namespace."""
    collection = collection_of(item["apiVersion"], item["kind"], item["metadata"].get("namespace", ""))
    return f"{collection}/{item['metadata']['name']}"


def collection_of(api_version: str, kind: str, namespace: str = "") -> str:
    """The URL path of all objects of a kind, in one namespace or everywhere."""
    root = "/apis" if "/" in api_version else "/api"
    plural = f"{kind.lower().removesuffix('y')}ies" if kind.endswith("y") else f"{kind.lower()}s"
    scope = f"/namespaces/{namespace}" if namespace and kind not in CLUSTER_WIDE else ""
    return f"{root}/{api_version}{scope}/{plural}"


class Api:
    """One connection pool to one API server."""

    def __init__(self, client: ApiClient, server: str) -> None:
        self._session: aiohttp.ClientSession = client.rest_client.pool_manager
        self.server = server

    async def get(self, path: str, **query: str) -> Object:
        """One object, or a list."""
        return await self._send("GET", path, query)

    async def apply(self, item: Object) -> Object:
        """Server-side apply that takes over every field."""
        return await self._send("PATCH", path_of(item), {"fieldManager": "verdict", "force": "true"}, item, APPLY)

    async def patch(self, path: str, change: Object) -> Object:
        """Merge a change into an object, or into its status where the path says so."""
        return await self._send("PATCH", path, {}, change, MERGE)

    async def create(self, path: str, item: Object) -> Object:
        """Create an object in a collection, or a subresource of one."""
        return await self._send("POST", path, {}, item)

    async def delete(self, path: str, *, grace: int | None = None) -> None:
        """Delete an object; one that does not exist is no error."""
        try:
            await self._send("DELETE", path, {} if grace is None else {"gracePeriodSeconds": str(grace)})
        except Refused as error:
            if error.status != 404:  # noqa: PLR2004  not found
                raise

    async def _send(
        self, method: str, path: str, query: dict[str, str], body: Object | None = None, kind: str = "application/json"
    ) -> Object:
        async with self._session.request(
            method,
            f"{self.server}{path}?{urlencode(query)}",
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": kind},
        ) as response:
            content = await response.json(content_type=None)
            if response.status >= _FIRST_ERROR:
                raise Refused(response.status, str(content.get("message", content)))
            return dict(content)

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Object]:
        """Each change from `version` on, until the server ends the request."""
        parameters = {**query, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        url, rest = f"{self.server}{path}?{urlencode(parameters)}", b""
        async with self._session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
            if response.status >= _FIRST_ERROR:
                raise Refused(response.status, await response.text())
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)


@asynccontextmanager
async def connect() -> AsyncIterator[Api]:
    """A client of the cluster of the kubeconfig."""
    configuration = Configuration()
    configuration.connection_pool_maxsize = _MOST_CONNECTIONS
    await load_kube_config(client_configuration=configuration)
    async with ApiClient(configuration) as client:
        yield Api(client, str(configuration.host))
