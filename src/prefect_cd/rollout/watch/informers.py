"""What can be seen of some workloads: mirrors of everything that belongs to them, and one observation of each.

Decides what is worth watching, so that the cost follows the workloads that were asked for and not their neighbours:
pods and revisions by the workloads' own selectors, Services and EndpointSlices by name, and of a namespace's events
neither what every healthy pod emits nor what is about others. It judges nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

from prefect_cd.errors import Forbidden, RolloutFailed
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.informer import Informer, Query
from prefect_cd.kube.objects import SERVICE_NAME_LABEL, Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import covering_queries, matches, name_queries
from prefect_cd.rollout.assess import Observation
from prefect_cd.rollout.watch.related import (
    REVISIONS,
    ROUTINE_REASONS,
    WATCHED,
    WatchedWorkload,
    assign_services,
    is_about,
    labels_of,
    owned,
)


@dataclass
class Informers:
    """Everything that is mirrored of some workloads in one cluster."""

    subjects: list[WatchedWorkload] = field(default_factory=list)
    services: frozenset[Ref] = frozenset()
    """The Services that are judged; a mirror may show their neighbours, too."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _assigned: dict[str, dict[str, list[Object]]] = field(default_factory=dict)
    """Services by namespace and workload, until one of them changes."""
    _mirrors: list[Informer] = field(default_factory=list)
    _following: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def lost_since(self) -> datetime | None:
        """Since when a part of it is not up to date; None when we are in touch."""
        return min((each.lost_since for each in self._mirrors if each.lost_since), default=None)

    def observe(self, subject: WatchedWorkload) -> Observation:
        """What is known of one workload now.

        Raises:
            RolloutFailed: it was deleted.
        """
        ref, subject.stale = subject.ref, False
        workload = self.workload(ref)
        if ref.kind not in WATCHED:
            return Observation(workload)
        pods = [each for each in self._of("Pod", ref) if matches(subject.selector, labels_of(each))]
        uid = workload["metadata"]["uid"]
        revisions = [each for each in self._of(REVISIONS.get(ref.kind, ""), ref) if owned(each, uid)]
        uids = {each["metadata"]["uid"] for each in (workload, *revisions, *pods)}
        events = [each for each in self._of("Event", ref) if each["involvedObject"].get("uid") in uids]
        services = self._services(subject)
        slices = [
            each
            for each in self._of("EndpointSlice", ref)
            if labels_of(each).get(SERVICE_NAME_LABEL) in subject.services
        ]
        return Observation(
            workload,
            tuple(revisions),
            tuple(pods),
            tuple(events),
            services=services,
            endpoints=tuple(slices),
            present=subject.present,
        )

    def _services(self, subject: WatchedWorkload) -> tuple[Object, ...]:
        """The Services that are judged with a workload; their names are kept, to know later changes by."""
        namespace = subject.ref.namespace
        if namespace not in self._assigned:
            refs = [each.ref for each in self.subjects if each.ref.namespace == namespace]
            neighbours = [found for ref in refs if (found := self._found(ref))]
            judged = [each for each in self._of("Service", subject.ref) if Ref.of(each) in self.services]
            self._assigned[namespace] = assign_services(judged, neighbours)
        mine = self._assigned[namespace].get(str(subject.ref), [])
        subject.services = frozenset(each["metadata"]["name"] for each in mine)
        return tuple(mine)

    def workload(self, ref: Ref) -> Object:
        """A workload as it is now.

        Raises:
            RolloutFailed: it was deleted.
        """
        if found := self._found(ref):
            return found
        raise deleted(ref)

    def _found(self, ref: Ref) -> Object | None:
        return next((each for each in self._of(ref.kind, ref) if each["metadata"]["name"] == ref.name), None)

    def check(self) -> None:
        """Raise what has ended a mirror."""
        for task in self._following:
            if task.done():
                task.result()

    def tell(self, subject: WatchedWorkload) -> None:
        """Wake who waits, for something about this workload is known that no mirror shows."""
        subject.stale = True
        self.changed.set()

    async def wait(self, seconds: float) -> None:
        """Until something changes, or for so long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.changed.wait(), seconds)
        self.changed.clear()

    async def look(self) -> None:
        """List everything anew, so that no final word rests on a watch that hangs.

        What could be read once and is refused now stays as it is known: a server that starts does so for a moment.
        """

        async def anew(mirror: Informer) -> None:
            with suppress(Forbidden):
                await mirror.look()

        await asyncio.gather(*map(anew, self._mirrors))

    def _of(self, kind: str, ref: Ref) -> Iterable[Object]:
        found: dict[str, Object] = {}  # two queries may select the same object
        for mirror in self._mirrors:
            if (mirror.query.kind.kind, mirror.query.namespace) == (kind, ref.namespace):
                found |= mirror.objects
        return found.values()

    def _told(self, item: Object | None) -> None:
        for subject in self.subjects:
            subject.stale = subject.stale or item is None or subject.concerns(item)
        if item is None or item["kind"] == "Service":
            self._assigned.clear()
        self.changed.set()

    async def add(self, cluster: Cluster, queries: Sequence[Query], keep: Callable[[Object], bool]) -> None:
        """Mirror these queries, too; returns when everything was listed once."""
        mirrors = [Informer(cluster, query, told=self._told, keep=keep) for query in queries]
        await asyncio.gather(*(each.look() for each in mirrors))
        self._mirrors += mirrors
        self._following += [asyncio.create_task(self._follow(each)) for each in mirrors]

    async def _follow(self, mirror: Informer) -> None:
        try:
            await mirror.follow()
        finally:
            self.changed.set()

    async def close(self) -> None:
        """End all mirrors."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)


@asynccontextmanager
async def run_informers(cluster: Cluster, refs: Sequence[Ref], services: Sequence[Ref]) -> AsyncIterator[Informers]:
    """What there is of the workloads `refs` and the Services in front of them, kept up to date while the block runs.

    Raises:
        RolloutFailed: one of the workloads does not exist.
    """
    sight = Informers(services=frozenset(services))
    try:
        await sight.add(cluster, await _named(cluster, refs), lambda _: True)
        sight.subjects = [
            WatchedWorkload(ref, (sight.workload(ref).get("spec") or {}).get("selector") or {}) for ref in refs
        ]
        queries = await _belongings(cluster, sight.subjects) + await _fronts(cluster, services)
        await sight.add(
            cluster, queries, lambda item: item["kind"] != "Event" or any(is_about(item, ref) for ref in refs)
        )
        yield sight
    finally:
        await sight.close()


async def _named(cluster: Cluster, refs: Sequence[Ref]) -> list[Query]:
    """Queries for objects by their names."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for ref in refs:
        alike.setdefault((ref.api_version, ref.kind, ref.namespace), []).append(ref.name)
    return [
        Query(await cluster.kind(api_version, kind), namespace, fields=fields)
        for (api_version, kind, namespace), names in alike.items()
        for fields in name_queries(names)
    ]


async def _belongings(cluster: Cluster, subjects: Sequence[WatchedWorkload]) -> list[Query]:
    """Queries for the pods and revisions of workloads, and for what is said about them."""
    alike: dict[tuple[str, str, str], list[Object]] = {}
    for subject in subjects:
        kind, namespace = subject.ref.kind, subject.ref.namespace
        if kind in WATCHED:
            alike.setdefault(("v1", "Pod", namespace), []).append(subject.selector)
            alike.setdefault(("v1", "Event", namespace), [])
        if kind in REVISIONS:
            alike.setdefault(("apps/v1", REVISIONS[kind], namespace), []).append(subject.selector)
    telling = ",".join(f"reason!={reason}" for reason in ROUTINE_REASONS)
    return [
        Query(await cluster.kind(api_version, kind), namespace, labels, telling if kind == "Event" else "")
        for (api_version, kind, namespace), selectors in alike.items()
        for labels in covering_queries(selectors) or ("",)
    ]


async def _fronts(cluster: Cluster, services: Sequence[Ref]) -> list[Query]:
    """Queries for Services and for where they lead."""
    slices = await cluster.kind("discovery.k8s.io/v1", "EndpointSlice") if services else None
    found = await _named(cluster, services)
    for namespace in sorted({each.namespace for each in services}):
        names = sorted({each.name for each in services if each.namespace == namespace})
        found += [Query(slices, namespace, f"{SERVICE_NAME_LABEL} in ({','.join(names)})")] if slices else []
    return found


def deleted(ref: Ref) -> RolloutFailed:
    """What a workload is that is not there."""
    return RolloutFailed("it is gone", where=f"{ref} in {ref.namespace}", hint="somebody deleted it during the rollout")


__all__ = ["Informers", "deleted", "run_informers"]
