"""Routing: the object and verb of a request, and the shape of the answer.

verbs.py, watches.py and streams.py decide about objects. Source of the paths: the API concepts page of the Kubernetes
documentation.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from prefect_cd_local.apiserver import bodies, discovery, scale, selectors, streams, table, watches
from prefect_cd_local.apiserver.errors import Refusal, bad_request, forbidden_field, invalid, no_such_path, not_allowed
from prefect_cd_local.apiserver.kinds import ACCESS_REVIEW, BY_PLURAL, GROUP_VERSIONS, Kind
from prefect_cd_local.apiserver.options import Options, options_of
from prefect_cd_local.apiserver.storage import Key, Matches, Store
from prefect_cd_local.apiserver.verbs import Verbs

Object = dict[str, Any]
Query = dict[str, str]
_BELOW_NAMESPACES = {"finalize", "status"}
_OPERATIONS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass
class Hooks:
    """Functions that the node provides to the API server; without them the answer is 501."""

    logs: streams.Logs | None = None
    connect: streams.Connect | None = None


@dataclass(frozen=True)
class _Target:
    """The object or collection that a path names."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class Routes:
    """All paths over one store."""

    def __init__(self, store: Store, verbs: Verbs, hooks: Hooks, closing: asyncio.Event) -> None:
        self.hooks = hooks
        self._store, self._verbs, self._closing = store, verbs, closing

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer an authenticated request.

        Raises:
            Refusal: the request has an error.
        """
        parts = request.path.strip("/").split("/")
        document = discovery.document(parts, request.host)
        if document is not None:
            return bodies.answer(document)
        depth = 2 if parts[0] == "api" else 3
        api_version, rest = "/".join(parts[1:depth]), parts[depth:]
        if api_version not in GROUP_VERSIONS or not rest or parts[0] not in {"api", "apis"}:
            return web.Response(status=404, text="404 page not found\n")
        target = _target(api_version, rest)
        if target.kind is ACCESS_REVIEW:
            return await _review(request, target)
        if target.subresource:
            return await self._below(request, target)
        return await self._objects(request, target)

    async def _objects(self, request: web.Request, target: _Target) -> web.StreamResponse:
        kind, key, method = target.kind, target.key, request.method
        if method == "GET":
            query = dict(request.query)
            if target.name and query.get("watch") not in {"true", "1"}:
                return _one(request, kind, self._verbs.find(kind, key))
            if target.name:
                query["fieldSelector"] = f"metadata.name={target.name}"
            return await self._list(request, target, query)
        if target.name and method == "DELETE":
            return _one(request, kind, self._verbs.delete(kind, key, await _delete_options(request)))
        if target.name and method in {"PUT", "PATCH"}:
            return await self._write(request, target)
        if method != "POST" or target.name or (kind.namespaced and not target.namespace):
            raise not_allowed()
        options = _options(request, "Create")
        body, options.duplicates = await bodies.read(request, kind.kind)
        return _one(request, kind, self._verbs.create(kind, target.namespace, body, options), options, 201)

    async def _write(self, request: web.Request, target: _Target) -> web.Response:
        """Handle PUT and PATCH of an object or its status."""
        kind, created = target.kind, False
        if request.method == "PUT":
            options = _options(request, "Update")
            body, options.duplicates = await bodies.read(request, kind.kind)
            item, created = self._verbs.replace(kind, target.key, body, options, target.subresource)
        else:
            how = bodies.patch_type(request)
            options = _options(request, "Patch", how)
            body = await bodies.read_patch(request, how, options)
            item, created = self._verbs.patch(kind, target.key, body, how, options, target.subresource)
        return _one(request, kind, item, options, 201 if created else 200)

    async def _below(self, request: web.Request, target: _Target) -> web.StreamResponse:
        """Handle a subresource."""
        kind, key, name = target.kind, target.key, target.subresource
        known, verb = kind.subresource(name), _OPERATIONS.get(request.method, "")
        if known is None:
            raise no_such_path()
        if verb not in known.verbs:
            raise not_allowed()
        if name == "binding":
            options = _options(request, "Create")
            body = (await bodies.read(request, "Binding")).value
            self._verbs.bind(kind, key, str((body.get("target") or {}).get("name", "")), options)
            head = {"kind": "Status", "apiVersion": "v1", "metadata": {}}
            return bodies.answer({**head, "status": "Success", "code": 201}, 201)
        item = self._verbs.find(kind, key)
        if name == "log":
            return await streams.send_log(request, item, self.hooks.logs)
        if name == "portforward":
            return await streams.forward_port(request, item, self.hooks.connect)
        if name == "scale":
            return await self._scale(request, target, verb, item)
        return _one(request, kind, item) if verb == "get" else await self._write(request, target)

    async def _scale(self, request: web.Request, target: _Target, verb: str, item: Object) -> web.Response:
        if verb == "get":
            return bodies.answer(scale.view(item))
        how = bodies.patch_type(request) if verb == "patch" else ""
        options = _options(request, verb.capitalize(), how)
        body = await bodies.read_patch(request, how, options) if how else (await bodies.read(request, "Scale")).value
        return bodies.answer(scale.write(self._verbs, target.kind, target.key, body, how, options))

    async def _list(self, request: web.Request, target: _Target, query: Query) -> web.StreamResponse:
        kind = target.kind
        by_label = selectors.labels(query.get("labelSelector", ""))
        by_field = selectors.fields(kind, query.get("fieldSelector", ""))
        _check_list_options(query)
        at = self._version_of(query)
        if query.get("watch") in {"true", "1"}:
            return await self._watch(request, target, query, lambda item: by_label(item) and by_field(item))
        limit, token = int(query.get("limit") or 0), query.get("continue", "")
        page = self._store.page(
            kind, target.namespace, lambda item: by_label(item) and by_field(item), limit, token, at
        )
        metadata: Object = {"resourceVersion": str(page.version)}
        if page.next:
            metadata["continue"] = page.next
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                metadata["remainingItemCount"] = page.remaining
        shape = bodies.shape(request)
        if shape == "Table":
            return bodies.answer(table.table(kind, page.items, metadata, query.get("includeObject", "Metadata")))
        if shape:
            head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            return bodies.answer({**head, "metadata": metadata, "items": [table.partial(item) for item in page.items]})
        head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
        items = [{key: value for key, value in item.items() if key not in head} for item in page.items]
        return bodies.answer({**head, "metadata": metadata, "items": items})

    def _version_of(self, query: Query) -> int | None:
        """Return the resourceVersion that a list must show, or None for the present state."""
        requested = query.get("resourceVersion", "")
        if requested in {"", "0"}:
            return None
        if not requested.isdigit():
            cause = f'Invalid value: "{requested}": strconv.ParseUint: parsing "{requested}": invalid syntax'
            raise bad_request(f"invalid resource version: resourceVersion: {cause}")
        if int(requested) > self._store.version:
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            message = f"Timeout: Too large resource version: {requested}, current: {self._store.version}"
            raise Refusal(504, "Timeout", message, {"causes": causes, "retryAfterSeconds": 1})
        return int(requested) if query.get("resourceVersionMatch") == "Exact" else None

    async def _watch(self, request: web.Request, target: _Target, query: Query, matches: Matches) -> web.StreamResponse:
        kind, shape = target.kind, bodies.shape(request)
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        await response.prepare(request)
        headers = True
        with contextlib.suppress(ConnectionError):
            async for event in watches.events(self._store, kind, target.namespace, matches, query, self._closing):
                item, of_an_object = event["object"], event["type"] not in {"ERROR", "BOOKMARK"}
                if shape == "Table" and of_an_object:
                    metadata = {"resourceVersion": item["metadata"]["resourceVersion"]}
                    item = table.table(kind, [item], metadata, query.get("includeObject", "Metadata"), headers=headers)
                    headers = False
                elif shape not in {"", "Table"} and event["type"] != "ERROR":
                    item = table.partial(item)
                await response.write(bodies.line({**event, "object": item}).encode())
        return response


def _target(api_version: str, rest: list[str]) -> _Target:
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in _BELOW_NAMESPACES:  # noqa: PLR2004
        namespace, rest = rest[1], rest[2:]
    kind = BY_PLURAL.get((api_version, rest[0]))
    misplaced = kind and (kind.namespaced < bool(namespace) or kind.namespaced > bool(namespace or len(rest) == 1))
    if kind is None or misplaced or len(rest) > 3:  # noqa: PLR2004  plural, name, subresource
        raise no_such_path()
    return _Target(kind, namespace, *rest[1:])


async def _review(request: web.Request, target: _Target) -> web.Response:
    """Answer an access review: there is no RBAC, so that the one user may do everything, and the answer says so."""
    if request.method != "POST" or target.name:
        raise not_allowed()
    body = (await bodies.read(request, ACCESS_REVIEW.kind)).value
    head = {"kind": ACCESS_REVIEW.kind, "apiVersion": ACCESS_REVIEW.api_version, "metadata": {}}
    status = {"allowed": True, "reason": "the embedded cluster has no RBAC: its one user may do everything"}
    return bodies.answer({**head, "spec": body.get("spec") or {}, "status": status}, 201)


def _options(request: web.Request, operation: str, how: str = "") -> Options:
    return options_of(dict(request.query), request.headers.get("User-Agent", ""), operation, how)


async def _delete_options(request: web.Request) -> Object:
    delete_options: Object = (await bodies.read(request, "DeleteOptions")).value if request.can_read_body else {}
    for name in ("propagationPolicy", "gracePeriodSeconds", "orphanDependents", "dryRun"):
        if request.query.get(name):
            delete_options.setdefault(name, request.query[name])
    if delete_options.get("gracePeriodSeconds") is not None:
        delete_options["gracePeriodSeconds"] = int(delete_options["gracePeriodSeconds"])
    if isinstance(delete_options.get("orphanDependents"), str):
        delete_options["orphanDependents"] = delete_options["orphanDependents"] == "true"
    return delete_options


def _check_list_options(query: Query) -> None:
    match, initial = query.get("resourceVersionMatch"), query.get("sendInitialEvents")
    why = ""
    if initial and match != "NotOlderThan":
        why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    elif match and not initial and query.get("watch") in {"true", "1"}:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
    elif match and not initial and not query.get("resourceVersion"):
        why = "resourceVersionMatch is forbidden unless resourceVersion is provided"
    if why:
        raise invalid("ListOptions", "meta.k8s.io", "", [forbidden_field("resourceVersionMatch", why)])


def _one(
    request: web.Request, kind: Kind, item: Object, options: Options | None = None, status: int = 200
) -> web.Response:
    """Answer with one object (or Status) in the requested shape."""
    shape = bodies.shape(request)
    if item.get("kind") == kind.kind and shape == "Table":
        metadata = {"resourceVersion": item["metadata"].get("resourceVersion", "")}
        item = table.table(kind, [item], metadata, request.query.get("includeObject", "Metadata"))
    elif item.get("kind") == kind.kind and shape:
        item = table.partial(item)
    return bodies.answer(item, status, options.warnings if options else None)
