"""A small API server: lists, watches, writes, dry runs, and their failures. Used by tests, and tested by them.

It is wrong in ways that do not matter to its tests: an apply replaces the whole object, as it does when one manager
owns all fields. Preconditions and finalizers are those of a real server (tests/conformance of the embedded cluster).
"""

import asyncio
import json
import re
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

from aiohttp import web

from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object

_KINDS = {
    "v1": {
        "Pod": "pods",
        "Event": "events",
        "Service": "services",
        "ConfigMap": "configmaps",
        "Secret": "secrets",
        "Namespace": "namespaces",
        "ResourceQuota": "resourcequotas",
        "ServiceAccount": "serviceaccounts",
    },
    "apps/v1": {"Deployment": "deployments", "ReplicaSet": "replicasets"},
    "discovery.k8s.io/v1": {"EndpointSlice": "endpointslices"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "coordination.k8s.io/v1": {"Lease": "leases"},
    "rbac.authorization.k8s.io/v1": {"ClusterRole": "clusterroles"},
    "autoscaling/v1": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
}
_CREATED_BY_PUT = frozenset({"leases", "services", "events"})
_CLUSTER_SCOPED = frozenset({"Namespace", "ClusterRole"})
DEFAULT_NAMESPACE = "shop"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_PLURALS = frozenset(plural for kinds in _KINDS.values() for plural in kinds.values())


class FakeApi:
    """Objects of any kind by plural. Every change has a version, and a watch sends the changes after its version."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {}
        """By plural and name; `namespace/name` outside of the namespace shop."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.watch_errors: list[int] = []
        """Statuses that the next watches are answered with."""
        self.lists_forbidden = False
        self.unreadable: set[str] = set()
        """Plurals of which we may read no object."""
        self.logs: dict[str, str] = {}
        """By the name of the pod."""
        self.admission_error = ""
        """The message with which a creation is rejected; empty when all objects are admitted."""
        self.refused_names: dict[str, str] = {}
        """Name of an object -> the message with which writing it is rejected."""
        self.watches_hang = False
        """Whether watches stay open and send nothing."""
        self.watches_end = False
        """Whether watches end as soon as they have begun."""
        self.write_errors: list[int] = []
        """Statuses that the next writes are answered with."""
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that a SelfSubjectAccessReview denies."""
        self.tokens: dict[str, str] = {}
        """Bearer token -> the only namespace in which a SelfSubjectAccessReview allows its owner anything."""
        self.other_managers: dict[str, str] = {}
        """Name of an object -> the manager whose fields an apply without `force` may not change."""
        self.refused: set[str] = set()
        """Names of objects of which every apply is refused as invalid, though a dry run passes."""
        self.connections = 0
        """How many connections clients have opened."""
        self.port = 0
        self.before_write: Callable[[str], None] | None = None
        """Called with each write (`PATCH configmaps/shop`) before it is carried out, dry runs excepted."""
        self._version = 1
        self._made = 0
        self._oldest_version = 0
        self._log: list[tuple[str, str, Object]] = []
        self._change = asyncio.Event()
        self._streams: list[web.Request] = []
        self._runner: web.AppRunner | None = None
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    @asynccontextmanager
    async def running(self, patience: float = 3) -> AsyncIterator[Cluster]:
        await self.start()
        try:
            async with connect(LoadedKubeconfig(self.kubeconfig), patience=timedelta(seconds=patience)) as cluster:
                yield cluster
        finally:
            await self.stop()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve from a thread of its own: for synchronous tests, whose clients have event loops of their own."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="fake API server", daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.start(), loop).result()
            yield
            asyncio.run_coroutine_threadsafe(self.stop(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    @property
    def kubeconfig(self) -> dict[str, Any]:
        """A kubeconfig that leads here."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }

    async def start(self) -> None:
        app = web.Application(middlewares=[self._count_connections])
        app.router.add_get("/version", self._serve_version)
        app.router.add_get("/{base:api|apis}/{rest:.+}", self._read)
        app.router.add_post("/{base:api|apis}/{rest:.+}", self._create)
        for method in ("PATCH", "PUT", "DELETE"):
            app.router.add_route(method, "/{base:api|apis}/{rest:.+}", self._write)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self.drop_connections()
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    def put(self, plural: str, name: str, **parts: Any) -> Object:  # noqa: ANN401
        known = self.objects.setdefault(plural, {})
        self._version += 1
        namespace = {} if plural in {"namespaces", "clusterroles"} else {"namespace": DEFAULT_NAMESPACE}
        metadata = {"name": name, **namespace, **parts.pop("metadata", {})}
        key = _key(metadata.get("namespace", ""), name)
        metadata["uid"] = metadata.get("uid") or (
            known[key]["metadata"]["uid"] if key in known else self._uid(plural, name)
        )
        metadata["resourceVersion"] = str(self._version)
        kind, api_version = next((k, v) for v, kinds in _KINDS.items() for k, p in kinds.items() if p == plural)
        item = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}
        self._record("MODIFIED" if key in known else "ADDED", plural, item)
        known[key] = item
        return item

    def _uid(self, plural: str, name: str) -> str:
        """A new uid: that of the first object of a name is known to tests, and no later one has it again."""
        self._made += 1
        first = f"uid-{name}"
        used = any(logged == plural and item["metadata"].get("uid") == first for _, logged, item in self._log)
        return f"{first}-{self._made}" if used else first

    def remove(self, plural: str, name: str) -> None:
        item = self.objects[plural].pop(name)
        self._version += 1
        metadata = {**item["metadata"], "resourceVersion": str(self._version)}
        self._record("DELETED", plural, {**item, "metadata": metadata})

    def bookmark(self, plural: str) -> None:
        self._version += 1
        self._record("BOOKMARK", plural, {"metadata": {"resourceVersion": str(self._version)}})

    def expire_versions(self) -> None:
        """Answer watches from versions before now with 410, as after a long time."""
        self._oldest_version = self._version

    def drop_connections(self) -> None:
        """Abort the connection of every watch."""
        for request in list(self._streams):
            if request.transport:
                request.transport.abort()

    def watches(self, plural: str) -> list[dict[str, str]]:
        return [query for path, query in self.requests if path.endswith(plural) and "watch" in query]

    async def wait_for_watch(self, plural: str) -> None:
        while not self.watches(plural):
            await asyncio.sleep(0.01)

    def lists(self, plural: str) -> list[dict[str, str]]:
        return [query for path, query in self.requests if path.endswith(plural) and "watch" not in query]

    @property
    def writes(self) -> list[str]:
        """The writes so far, in order: `PATCH configmaps/shop`; dry runs and access reviews are none."""
        return [
            f"{query['method']} {query['target']}"
            for _, query in self.requests
            if "target" in query and "dryRun" not in query
        ]

    def _record(self, event: str, plural: str, item: Object) -> None:
        if self.watches_hang:
            return
        self._log.append((event, plural, item))
        self._change.set()
        self._change = asyncio.Event()

    async def _read(self, request: web.Request) -> web.StreamResponse:
        path, query = request.match_info["rest"], dict(request.query)
        self.requests.append((path, query))
        if path in _KINDS:
            resources = [
                {"kind": kind, "name": name, "namespaced": kind not in _CLUSTER_SCOPED}
                for kind, name in _KINDS[path].items()
            ]
            return web.json_response({"resources": resources})
        parent, _, last = path.rpartition("/")
        collection, namespace = parent.rpartition("/")[2], _namespace(path)
        if last == "log" and (name := parent.rpartition("/")[2]) in self.logs:
            return web.Response(text=self.logs[name])
        item = self.objects.get(collection, {}).get(_key(namespace, last))
        if item and collection not in self.unreadable:
            return _answer(path, item)
        if "watch" in query:
            return await self._watch(request, last, int(query["resourceVersion"]))
        if collection in _PLURALS or self.lists_forbidden:
            status = 404 if collection in _PLURALS and collection not in self.unreadable else 403
            return web.json_response(_status(status), status=status)
        items = [
            item
            for item in self.objects.get(last, {}).values()
            if _matches(item, query) and namespace in {"", item["metadata"].get("namespace", "")}
        ]
        if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
            items = [{key: item[key] for key in ("apiVersion", "kind", "metadata")} for item in items]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _create(self, request: web.Request) -> web.StreamResponse:
        """Admit or reject an object, and store it unless this is a dry run; answer an access review."""
        path, query, body = request.match_info["rest"], dict(request.query), await request.json()
        if path.endswith("selfsubjectaccessreviews"):
            self.requests.append((path, {"method": "POST"}))
            return web.json_response({**body, "status": {"allowed": self._allows(request, body)}}, status=201)
        plural, name = path.rpartition("/")[2], body["metadata"]["name"]
        self.requests.append((path, {"method": "POST", "target": f"{plural}/{name}", **query}))
        if (error := self._refused(name)) is not None:  # a response without content is false in older aiohttp
            return error
        exists = _key(_namespace(path), name) in self.objects.get(plural, {})
        if "dryRun" in query:
            return _refusal(409, "AlreadyExists") if exists else _answer(path, body, 201)
        if body["metadata"].get("resourceVersion"):
            return _refusal(500, "resourceVersion should not be set on objects to be created")
        if exists:
            return _refusal(409, "AlreadyExists")
        return _answer(path, self._store(plural, body), 201)

    async def _write(self, request: web.Request) -> web.StreamResponse:
        """Apply, replace or delete one object."""
        path, query, body = request.match_info["rest"], dict(request.query), await request.json()
        plural, name = path.split("/")[-2:]
        self.requests.append((path, {"method": request.method, "target": f"{plural}/{name}", **query}))
        if (error := self._refused(name)) is not None:  # a response without content is false in older aiohttp
            return error
        if self.before_write and "dryRun" not in query:
            self.before_write(f"{request.method} {plural}/{name}")
        live = self.objects.get(plural, {}).get(_key(_namespace(path), name))
        if request.method == "DELETE":
            return self._delete(plural, live, body.get("preconditions") or {})
        if request.method == "PUT":
            return self._replace(path, plural, body, live)
        if request.content_type == "application/merge-patch+json":
            return self._annotate(path, plural, body, live)
        return self._apply(path, plural, body, live, query)

    def _delete(self, plural: str, live: Object | None, preconditions: dict[str, str]) -> web.Response:
        if live is None:
            return _refusal(404, "NotFound")
        metadata = live["metadata"]
        if any(metadata[key] != value for key, value in preconditions.items()):
            return _refusal(409, "Conflict")
        if metadata.get("finalizers"):
            if "deletionTimestamp" not in metadata:
                self._store(plural, {**live, "metadata": {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        else:
            self.remove(plural, _key(metadata.get("namespace", ""), metadata["name"]))
        return web.json_response({"kind": "Status", "status": "Success"})

    def _replace(self, path: str, plural: str, item: Object, live: Object | None) -> web.Response:
        if live is None and plural not in _CREATED_BY_PUT:
            return _refusal(404, "NotFound")
        if item["metadata"].get("uid", "") not in {"", live["metadata"]["uid"] if live else ""}:
            return _refusal(409, "Conflict")
        if live and live["metadata"]["resourceVersion"] != item["metadata"].get("resourceVersion"):
            return _refusal(409, "Conflict")
        return _answer(path, self._store(plural, item), 200 if live else 201)

    def _annotate(self, path: str, plural: str, patch: Object, live: Object | None) -> web.Response:
        if live is None:
            return _refusal(404, "NotFound")
        annotations = {**live["metadata"].get("annotations", {}), **patch["metadata"]["annotations"]}
        return _answer(
            path, self._store(plural, {**live, "metadata": {**live["metadata"], "annotations": annotations}})
        )

    def _apply(self, path: str, plural: str, item: Object, live: Object | None, query: dict[str, str]) -> web.Response:
        manager = self.other_managers.get(item["metadata"]["name"])
        if manager and query["force"] != "true":
            return web.json_response(_conflict(manager), status=409)
        if item["metadata"]["name"] in self.refused and "dryRun" not in query:
            return _refusal(422, "Invalid")
        uid, version = (item["metadata"].get(key) for key in ("uid", "resourceVersion"))
        if (live is None and uid) or (live and version not in {None, live["metadata"]["resourceVersion"]}):
            return _refusal(409, "Conflict")
        if live and uid not in {None, live["metadata"]["uid"]}:
            return _refusal(422, "Invalid")
        result = _applied(item, live)
        return _answer(path, result if "dryRun" in query else self._store(plural, result))

    def _allows(self, request: web.Request, review: Object) -> bool:
        attributes = review["spec"]["resourceAttributes"]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens.get(token, attributes["namespace"]) != attributes["namespace"]:
            return False
        resource = "/".join(filter(None, [attributes["resource"], attributes.get("subresource")]))
        return (attributes["verb"], resource) not in self.denied

    def _refused(self, name: str) -> web.Response | None:
        """The answer to a write that is not to succeed."""
        if self.write_errors:
            status = self.write_errors.pop(0)
            return web.json_response(_status(status), status=status)
        if message := self.admission_error or self.refused_names.get(name):
            return web.json_response({**_status(403), "message": message}, status=403)
        return None

    def _store(self, plural: str, item: Object) -> Object:
        name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "")
        live = self.objects.get(plural, {}).get(_key(namespace, name))
        if live and {**live, "apiVersion": item["apiVersion"]} == item:
            return live  # as a server does: a write that changes nothing gets no new version
        metadata = {key: value for key, value in item["metadata"].items() if key != "name"}
        if live is None:  # a new object has an identity of its own
            metadata = {key: value for key, value in metadata.items() if key not in {"uid", "deletionTimestamp"}}
        parts = {key: value for key, value in item.items() if key not in {"apiVersion", "kind", "metadata"}}
        stored = self.put(plural, name, metadata=metadata, **parts)
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self.remove(plural, _key(namespace, name))
        return stored

    async def _serve_version(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"gitVersion": "v1.36.3"})

    @web.middleware
    async def _count_connections(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is not None and request.transport not in self._transports:
            self._transports.add(request.transport)
            self.connections += 1
        return await handler(request)

    async def _watch(self, request: web.Request, plural: str, since: int) -> web.StreamResponse:
        if self.watch_errors:
            return web.json_response(_status(self.watch_errors.pop(0)), status=403)
        response = web.StreamResponse()
        await response.prepare(request)
        self._streams.append(request)
        sent = 0
        try:
            if since < self._oldest_version:
                await response.write(_line("ERROR", _status(410)))
                return response
            while not self.watches_end:
                change = self._change
                for event, event_plural, item in self._log[sent:]:
                    is_new = int(item["metadata"]["resourceVersion"]) > since and event_plural == plural
                    if is_new and (event == "BOOKMARK" or _matches(item, dict(request.query))):
                        await response.write(_line(event, item))
                sent = len(self._log)
                await change.wait()
        except ConnectionError:
            pass
        finally:
            self._streams.remove(request)
        return response


def _line(event: str, item: Object) -> bytes:
    return json.dumps({"type": event, "object": item}).encode() + b"\n"


def _status(code: int) -> Object:
    return {"kind": "Status", "code": code, "reason": "Expired", "message": f"status {code}"}


def _applied(item: Object, live: Object | None) -> Object:
    """The object after an apply: what only the server writes stays as it is."""
    if live is None:
        return item
    kept = ("uid", "resourceVersion", "deletionTimestamp", "finalizers")
    server = {key: live["metadata"][key] for key in kept if key in live["metadata"]}
    status = {"status": live["status"]} if "status" in live else {}
    return {**item, **status, "metadata": {**item["metadata"], **server}}


def _refusal(code: int, reason: str) -> web.Response:
    return web.json_response({**_status(code), "reason": reason}, status=code)


def _answer(path: str, item: Object, status: int = 200) -> web.Response:
    """An object in the API version of the path under which it was requested."""
    version = re.match(r"(?:[^/]+/)?v\d+", path)
    assert version, path
    return web.json_response({**item, "apiVersion": version[0]}, status=status)


def _namespace(path: str) -> str:
    """The namespace of a path; empty for cluster-scoped objects and for lists of all namespaces."""
    match = re.match(r"(?:[^/]+/)?v\d+/namespaces/([^/]+)/", path)
    return match[1] if match else ""


def _key(namespace: str, name: str) -> str:
    return name if namespace in {"", DEFAULT_NAMESPACE} else f"{namespace}/{name}"


def _conflict(manager: str) -> Object:
    cause = {"reason": "FieldManagerConflict", "field": ".data", "message": f'conflict with "{manager}" using v1'}
    return {**_status(409), "reason": "Conflict", "details": {"causes": [cause]}}


def _matches(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    fields = query.get("fieldSelector", "")
    by_name = "metadata.name=" in fields
    if by_name and item["metadata"]["name"] != fields.removeprefix("metadata.name="):
        return False
    terms = re.split(r",(?![^(]*\))", query.get("labelSelector", ""))
    return all(_holds(term, labels) for term in terms if term)


def _holds(term: str, labels: dict[str, str]) -> bool:
    """Whether labels satisfy one term of a query: `a=b`, `a in (b,c)`, `a notin (b,c)`, `a` or `!a`."""
    if match := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", term):
        return (labels.get(match[1]) in match[3].split(",")) == (match[2] == "in")
    key, equals, value = term.partition("=")
    if equals:
        return labels.get(key) == value
    return (key.removeprefix("!") in labels) != key.startswith("!")
