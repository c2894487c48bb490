"""The only file that talks to Kubernetes: requests in, objects or our own errors out.

Every request takes one checked path. An answer that is not 2xx raises: the library's dynamic client would hand a
refused apply back as an object of kind Status, which looks like success. What can heal (connection, 429, 5xx) is
tried again until the patience given to `connect` is over; writes only where the same write twice changes nothing.
It decides nothing about releases.
"""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import stamina
from kubernetes_asyncio.client import ApiClient, Configuration

from prefect_cd.errors import ClusterUnreachable, Invalid, InvalidManifest
from prefect_cd.kube.kubeconfig import Access, LoadedKubeconfig, is_in_pod, load_configuration
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Kind, ObjectList, Ref, WatchEvent
from prefect_cd.kube.responses import (
    CONFLICT,
    FIELD_MANAGER,
    GONE,
    NOT_FOUND,
    SUCCESS,
    UNAUTHORIZED,
    ApiError,
    Retryable,
    error_of,
)

PATIENCE = timedelta(minutes=2)
"""An API server that is told to end waits up to a minute for its requests (`--request-timeout`), and has to start."""
_READ_SECONDS = 30
WRITE_SECONDS = 10
"""No write is under way for longer: the environment's lock relies on it."""
_WATCH_SECONDS = 25
"""The server ends a watch after this, so one that is silent for longer is known to be dead."""
_SILENCE_SECONDS = _WATCH_SECONDS + 5
_PAGE = 500
_LOG_BYTES = 256 * 1024
_LOG_PATIENCE = 3.0

Guard = Callable[[], Awaitable[None]]
"""Awaited before every write; raises LockLost when writing is no longer ours, ClusterUnreachable when nobody knows."""


async def unguarded() -> None:
    """The guard of dry runs and of writes that need no lock."""


@asynccontextmanager
async def connect(access: Access, *, patience: timedelta = PATIENCE) -> AsyncIterator["Cluster"]:
    """A connection to the cluster that `access` describes.

    Args:
        access: kubeconfig and context, in-cluster, or a kubeconfig that is loaded already.
        patience: how long a request that can heal is tried again.

    Raises:
        Invalid: no kubeconfig, or no such context.
    """
    configuration = await load_configuration(access)
    async with ApiClient(configuration) as client:
        in_pod = not isinstance(access, LoadedKubeconfig) and is_in_pod(access)
        yield Cluster(client, patience, in_pod=in_pod, renew=lambda: load_configuration(access))


def _abort(response: aiohttp.ClientResponse) -> None:
    """End what still comes; to take leave of each other as TLS wants it would outlast the loop."""
    if response.connection and response.connection.transport:
        response.connection.transport.abort()


class Cluster:
    """One API server, seen through requests that either succeed or raise."""

    def __init__(
        self,
        client: ApiClient,
        patience: timedelta,
        *,
        in_pod: bool = False,
        renew: Callable[[], Awaitable[Configuration]] | None = None,
    ) -> None:
        self.in_pod = in_pod
        self._client = client
        self._renew = renew
        self._renewing = asyncio.Lock()
        self.patience = patience
        self._kinds: dict[str, dict[str, Kind]] = {}
        self.server = str(client.configuration.host)

    async def version(self) -> str:
        """The server's version, for example v1.36.3."""
        return str((await self._object("GET", "/version"))["gitVersion"])

    async def kind(self, api_version: str, kind: str) -> Kind:
        """How `kind` is served.

        Raises:
            InvalidManifest: this cluster has no such kind.
        """
        if api_version not in self._kinds:
            prefix = "/apis/" if "/" in api_version else "/api/"
            try:
                answer = await self._object("GET", prefix + api_version)
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                answer = {"resources": []}
            self._kinds[api_version] = {
                each["kind"]: Kind(api_version, each["kind"], each["name"], each["namespaced"])
                for each in answer.get("resources") or []
                if "/" not in each["name"]
            }
        known = self._kinds[api_version]
        if kind not in known:
            raise InvalidManifest(
                f"this cluster has no kind {kind} in {api_version}",
                hint="correct apiVersion or kind, or install the CustomResourceDefinition first; "
                "`kubectl api-resources` lists what there is",
            )
        return known[kind]

    async def path(self, ref: Ref) -> str:
        """The URL path of one object."""
        return (await self.kind(ref.api_version, ref.kind)).path(ref.namespace, ref.name)

    async def get(self, ref: Ref) -> Object | None:
        """The object, or None when there is none."""
        try:
            return await self._object("GET", await self.path(ref), where=str(ref))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    async def list(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        only_metadata: bool = False,
    ) -> list[Object]:
        """All objects of a kind, by label and field selector.

        Args:
            kind: what to list.
            namespace: empty for all namespaces and for cluster-scoped kinds.
            labels: label selector.
            fields: field selector.
            only_metadata: leave data, spec and status on the server.
        """
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1" if only_metadata else ""
        return (await self.snapshot(kind, namespace, labels=labels, fields=fields, accept=accept)).items

    async def snapshot(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", accept: str = ""
    ) -> ObjectList:
        """As `list`, with the resourceVersion at which that was so: `watch` goes on from there."""
        found: list[Object] = []
        token = ""
        while True:
            query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(_PAGE), "continue": token}
            try:
                page = await self._object("GET", kind.path(namespace), query=query, accept=accept, where=kind.plural)
            except ApiError as error:
                if error.status != GONE or not token:
                    raise
                found, token = [], ""  # the server has forgotten where we were: from the beginning
                continue
            # items of a list do not say what they are; everything after relies on it
            found += [{**item, "apiVersion": kind.api_version, "kind": kind.kind} for item in page["items"] or []]
            token = page["metadata"].get("continue", "")
            if not token:
                return ObjectList(found, str(page["metadata"].get("resourceVersion", "")))

    async def watch(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", version: str
    ) -> AsyncGenerator[WatchEvent, None]:
        """What changes from `version` on, until the server ends the request, as it does every half minute.

        The first change has no object: the server has accepted the watch. Neither have bookmarks, which only say how
        far we have come (https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks).

        Raises:
            ApiError: status 410, the server has forgotten that version: take a new snapshot.
            ClusterUnreachable: the connection dropped, or was silent for too long.
        """
        query = {"labelSelector": labels, "fieldSelector": fields, "resourceVersion": version}
        query |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_SECONDS)}
        async with self._opened(self._url(kind.path(namespace), query), where=kind.plural) as response:
            yield WatchEvent(version)
            async for line in _lines(response.content):
                told = self._json(line)
                item = told["object"]
                if told["type"] == "ERROR":
                    raise error_of("GET", int(item.get("code") or 0), json.dumps(item).encode(), kind.plural)
                now = str(item["metadata"]["resourceVersion"])
                yield (
                    WatchEvent(now)
                    if told["type"] == "BOOKMARK"
                    else WatchEvent(now, item, gone=told["type"] == "DELETED")
                )

    async def apply(
        self, item: Object, *, dry_run: bool = False, force: bool = False, guard: Guard = unguarded
    ) -> Object:
        """Server-side apply of one object; the same apply twice changes nothing, so it is retried.

        Raises:
            OwnershipConflict: another manager owns a field with another value, and `force` is False.
            InvalidManifest: the server's own words about what is wrong.
        """
        query = {
            "fieldManager": FIELD_MANAGER,
            "fieldValidation": "Strict",
            "force": "true" if force else "false",
        }
        return await self._object(
            "PATCH",
            await self.path(Ref.of(item)),
            query={**query, **({"dryRun": "All"} if dry_run else {})},
            body=item,
            content="application/apply-patch+yaml",
            guard=guard,
            where=str(Ref.of(item)),
        )

    async def create(self, item: Object, *, dry_run: bool = False, guard: Guard = unguarded) -> Object:
        """Create one object; not retried. ApiError with status 409 when it exists."""
        ref = Ref.of(item)
        kind = await self.kind(ref.api_version, ref.kind)
        query = {
            "fieldManager": FIELD_MANAGER,
            "fieldValidation": "Strict",
            **({"dryRun": "All"} if dry_run else {}),
        }
        return await self._once("POST", kind.path(ref.namespace), query=query, body=item, guard=guard, where=str(ref))

    async def replace(self, item: Object, *, guard: Guard = unguarded) -> Object:
        """Replace one object at the resourceVersion it carries; not retried. ApiError 409 when it has moved."""
        ref = Ref.of(item)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._once("PUT", await self.path(ref), query=query, body=item, guard=guard, where=str(ref))

    async def delete(self, ref: Ref, *, uid: str = "", guard: Guard = unguarded) -> None:
        """Delete one object (and, in the background, what it owns); fine when it is gone already.

        Args:
            ref: which object.
            uid: only this incarnation of it.
            guard: awaited before each attempt.
        """
        body: Object = {"propagationPolicy": "Background", **({"preconditions": {"uid": uid}} if uid else {})}
        try:
            await self._object("DELETE", await self.path(ref), body=body, guard=guard, where=str(ref))
        except ApiError as error:
            if error.status not in {NOT_FOUND, CONFLICT}:
                raise

    async def logs(
        self, namespace: str, pod: str, container: str, *, previous: bool = False, lines: int = 30
    ) -> str | None:
        """The last lines of a container's log; empty when it wrote nothing, None when that cannot be known soon.

        A log is evidence for something that is known already: asking for it neither fails nor takes long.
        """
        query = {"container": container, "tailLines": str(lines), "previous": "true" if previous else ""}
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}/log"
        query["limitBytes"] = str(_LOG_BYTES)
        try:
            # a node that is mute does not fail: it does not answer
            answer = await asyncio.wait_for(
                self._retried("GET", path, patience=_LOG_PATIENCE, query=query), _LOG_PATIENCE
            )
        except (ApiError, Invalid, ClusterUnreachable, asyncio.TimeoutError):
            return None
        text = answer.decode(errors="replace")
        # said with status 200 when the node has thrown the container away
        return None if text.startswith("unable to retrieve container logs for ") else text

    async def may(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether our identity may do `verb`, as the server answers a SelfSubjectAccessReview."""
        plural, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
        review = await self._object(
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            body={
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {
                    "resourceAttributes": {
                        **attributes,
                        **({"subresource": subresource} if subresource else {}),
                    }
                },
            },
        )
        return bool(review["status"].get("allowed"))

    @asynccontextmanager
    async def port_forward(self, namespace: str, pod: str, port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket to one port of a pod, in the protocol v4.channel.k8s.io of the kubelet.

        Each binary message starts with a channel byte: 0 is data, 1 is an error text; the first message of each
        channel is the port number, two bytes, little endian.

        Raises:
            ApiError: no such pod, or we may not.
            ClusterUnreachable: the API server does not answer.
        """
        base = self.server.replace("http", "ws", 1)
        rest = self._client.rest_client
        session: aiohttp.ClientSession = rest.pool_manager
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}/portforward?ports={port}"
        try:
            websocket = await asyncio.wait_for(
                session.ws_connect(
                    base + path,
                    headers=await self._headers(),
                    protocols=("v4.channel.k8s.io",),
                    max_msg_size=0,
                    server_hostname=rest.server_hostname,
                    proxy=rest.proxy,
                    proxy_headers=rest.proxy_headers,
                ),
                _READ_SECONDS,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise ApiError(f"no port-forward to pod/{pod}: {error.message}", status=error.status) from error
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error
        try:
            yield websocket
        finally:
            await websocket.close()

    async def refusal(self, namespace: str, pod: str, port: int) -> str:
        """The words with which a connection from the API server to a port of a pod is refused; empty when it is not.

        The greeting of TLS is all that is sent: no request reaches the program.
        """
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/https:{quote(pod, safe='')}:{port}/proxy/"
        try:
            await self._send("GET", path)
        except (ClusterUnreachable, ApiError, InvalidManifest) as error:
            return error.reason if "connection refused" in error.reason else ""
        return ""

    async def _headers(self) -> dict[str, str]:
        settings = (await self._client.configuration.auth_settings()).get("BearerToken")
        return {"authorization": settings["value"]} if settings and settings["value"] else {}

    async def _renewed(self, used: str) -> bool:
        """Whether there is another token than the refused one: those of exec plugins live for minutes only."""
        async with self._renewing:
            if self._renew and (await self._headers()).get("authorization", "") == used:
                self._client.configuration.api_key.update((await self._renew()).api_key)
            return (await self._headers()).get("authorization", "") != used

    async def _object(self, method: str, path: str, **request: Any) -> Object:  # noqa: ANN401
        return self._json(await self._retried(method, path, **request))

    async def _retried(self, method: str, path: str, *, patience: float | None = None, **request: Any) -> bytes:  # noqa: ANN401
        ours = self.patience.total_seconds()
        patience = ours if patience is None else min(patience, ours)
        heals = Retryable()
        async for attempt in stamina.retry_context(
            on=heals, attempts=None, timeout=patience, wait_initial=0.2, wait_max=3.0
        ):
            with attempt:
                return await self._send(method, path, **request)
        raise AssertionError("stamina either returns or raises")

    async def _once(self, method: str, path: str, **request: Any) -> Object:  # noqa: ANN401
        return self._json(await self._send(method, path, **request))

    def _json(self, answer: bytes) -> Object:
        try:
            item = json.loads(answer)
        except ValueError:
            item = None
        if not isinstance(item, dict):
            raise ClusterUnreachable(
                "what answers is no API server: it sends no JSON",
                where=self.server,
                hint="does a proxy or a login page stand between? try `kubectl cluster-info`",
            )
        return item

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "application/json",
        accept: str = "",
        where: str = "",
        guard: Guard = unguarded,
    ) -> bytes:
        headers = {"Content-Type": content, "Accept": accept or "application/json"}
        url = self._url(path, query)
        status, answer, used = await self._ask(method, url, headers, body, guard)
        if status == UNAUTHORIZED and await self._renewed(used):
            status, answer, _ = await self._ask(method, url, headers, body, guard)
        if status not in SUCCESS:
            raise error_of(method, status, answer, where)
        return answer

    def _url(self, path: str, query: Mapping[str, str] | None) -> str:
        asked = urlencode({key: value for key, value in (query or {}).items() if value})
        return f"{self.server}{path}{'?' + asked if asked else ''}"

    @asynccontextmanager
    async def _opened(self, url: str, *, where: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer whose body is read while it comes."""
        rest = self._client.rest_client
        session: aiohttp.ClientSession = rest.pool_manager
        for again in (True, False):
            authorization = await self._headers()
            with self._reached():
                async with session.get(
                    url,
                    headers={**authorization, "Accept": "application/json"},
                    timeout=aiohttp.ClientTimeout(sock_connect=_READ_SECONDS, sock_read=_SILENCE_SECONDS),
                    server_hostname=rest.server_hostname,
                    proxy=rest.proxy,
                    proxy_headers=rest.proxy_headers,
                ) as response:
                    if response.status in SUCCESS:
                        try:
                            yield response
                        finally:
                            _abort(response)
                        return
                    answer = await response.read()
            renewable = again and response.status == UNAUTHORIZED
            if not (renewable and await self._renewed(authorization.get("authorization", ""))):
                raise error_of("GET", response.status, answer, where)

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: Object | None, guard: Guard
    ) -> tuple[int, bytes, str]:
        """Status, answer, and the authorization that was used."""
        rest = self._client.rest_client
        session: aiohttp.ClientSession = rest.pool_manager
        data = None if body is None else io.BytesIO(json.dumps(body).encode())  # as a file: records are large
        authorization = await self._headers()
        await guard()  # last: renewing a token can take longer than the lock is known to be ours
        with self._reached():
            async with session.request(
                method,
                url,
                headers={**authorization, **headers},
                data=data,
                # exact, for the lock relies on it: longer ones are rounded up to a whole second by default
                timeout=aiohttp.ClientTimeout(
                    total=_READ_SECONDS if method == "GET" else WRITE_SECONDS, ceil_threshold=2 * _READ_SECONDS
                ),
                server_hostname=rest.server_hostname,
                proxy=rest.proxy,
                proxy_headers=rest.proxy_headers,
            ) as response:
                answer = await response.read()
        return response.status, answer, authorization.get("authorization", "")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """A request whose failures are told in our own words."""
        try:
            yield
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
            raise Invalid(
                f"the API server's certificate is not trusted: {error}",
                where=self.server,
                hint="the kubeconfig's certificate-authority must be the one that signed the server's certificate",
            ) from error
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(
            f"the API server does not answer: {str(error) or type(error).__name__}",
            where=self.server,
            hint="is the cluster up, and reachable from here? try `kubectl cluster-info`",
        )


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length; the reader's own `readline` ends at a fixed one, and objects have up to 1.5 MB."""
    rest: list[bytes] = []
    async for chunk in content.iter_any():
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line])
            rest = []
        rest.append(last)
