"""Reads and writes Kubernetes objects: discovery, get, list, watch, apply, create, replace, delete, logs, port-forward.

Objects in, objects or our own errors out. Writes are retried only where the same write twice changes nothing. How a
request is sent is the transport's business; the client decides nothing about releases.
"""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from urllib.parse import quote

import aiohttp
import anyio
from kubernetes_asyncio.client import ApiClient

from prefect_cd.errors import ClusterUnreachable, Invalid, InvalidManifest
from prefect_cd.kube.kubeconfig import Access, LoadedKubeconfig, is_in_pod, load_configuration
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping
from prefect_cd.kube.resources import Kind, ObjectList, Ref, WatchEvent
from prefect_cd.kube.responses import FIELD_MANAGER, GONE, NOT_FOUND, ApiError, Conflict, error_of
from prefect_cd.kube.transport import (
    WATCH_SECONDS,
    WRITE_SECONDS,
    Guard,
    Request,
    Transport,
    unguarded,
)

PATIENCE = timedelta(minutes=2)
"""An API server that shuts down waits up to a minute for its requests (`--request-timeout`), and has to start again."""
ABSENT = "1"
"""The version of an object that does not exist: an apply at this version creates, and changes nothing that is there.

The server's first version is that of no object, and an apply ignores the version where there is no object.
"""
_JSON = "application/json"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE = 500
_LOG_BYTES = 256 * 1024
_LOG_PATIENCE = timedelta(seconds=3)
_LOG_NOT_FOUND = re.compile(
    r"unable to retrieve container logs for "
    r'|failed to (try resolving symlinks in path|open log file) "[^"\n]+/\d+\.log": '
    r"[^\n]+: no such file or directory\s*\Z"
)
"""What the kubelet answers, with status 200, when the node has removed the container or its log.

Source: pkg/kubelet/kuberuntime of Kubernetes.
"""


@asynccontextmanager
async def connect(access: Access, *, patience: timedelta = PATIENCE) -> AsyncIterator["Cluster"]:
    """A connection to the cluster that `access` describes.

    Args:
        access: kubeconfig and context, in-cluster, or a kubeconfig that is loaded already.
        patience: how long a request whose error may heal is retried.

    Raises:
        Invalid: no kubeconfig, or no such context.
    """
    configuration = await load_configuration(access)
    async with ApiClient(configuration) as client:
        in_pod = not isinstance(access, LoadedKubeconfig) and is_in_pod(access)
        yield Cluster(Transport(client, patience, renew=lambda: load_configuration(access)), in_pod=in_pod)


class Cluster:
    """One cluster, through requests that either succeed or raise.

    Args:
        transport: sends the requests.
        in_pod: whether this process runs in a pod of the cluster.
        kinds: those that are known already, by API version.
        expected: those that are not served yet, by API version and kind.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        in_pod: bool = False,
        kinds: dict[str, dict[str, Kind]] | None = None,
        expected: dict[tuple[str, str], Kind] | None = None,
    ) -> None:
        self.in_pod = in_pod
        self.server = transport.server
        self.patience = transport.patience
        self._transport = transport
        self._kinds = {} if kinds is None else kinds
        self._expected = {} if expected is None else expected

    def with_patience(self, patience: timedelta) -> "Cluster":
        """The same connection and the same known kinds, with another time for retries."""
        transport = self._transport.with_patience(patience)
        return Cluster(transport, in_pod=self.in_pod, kinds=self._kinds, expected=self._expected)

    # --- discovery ---------------------------------------------------------------------------------------------------

    async def version(self) -> str:
        """The server's version, for example v1.36.3."""
        return str((await self._transport.request_json(Request("GET", "/version")))["gitVersion"])

    async def kind(self, api_version: str, kind: str) -> Kind:
        """How `kind` is served, or will be.

        Raises:
            InvalidManifest: this cluster has no such kind, and none is expected.
        """
        if await self.is_served(api_version, kind):
            return self._kinds[api_version][kind]
        if (api_version, kind) not in self._expected:
            raise InvalidManifest(
                f"this cluster has no kind {kind} in {api_version}",
                hint="correct apiVersion or kind, or install the CustomResourceDefinition first; "
                "`kubectl api-resources` lists the kinds of the cluster",
            )
        return self._expected[api_version, kind]

    async def is_served(self, api_version: str, kind: str) -> bool:
        """Whether the API server serves a kind by now."""
        if kind not in self._kinds.get(api_version, ()):  # its CustomResourceDefinition may be new
            self._kinds[api_version] = await self._discover(api_version)
        return kind in self._kinds[api_version]

    def expect(self, definitions: Iterable[Object]) -> None:
        """Know the kinds of these CustomResourceDefinitions, which will be applied: until then they have no objects."""
        for definition in definitions:
            group, names = as_text(dig(definition, "spec", "group")), dig_mapping(definition, "spec", "names")
            kind, plural = as_text(names.get("kind")), as_text(names.get("plural"))
            namespaced = dig(definition, "spec", "scope") == "Namespaced"
            for version in as_objects(dig(definition, "spec", "versions")):
                api_version = f"{group}/{as_text(version.get('name'))}"
                self._expected[api_version, kind] = Kind(api_version, kind, plural, namespaced)

    async def _discover(self, api_version: str) -> dict[str, Kind]:
        """The kinds of one API version; empty when the cluster does not serve it."""
        prefix = "/apis/" if "/" in api_version else "/api/"
        try:
            answer = await self._transport.request_json(Request("GET", prefix + api_version))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return {}
        return {
            resource["kind"]: Kind(api_version, resource["kind"], resource["name"], resource["namespaced"])
            for resource in answer.get("resources") or []
            if "/" not in resource["name"]  # a subresource
        }

    async def path(self, ref: Ref) -> str:
        """The URL path of one object."""
        return (await self.kind(ref.api_version, ref.kind)).path(ref.namespace, ref.name)

    async def is_allowed(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether this identity may do `verb`, as the server answers a SelfSubjectAccessReview.

        Args:
            verb: for example `create`.
            group: the API group; empty for the core group.
            resource: the plural, with its subresource where that is meant: `pods/log`.
            namespace: where.
        """
        plural, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "namespace": namespace}
        if subresource:
            attributes["subresource"] = subresource
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = await self._transport.request_json(Request("POST", path, body=review))
        return bool(answer["status"].get("allowed"))

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get(self, ref: Ref) -> Object | None:
        """The object, or None when there is none."""
        try:
            return await self._transport.request_json(Request("GET", await self.path(ref), where=str(ref)))
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
        accept = _METADATA_LIST if only_metadata else _JSON
        return (await self.snapshot(kind, namespace, labels=labels, fields=fields, accept=accept)).items

    async def snapshot(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", accept: str = _JSON
    ) -> ObjectList:
        """As `list`, with the resourceVersion of the list, from which `watch` continues."""
        objects: list[Object] = []
        continue_token = ""
        while True:
            query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(_PAGE), "continue": continue_token}
            request = Request("GET", kind.path(namespace), query=query, accept=accept, where=kind.plural)
            try:
                page = await self._transport.request_json(request)
            except ApiError as error:
                if error.status != GONE or not continue_token:
                    raise
                objects, continue_token = [], ""  # the token has expired on the server: start over
                continue
            # the items of a list have neither apiVersion nor kind, which all readers rely on
            objects += [{**item, "apiVersion": kind.api_version, "kind": kind.kind} for item in page["items"] or []]
            continue_token = page["metadata"].get("continue", "")
            if not continue_token:
                return ObjectList(objects, str(page["metadata"].get("resourceVersion", "")))

    async def watch(
        self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "", version: str
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after `version`, until the server ends the request after half a minute.

        The first event has no object: the server has accepted the watch. Bookmarks have none either; they only advance
        the version (https://kubernetes.io/docs/reference/using-api/api-concepts/#watch-bookmarks).

        Raises:
            ApiError: status 410, the server no longer has that version: take a new snapshot.
            ClusterUnreachable: the connection dropped, or was silent for too long.
        """
        query = {"labelSelector": labels, "fieldSelector": fields, "resourceVersion": version}
        query |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        request = Request("GET", kind.path(namespace), query=query, where=kind.plural)
        async with self._transport.stream(request) as lines:
            yield WatchEvent(version)
            async for line in lines:
                event = self._transport.parse_json(line)
                item = event["object"]
                if event["type"] == "ERROR":
                    raise error_of("GET", int(item.get("code") or 0), json.dumps(item).encode(), kind.plural)
                version = str(item["metadata"]["resourceVersion"])
                if event["type"] == "BOOKMARK":
                    yield WatchEvent(version)
                else:
                    yield WatchEvent(version, item, deleted=event["type"] == "DELETED")

    async def logs(
        self, namespace: str, pod: str, container: str, *, previous: bool = False, lines: int = 30
    ) -> str | None:
        """The last lines of a container's log; empty when it wrote nothing, None when they cannot be read soon.

        A log is evidence for a problem that is known already, so reading it neither fails nor takes long.
        """
        query = {
            "container": container,
            "tailLines": str(lines),
            "previous": "true" if previous else "",
            "limitBytes": str(_LOG_BYTES),
        }
        request = Request("GET", f"{_pod_path(namespace, pod)}/log", query=query)
        try:
            # patience alone does not limit the time: a node that is down keeps the request waiting
            with anyio.fail_after(_LOG_PATIENCE.total_seconds()):
                body = await self._transport.request_body(request, patience=_LOG_PATIENCE)
        except (ApiError, Invalid, ClusterUnreachable, TimeoutError):
            return None
        text = body.decode(errors="replace")
        return None if _LOG_NOT_FOUND.match(text) else text

    # --- writing -----------------------------------------------------------------------------------------------------

    async def apply(
        self,
        item: Object,
        *,
        dry_run: bool = False,
        force: bool = False,
        uid: str = "",
        version: str = "",
        guard: Guard = unguarded,
    ) -> Object:
        """Server-side apply of one object. Retried, since the same apply twice changes nothing.

        With a version, an apply that was carried out though its answer was lost is a Conflict when it is retried.

        Args:
            item: the object.
            dry_run: write nothing, and return what would be written.
            force: take fields over from other managers.
            uid: apply only to the object with this uid: without it, an object that is gone is created again.
            version: apply only to the object at this resourceVersion; ABSENT: only where there is none.
            guard: awaited before each attempt.

        Raises:
            Conflict: the object has another uid or version.
            OwnershipConflict: another manager owns a field with another value, and `force` is False.
            InvalidManifest: what is wrong, in the server's own words.
        """
        ref = Ref.of(item)
        request = Request(
            "PATCH",
            await self.path(ref),
            query={**_write_query(dry_run=dry_run), "force": "true" if force else "false"},
            body=_at(item, uid, version),
            content_type="application/apply-patch+yaml",
            guard=guard,
            where=str(ref),
        )
        return await self._transport.request_json(request)

    async def create(self, item: Object, *, dry_run: bool = False, guard: Guard = unguarded) -> Object:
        """Create one object. Not retried. Conflict with cause AlreadyExists when it exists."""
        ref = Ref.of(item)
        kind = await self.kind(ref.api_version, ref.kind)
        request = Request(
            "POST",
            kind.path(ref.namespace),
            query=_write_query(dry_run=dry_run),
            body=item,
            guard=guard,
            where=str(ref),
        )
        return await self._transport.request_json_once(request)

    async def replace(self, item: Object, *, uid: str = "", version: str = "", guard: Guard = unguarded) -> Object:
        """Replace one object at the uid and resourceVersion that it carries, or at the given ones. Not retried.

        Without a uid, a server creates some kinds, a Lease among them, again where they are gone.

        Raises:
            Conflict: the object has another uid or version.
        """
        ref = Ref.of(item)
        query = {"fieldManager": FIELD_MANAGER}
        body = _at(item, uid, version)
        request = Request("PUT", await self.path(ref), query=query, body=body, guard=guard, where=str(ref))
        return await self._transport.request_json_once(request)

    async def take_fields(
        self, ref: Ref, managed_fields: Sequence[Object], *, uid: str, version: str, guard: Guard = unguarded
    ) -> Object:
        """Change who owns which fields of one object, and nothing else; returns the object. Not retried.

        Args:
            ref: which object.
            managed_fields: the whole `metadata.managedFields`.
            uid: only of the object with this uid.
            version: only of the object at this resourceVersion.
            guard: awaited before the attempt.

        Raises:
            Conflict: the object has another uid or version.
        """
        body = {"metadata": {"managedFields": list(managed_fields), **_preconditions(uid, version)}}
        request = Request(
            "PATCH",
            await self.path(ref),
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type="application/merge-patch+json",
            guard=guard,
            where=str(ref),
        )
        return await self._transport.request_json_once(request)

    async def annotate(self, ref: Ref, annotations: Mapping[str, str], *, guard: Guard = unguarded) -> None:
        """Set annotations of one object, whatever its version, which changes; no error when there is no such object."""
        request = Request(
            "PATCH",
            await self.path(ref),
            query={"fieldManager": FIELD_MANAGER},
            body={"metadata": {"annotations": dict(annotations)}},
            content_type="application/merge-patch+json",
            guard=guard,
            where=str(ref),
        )
        try:
            await self._transport.request_json(request)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def delete(self, ref: Ref, *, uid: str = "", version: str = "", guard: Guard = unguarded) -> None:
        """Delete one object and, in the background, what it owns; no error when it is deleted already.

        Args:
            ref: which object.
            uid: delete only the object with this uid, and not a newer one of the same name.
            version: delete only the object at this resourceVersion.
            guard: awaited before each attempt.

        Raises:
            Conflict: the object has another uid or version.
        """
        preconditions = _preconditions(uid, version)
        body: Object = {"propagationPolicy": "Background"} | ({"preconditions": preconditions} if preconditions else {})
        request = Request("DELETE", await self.path(ref), body=body, guard=guard, where=str(ref))
        try:
            await self._transport.request_json(request)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    # --- connections to pods -----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def port_forward(self, namespace: str, pod: str, port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket to one port of a pod, in the protocol v4.channel.k8s.io of the kubelet.

        Each binary message starts with a channel byte: 0 is data, 1 is an error text. The first message of each channel
        is the port number, two bytes, little endian.

        Raises:
            ApiError: there is no such pod, or it may not be forwarded to.
            ClusterUnreachable: the API server does not answer.
        """
        path = f"{_pod_path(namespace, pod)}/portforward?ports={port}"
        async with self._transport.websocket(path, "v4.channel.k8s.io", where=f"pod/{pod}") as websocket:
            yield websocket

    async def connection_refused(self, namespace: str, pod: str, port: int) -> str:
        """The error message when a port of a pod refuses connections from the API server; empty when it does not.

        The API server proxies the request over HTTPS, so a program that speaks HTTP gets no more than a TLS greeting,
        and no request.
        """
        path = f"{_pod_path(namespace, pod, scheme='https:', suffix=f':{port}')}/proxy/"
        try:
            await self._transport.request_body_once(Request("GET", path))
        except (ClusterUnreachable, ApiError, InvalidManifest) as error:
            return error.reason if "connection refused" in error.reason else ""
        return ""


def _pod_path(namespace: str, pod: str, *, scheme: str = "", suffix: str = "") -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{scheme}{quote(pod, safe='')}{suffix}"


def _preconditions(uid: str, version: str) -> dict[str, str]:
    """What a request demands of the live object."""
    return {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value}


def _at(item: Object, uid: str, version: str) -> Object:
    """The object to write, with what it demands of the live one in its metadata, as the API has it."""
    return {**item, "metadata": {**item["metadata"], **_preconditions(uid, version)}}


def _write_query(*, dry_run: bool) -> dict[str, str]:
    """The query of a write whose unknown fields are errors."""
    query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
    return {**query, "dryRun": "All"} if dry_run else query


__all__ = ["ABSENT", "PATIENCE", "WRITE_SECONDS", "Cluster", "Conflict", "Guard", "connect", "unguarded"]
