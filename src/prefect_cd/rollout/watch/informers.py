"""Informers for some workloads and all objects related to them, and an observation of each workload.

Decides what to watch, so that the cost follows the workloads of the rollout and not their neighbours in the namespace:
pods and revisions by the workloads' selectors, Services and EndpointSlices by name, and the namespace's events except
routine ones and those about other objects. Assesses nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

import anyio

from prefect_cd.errors import Forbidden, RolloutFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.informer import Informer, Query
from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import covering_queries, name_queries, selector_matches
from prefect_cd.rollout.assess import Observation
from prefect_cd.rollout.watch.related import (
    REVISION_KINDS,
    ROUTINE_REASONS,
    WATCHED_KINDS,
    WORKLOAD_KINDS,
    WatchedWorkload,
    assign_services,
    is_owned_by,
    labels_of,
    may_be_about,
)

_JOB_NAME = "batch.kubernetes.io/job-name"


@dataclass
class Informers:
    """The informers of some workloads in one cluster."""

    workloads: list[WatchedWorkload] = field(default_factory=list)
    services: frozenset[Ref] = frozenset()
    """The Services that are assessed; an informer may hold others, too."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _services_by_workload: dict[str, dict[str, list[Object]]] = field(default_factory=dict)
    """Assigned Services by namespace and workload, until one of them changes."""
    _informers: list[Informer] = field(default_factory=list)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def lost_since(self) -> datetime | None:
        """Since when at least one informer has no contact with the server; None when all have."""
        return min((informer.lost_since for informer in self._informers if informer.lost_since), default=None)

    # --- observations ------------------------------------------------------------------------------------------------

    def observe(self, watched: WatchedWorkload) -> Observation:
        """The present state of one workload and of all objects related to it.

        Raises:
            RolloutFailed: it was deleted.
        """
        ref, watched.stale = watched.ref, False
        workload = self.workload(ref)
        if ref.kind not in WATCHED_KINDS:
            return Observation(workload)
        uid = workload["metadata"]["uid"]
        pods = [pod for pod in self._objects("Pod", ref) if selector_matches(watched.selector, labels_of(pod))]
        pods = [workload] if ref.kind == "Pod" else pods
        revision_kind = REVISION_KINDS.get(ref.kind, "")
        revisions = [revision for revision in self._objects(revision_kind, ref) if is_owned_by(revision, uid)]
        uids = {item["metadata"]["uid"] for item in (workload, *revisions, *pods)}
        events = [event for event in self._objects("Event", ref) if event["involvedObject"].get("uid") in uids]
        services = self._assigned_services(watched)
        slices = [
            endpoint_slice
            for endpoint_slice in self._objects("EndpointSlice", ref)
            if labels_of(endpoint_slice).get(SERVICE_NAME_LABEL) in watched.services
        ]
        return Observation(
            workload,
            tuple(revisions),
            tuple(pods),
            tuple(events),
            services=services,
            endpoints=tuple(slices),
            present=watched.present,
        )

    def _assigned_services(self, watched: WatchedWorkload) -> tuple[Object, ...]:
        """The Services that are assessed with a workload. Their names are kept, to know which changes affect it."""
        namespace = watched.ref.namespace
        if namespace not in self._services_by_workload:
            refs = [other.ref for other in self.workloads if other.ref.namespace == namespace]
            workloads = [workload for ref in refs if (workload := self._find(ref))]
            services = [item for item in self._objects("Service", watched.ref) if Ref.of(item) in self.services]
            self._services_by_workload[namespace] = assign_services(services, workloads)
        assigned = self._services_by_workload[namespace].get(str(watched.ref), [])
        watched.services = frozenset(service["metadata"]["name"] for service in assigned)
        return tuple(assigned)

    def workload(self, ref: Ref) -> Object:
        """A workload in its present state.

        Raises:
            RolloutFailed: it was deleted.
        """
        if workload := self._find(ref):
            return workload
        raise deleted_error(ref)

    def selector_of(self, ref: Ref, *, may_be_gone: bool) -> Object:
        """The selector of a workload's pods; of a Job that may be gone, by the label that its controller sets.

        Raises:
            RolloutFailed: it was deleted, and may not be gone.
        """
        if may_be_gone and self._find(ref) is None:
            return {"matchLabels": {_JOB_NAME: ref.name}}
        selector: Object = (self.workload(ref).get("spec") or {}).get("selector") or {}
        return selector

    def events_of(self, ref: Ref) -> list[Object]:
        """The events about an object of this kind and name, also of one that is gone."""
        events = self._objects("Event", ref)
        return [event for event in events if _is_about(event, ref)]

    def _find(self, ref: Ref) -> Object | None:
        return next((item for item in self._objects(ref.kind, ref) if item["metadata"]["name"] == ref.name), None)

    def _objects(self, kind: str, beside: Ref) -> Iterable[Object]:
        """All objects of a kind in the namespace of `beside`."""
        objects: dict[str, Object] = {}  # by uid: two queries may select the same object
        for informer in self._informers:
            if (informer.query.kind.kind, informer.query.namespace) == (kind, beside.namespace):
                objects |= informer.objects
        return objects.values()

    # --- changes -----------------------------------------------------------------------------------------------------

    def raise_errors(self) -> None:
        """Raise the error that ended an informer."""
        for task in self._tasks:
            if task.done():
                task.result()

    def mark_changed(self, watched: WatchedWorkload) -> None:
        """Have a workload assessed again, for a change that no informer sees."""
        watched.stale = True
        self._changed.set()

    async def wait_for_change(self, seconds: float) -> None:
        """Return when something has changed, or after `seconds`."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()
        self._changed.clear()

    async def refresh(self) -> None:
        """List everything again, so that no final verdict rests on a watch that hangs."""
        await asyncio.gather(*map(_refresh, self._informers))

    def _on_change(self, item: Object | None) -> None:
        for watched in self.workloads:
            watched.stale = watched.stale or item is None or watched.is_affected_by(item)
        if item is None or item["kind"] == "Service":
            self._services_by_workload.clear()
        self._changed.set()

    # --- start and end -----------------------------------------------------------------------------------------------

    async def start(self, cluster: Cluster, queries: Sequence[Query], keep: Callable[[Object], bool]) -> None:
        """Start informers for these queries; returns when each has listed its objects."""
        informers = [Informer(cluster, query, on_change=self._on_change, keep=keep) for query in queries]
        await asyncio.gather(*(informer.refresh() for informer in informers))
        self._informers += informers
        self._tasks += [asyncio.create_task(self._run(informer)) for informer in informers]

    async def _run(self, informer: Informer) -> None:
        try:
            await informer.run()
        finally:
            self._changed.set()  # so that the error is raised soon

    async def stop(self) -> None:
        """Stop all informers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _is_about(event: Object, ref: Ref) -> bool:
    involved = event["involvedObject"]
    return (involved.get("kind"), involved.get("name")) == (ref.kind, ref.name)


async def _refresh(informer: Informer) -> None:
    # a server that starts may refuse what it allowed before: then the copy stays as it is
    with suppress(Forbidden):
        await informer.refresh()


@asynccontextmanager
async def run_informers(
    cluster: Cluster, refs: Sequence[Ref], services: Sequence[Ref], temporary: frozenset[Ref] = frozenset()
) -> AsyncIterator[Informers]:
    """Informers for the workloads `refs` and for the Services in front of them, while the block runs.

    Args:
        cluster: where they run.
        refs: the workloads.
        services: the Services.
        temporary: the Jobs among the workloads that may be gone already.

    Raises:
        RolloutFailed: one of the other workloads does not exist.
    """
    informers = Informers(services=frozenset(services))
    try:
        await informers.start(cluster, await _queries_by_name(cluster, refs), lambda _: True)
        informers.workloads = [
            WatchedWorkload(ref, informers.selector_of(ref, may_be_gone=ref in temporary)) for ref in refs
        ]
        queries = await _related_queries(cluster, informers.workloads) + await _service_queries(cluster, services)
        await informers.start(
            cluster, queries, lambda item: item["kind"] != "Event" or any(may_be_about(item, ref) for ref in refs)
        )
        yield informers
    finally:
        await informers.stop()


async def _queries_by_name(cluster: Cluster, refs: Sequence[Ref]) -> list[Query]:
    """Queries for objects by their names."""
    names_by_kind: dict[tuple[str, str, str], list[str]] = {}
    for ref in refs:
        names_by_kind.setdefault((ref.api_version, ref.kind, ref.namespace), []).append(ref.name)
    return [
        Query(await cluster.kind(api_version, kind), namespace, fields=fields)
        for (api_version, kind, namespace), names in names_by_kind.items()
        for fields in name_queries(names)
    ]


async def _related_queries(cluster: Cluster, workloads: Sequence[WatchedWorkload]) -> list[Query]:
    """Queries for the pods and revisions of workloads, and for events about them."""
    selectors_by_kind: dict[tuple[str, str, str], list[Object]] = {}
    for watched in workloads:
        kind, namespace = watched.ref.kind, watched.ref.namespace
        if kind in WORKLOAD_KINDS:
            selectors_by_kind.setdefault(("v1", "Pod", namespace), []).append(watched.selector)
        if kind in WATCHED_KINDS:
            selectors_by_kind.setdefault(("v1", "Event", namespace), [])  # events have no labels
        if kind in REVISION_KINDS:
            selectors_by_kind.setdefault(("apps/v1", REVISION_KINDS[kind], namespace), []).append(watched.selector)
    without_routine = ",".join(f"reason!={reason}" for reason in ROUTINE_REASONS)
    return [
        Query(await cluster.kind(api_version, kind), namespace, labels, without_routine if kind == "Event" else "")
        for (api_version, kind, namespace), selectors in selectors_by_kind.items()
        for labels in covering_queries(selectors) or ("",)
    ]


async def _service_queries(cluster: Cluster, services: Sequence[Ref]) -> list[Query]:
    """Queries for Services and for their EndpointSlices."""
    if not services:
        return []
    queries = await _queries_by_name(cluster, services)
    slice_kind = await cluster.kind("discovery.k8s.io/v1", "EndpointSlice")
    for namespace in sorted({service.namespace for service in services}):
        names = sorted({service.name for service in services if service.namespace == namespace})
        queries.append(Query(slice_kind, namespace, f"{SERVICE_NAME_LABEL} in ({','.join(names)})"))
    return queries


def deleted_error(ref: Ref) -> RolloutFailed:
    """The error about a workload that does not exist, or no longer."""
    return RolloutFailed(
        "it does not exist any more",
        where=f"{ref} in {ref.namespace}",
        hint="a user or a controller deleted it during the rollout",
    )


__all__ = ["Informers", "deleted_error", "run_informers"]
