"""A small API client for the controllers and the node: verbs of the Kubernetes API over aiohttp, without a cache.

It turns calls into requests, and answers into objects or an `ApiError`. It does not interpret objects and does not
retry (`controllers/loop.py` does). Source: kubernetes.io/docs/reference/using-api/api-concepts.

    async with Client.from_kubeconfig("/path/to/kubeconfig") as client:
        items, version = await client.list(PODS, "shop", labels="app=web")
        async for event in client.watch(PODS, resource_version=version):  # until the server ends it
            ...
        await client.patch(PODS, "web", "shop", {...}, how=MERGE, subresource="status")
        await client.delete(PODS, "web", "shop", uid=..., grace_seconds=0)

`namespace=None` means all namespaces for `list` and `watch`, and "not namespaced" elsewhere.
"""

import asyncio
import base64
import json
import logging
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import aiohttp
import yaml
from typing_extensions import Self

Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

_SECONDS_TO_ANSWER = 30
_WATCH_SECONDS, _SECONDS_OF_SILENCE = 300, 360  # the server ends a watch; we do when it is overdue
_SECONDS_OF_TLS_GOODBYE = 0.25
_NOT_FOUND = 404
_FIRST_ERROR = 400
_log = logging.getLogger("prefect_cd_local.client")


class Resource(NamedTuple):
    """A kind of objects and its place in the API."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection, an object or its subresource."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        place = f"namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(filter(None, [root, place, self.plural, name, subresource]))


NAMESPACES = Resource("v1", "Namespace", "namespaces", namespaced=False)
NODES = Resource("v1", "Node", "nodes", namespaced=False)
PODS = Resource("v1", "Pod", "pods")
SERVICES = Resource("v1", "Service", "services")
CONFIG_MAPS = Resource("v1", "ConfigMap", "configmaps")
SECRETS = Resource("v1", "Secret", "secrets")
SERVICE_ACCOUNTS = Resource("v1", "ServiceAccount", "serviceaccounts")
EVENTS = Resource("v1", "Event", "events")
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
REPLICA_SETS = Resource("apps/v1", "ReplicaSet", "replicasets")
ENDPOINT_SLICES = Resource("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")


class ApiError(Exception):
    """The server's error (`code` is the HTTP status; 410 of a watch: list again), or no answer (`code` 0)."""

    def __init__(self, code: int, reason: str, message: str, body: Object | None = None) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code, self.reason, self.message = code, reason, message
        self.body = body or {}


def is_namespace_ending(error: ApiError) -> bool:
    """Return whether a creation was refused because its namespace is terminating."""
    causes = (error.body.get("details") or {}).get("causes") or []
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


class WatchEvent(NamedTuple):
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object."""

    type: str
    object: Object


class Listing(NamedTuple):
    """A collection as it was at one resource version."""

    items: list[Object]
    resource_version: str


def _tls(cluster: Object, user: Object) -> ssl.SSLContext:
    authority = base64.b64decode(cluster.get("certificate-authority-data", "")).decode() or None
    context = ssl.create_default_context(cafile=cluster.get("certificate-authority"), cadata=authority)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:  # ssl reads client certificates from files only
        with tempfile.NamedTemporaryFile() as both:
            both.write(b"\n".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
            both.flush()
            context.load_cert_chain(both.name)
    return context


class Client:
    """A session with one API server; an async context manager."""

    def __init__(self, server: str, token: str = "", tls: ssl.SSLContext | None = None, agent: str = "") -> None:
        self._server, self._tls = server, tls
        self._headers = {"User-Agent": agent or "prefect-cd-local", "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, path: str | Path, user_agent: str = "") -> Self:
        """Make a client for the current context of a kubeconfig file."""
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))

        def named(kind: str, name: str) -> Object:
            entry: Object = next(entry for entry in config[f"{kind}s"] if entry["name"] == name)
            return entry[kind] or {}

        context = named("context", config["current-context"])
        cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
        tls = _tls(cluster, user) if cluster["server"].startswith("https:") else None
        return cls(cluster["server"].rstrip("/"), user.get("token", ""), tls, user_agent)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls or True)
        self._http = aiohttp.ClientSession(self._server, headers=self._headers, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._http:
            await self._http.close()
        if self._tls:  # connections end after close() has returned; aiohttp's docs require this pause
            await asyncio.sleep(_SECONDS_OF_TLS_GOODBYE)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use `async with` around the client first")
        return self._http

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Send one request and return the JSON answer; raises `ApiError` for every status from 400."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data else None
        timeout = aiohttp.ClientTimeout(total=_SECONDS_TO_ANSWER)
        try:
            async with self._session().request(
                method, path, data=data, params=params, headers=headers, timeout=timeout
            ) as answer:
                return _checked(answer.status, await answer.read())
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise ApiError(0, "NoAnswer", f"{method} {path}: {error or type(error).__name__}") from error

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """Get one object; raises `ApiError` 404 where there is none."""
        return await self.request("GET", resource.path(namespace, name))

    async def find(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        """Get one object, or None where there is none."""
        try:
            return await self.get(resource, name, namespace)
        except ApiError as error:
            if error.code == _NOT_FOUND:
                return None
            raise

    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Listing:
        """List a collection; items get the apiVersion and kind that servers leave out."""
        answer = await self.request("GET", resource.path(namespace), params=_selectors(labels, fields))
        named = {"apiVersion": resource.api_version, "kind": resource.kind}
        return Listing([{**named, **item} for item in answer.get("items") or []], answer["metadata"]["resourceVersion"])

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
        resource_version: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """Yield changes after a resource version, until the server ends the watch after some minutes."""
        params = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_SECONDS)}
        params |= {**_selectors(labels, fields), "resourceVersion": resource_version}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS_TO_ANSWER, sock_read=_SECONDS_OF_SILENCE)
        try:
            async with self._session().get(resource.path(namespace), params=params, timeout=timeout) as answer:
                if answer.status >= _FIRST_ERROR:
                    _checked(answer.status, await answer.read())
                rest = b""
                async for chunk in answer.content.iter_any():  # aiohttp's own line reader limits the length of lines
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        yield _event(json.loads(line))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise ApiError(0, "NoAnswer", f"watch {resource.plural}: {error or type(error).__name__}") from error

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Create an object, in the namespace of its metadata."""
        return await self.request("POST", resource.path(obj["metadata"].get("namespace")), _typed(resource, obj))

    async def update(self, resource: Resource, obj: Object, subresource: str = "") -> Object:
        """Replace an object or a subresource; 409 where the object changed since."""
        meta = obj["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"], subresource)
        return await self.request("PUT", path, _typed(resource, obj))

    async def patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: object,
        how: str = MERGE,
        subresource: str = "",
    ) -> Object:
        """Patch an object or its subresource."""
        return await self.request("PATCH", resource.path(namespace, name, subresource), patch, content_type=how)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "",
        grace_seconds: int | None = None,
    ) -> Object:
        """Delete an object; with `uid` or `resource_version` only while it has these (409 otherwise)."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options = {
            "preconditions": {key: value for key, value in preconditions.items() if value},
            "propagationPolicy": propagation or None,
            "gracePeriodSeconds": grace_seconds,
        }
        return await self.request("DELETE", resource.path(namespace, name), options)

    async def bind(self, pod: Object, node: str) -> Object:
        """Assign a pod to a node."""
        meta = pod["metadata"]
        named = {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": named, "target": {"kind": "Node", "name": node}}
        return await self.request("POST", PODS.path(meta["namespace"], meta["name"], "binding"), binding)

    async def event(self, about: Object, kind: str, reason: str, message: str, component: str, field: str = "") -> None:
        """Write an event about an object. Repeating it increases its count; one that the server refuses is dropped.

        Args:
            about: the object, with apiVersion, kind, name and uid.
            kind: `Normal` or `Warning`.
            reason: one CamelCase word.
            message: a sentence.
            component: the reporting component.
            field: the part of the object, for example `spec.containers{web}`.
        """
        event = _new_event(about, kind, reason, message, component, field)
        name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
        try:
            if before := await self._created(event):
                again = {"count": before["count"] + 1, "lastTimestamp": now_text()}
                await self.patch(EVENTS, name, namespace, again)
        except ApiError as error:
            _log.info("event %s %s is lost: %s", reason, name, error)

    async def _created(self, event: Object) -> Object | None:
        """Create an event; returns the existing one if there is one with the same text."""
        try:
            await self.create(EVENTS, event)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            return await self.find(EVENTS, event["metadata"]["name"], event["metadata"]["namespace"])
        return None

    async def discover(self) -> tuple[Resource, ...]:
        """Return every resource that the server can list and delete, in its preferred version."""
        groups = (await self.request("GET", "/apis"))["groups"]
        discovered = []
        for version in ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]:
            root = "/api/v1" if version == "v1" else f"/apis/{version}"
            try:
                resources = (await self.request("GET", root))["resources"]
            except ApiError as error:  # an aggregated API may be unavailable
                if error.code in {0, 503, _NOT_FOUND}:
                    continue
                raise
            discovered += [
                Resource(version, entry["kind"], entry["name"], entry["namespaced"])
                for entry in resources
                if "/" not in entry["name"] and {"list", "watch", "delete"} <= set(entry["verbs"])
            ]
        return tuple(discovered)


def now_text() -> str:
    """Return the time in the API's format, in whole seconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _typed(resource: Resource, obj: Object) -> Object:
    return {**obj, "apiVersion": resource.api_version, "kind": resource.kind}


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {key: value for key, value in {"labelSelector": labels, "fieldSelector": fields}.items() if value}


def _checked(code: int, content: bytes) -> Object:
    try:
        answer: Object = json.loads(content or b"{}")
    except ValueError:
        answer = {"message": content.decode(errors="replace")}
    if code >= _FIRST_ERROR:
        raise ApiError(code, answer.get("reason", ""), answer.get("message", ""), answer)
    return answer


def _event(line: Object) -> WatchEvent:
    obj = line["object"]
    if line["type"] == "ERROR":
        raise ApiError(obj.get("code", 500), obj.get("reason", ""), obj.get("message", ""), obj)
    return WatchEvent(line["type"], obj)


def _new_event(about: Object, kind: str, reason: str, message: str, component: str, field: str) -> Object:
    """Make an event. Its name is a hash of its text, so that a repetition finds it."""
    meta, now = about["metadata"], now_text()
    digest = sha256("|".join([meta["uid"], kind, reason, message, component, field]).encode()).hexdigest()[:16]
    return {
        "metadata": {"name": f"{meta['name']}.{digest}", "namespace": meta.get("namespace") or "default"},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            **{key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion") if meta.get(key)},
            **({"fieldPath": field} if field else {}),
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": component},
        "reportingComponent": component,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
