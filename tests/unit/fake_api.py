"""A small API server: lists, watches, and what can go wrong with them. Used by tests, and tested by them."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from aiohttp import web

from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.kubeconfig import LoadedKubeconfig
from prefect_cd.kube.objects import Object

_KINDS = {
    "v1": {"Pod": "pods", "Event": "events", "Service": "services", "ConfigMap": "configmaps"},
    "apps/v1": {"Deployment": "deployments", "ReplicaSet": "replicasets"},
    "discovery.k8s.io/v1": {"EndpointSlice": "endpointslices"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
}
_PLURALS = frozenset(plural for kinds in _KINDS.values() for plural in kinds.values())


class FakeApi:
    """Objects of any kind by plural; every change has a version, and watches tell what came after theirs."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.refusals: list[int] = []
        """Statuses that the next watches are answered with."""
        self.lists_refused = False
        self.refuses = ""
        """With which words no object is let in."""
        self.hangs = False
        """Whether watches stay open and tell nothing."""
        self.hasty = False
        """Whether watches end as soon as they began."""
        self.port = 0
        self._version = 1
        self._forgotten = 0
        self._log: list[tuple[str, str, Object]] = []
        self._news = asyncio.Event()
        self._streams: list[web.Request] = []
        self._runner: web.AppRunner | None = None

    @asynccontextmanager
    async def running(self, patience: float = 3) -> AsyncIterator[Cluster]:
        await self.start()
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        try:
            async with connect(LoadedKubeconfig(config), patience=timedelta(seconds=patience)) as cluster:
                yield cluster
        finally:
            await self.stop()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{base:api|apis}/{rest:.+}", self._answer)
        app.router.add_post("/{base:api|apis}/{rest:.+}", self._let_in)
        self._runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        self.drop()
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    def put(self, plural: str, name: str, **parts: Any) -> Object:  # noqa: ANN401
        known = self.objects.setdefault(plural, {})
        self._version += 1
        metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", **parts.pop("metadata", {})}
        metadata["resourceVersion"] = str(self._version)
        kind, api_version = next((k, v) for v, kinds in _KINDS.items() for k, p in kinds.items() if p == plural)
        item = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}
        self._tell("MODIFIED" if name in known else "ADDED", plural, item)
        known[name] = item
        return item

    def remove(self, plural: str, name: str) -> None:
        item = self.objects[plural].pop(name)
        self._version += 1
        self._tell("DELETED", plural, {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}})

    def bookmark(self, plural: str) -> None:
        self._version += 1
        self._tell("BOOKMARK", plural, {"metadata": {"resourceVersion": str(self._version)}})

    def forget(self) -> None:
        """As if it had been away for so long that what was told before is not known any more."""
        self._forgotten = self._version

    def drop(self) -> None:
        """Cut every watch in the middle."""
        for request in list(self._streams):
            if request.transport:
                request.transport.abort()

    def watches(self, plural: str) -> list[dict[str, str]]:
        return [query for path, query in self.asked if path.endswith(plural) and "watch" in query]

    async def watched(self, plural: str) -> None:
        """Until somebody watches these."""
        while not self.watches(plural):
            await asyncio.sleep(0.01)

    def lists(self, plural: str) -> list[dict[str, str]]:
        return [query for path, query in self.asked if path.endswith(plural) and "watch" not in query]

    def _tell(self, what: str, plural: str, item: Object) -> None:
        if self.hangs:
            return
        self._log.append((what, plural, item))
        self._news.set()
        self._news = asyncio.Event()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, query = request.match_info["rest"], dict(request.query)
        self.asked.append((path, query))
        if path in _KINDS:
            resources = [{"kind": kind, "name": name, "namespaced": True} for kind, name in _KINDS[path].items()]
            return web.json_response({"resources": resources})
        above, _, plural = path.rpartition("/")
        if found := self.objects.get(above.rpartition("/")[2], {}).get(plural):
            return web.json_response(found)
        if "watch" in query:
            return await self._watch(request, plural, int(query["resourceVersion"]))
        if above.rpartition("/")[2] in _PLURALS:
            return web.json_response(_status(404), status=404)
        if self.lists_refused:
            return web.json_response(_status(403), status=403)
        items = [each for each in self.objects.get(plural, {}).values() if _matches(each, query)]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _let_in(self, request: web.Request) -> web.StreamResponse:
        """Of what is created, only whether it would be let in."""
        self.asked.append((request.match_info["rest"], {"method": "POST", **request.query}))
        refusal = {**_status(403), "message": self.refuses}
        return web.json_response(refusal if self.refuses else await request.json(), status=403 if self.refuses else 201)

    async def _watch(self, request: web.Request, plural: str, since: int) -> web.StreamResponse:
        if self.refusals:
            return web.json_response(_status(self.refusals.pop(0)), status=403)
        response = web.StreamResponse()
        await response.prepare(request)
        self._streams.append(request)
        told = 0
        try:
            if since < self._forgotten:
                await response.write(_line("ERROR", _status(410)))
                return response
            while not self.hasty:
                news = self._news
                for what, where, item in self._log[told:]:
                    new = int(item["metadata"]["resourceVersion"]) > since
                    if new and where == plural and (what == "BOOKMARK" or _matches(item, dict(request.query))):
                        await response.write(_line(what, item))
                told = len(self._log)
                await news.wait()
        except ConnectionError:
            pass
        finally:
            self._streams.remove(request)
        return response


def _line(what: str, item: Object) -> bytes:
    return json.dumps({"type": what, "object": item}).encode() + b"\n"


def _status(code: int) -> Object:
    return {"kind": "Status", "code": code, "reason": "Expired", "message": f"status {code}"}


def _matches(item: Object, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels") or {}
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    named = "metadata.name=" not in query.get("fieldSelector", "") or item["metadata"]["name"] == name
    terms = re.split(r",(?![^(]*\))", query.get("labelSelector", ""))
    return named and all(_holds(term, labels) for term in terms if term)


def _holds(term: str, labels: dict[str, str]) -> bool:
    """Whether labels fulfil one term of a query: `a=b`, `a in (b,c)`, `a notin (b,c)`, `a` or `!a`."""
    if found := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", term):
        return (labels.get(found[1]) in found[3].split(",")) == (found[2] == "in")
    key, equals, value = term.partition("=")
    if equals:
        return labels.get(key) == value
    return (key.removeprefix("!") in labels) != key.startswith("!")
