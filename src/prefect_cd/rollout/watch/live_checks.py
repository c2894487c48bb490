"""What no watch shows of a rollout: whether the Services' ports are open, and whether missing objects exist by now.

Decides when to check. Ports are checked once all workloads are complete, again while one is closed, and before the
verdict is final. Missing objects are looked up before a rollout fails, because a node or a controller may retry only
later. What the results mean is decided in `rollout.assess`.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio

from prefect_cd.errors import DeliveryError
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.manifests.pod_templates import dry_run_pod
from prefect_cd.rollout.assess import Phase, PortResult, Verdict
from prefect_cd.rollout.diagnosis import ADMISSION_DRY_RUN
from prefect_cd.rollout.watch.informers import Informers
from prefect_cd.rollout.watch.port_check import MAX_CONCURRENT, check_ports, keep_first_refusal
from prefect_cd.rollout.watch.related import WatchedWorkload

_PORT_CHECK_INTERVAL_SECONDS = 3.0
_KINDS = {
    "configmap": "ConfigMap",
    "secret": "Secret",
    "serviceaccount": "ServiceAccount",
    "persistentvolumeclaim": "PersistentVolumeClaim",
}
"""Kinds of objects that pods may be missing, by the name that causes have for them."""
_DRY_RUN_SECONDS = 1.5
"""A webhook may delay the answer, and the verdict is due."""


@dataclass
class LiveChecks:
    """The checks of some workloads, and their results.

    Args:
        cluster: where they run.
        informers: their informers.
        port_results: the latest results by workload.
    """

    cluster: Cluster
    informers: Informers
    port_results: dict[Ref, tuple[PortResult, ...]] = field(default_factory=dict)
    _ports_checked_at: float | None = None

    # --- ports -------------------------------------------------------------------------------------------------------

    def port_check_is_due(self, *, complete: bool) -> bool:
        """Whether to check the ports now: once all workloads are complete, and again while a port is closed."""
        if not self.can_check_ports:
            return False
        if self._ports_checked_at is None:
            return complete
        return any(not result.open for results in self.port_results.values() for result in results)

    @property
    def can_check_ports(self) -> bool:
        """Whether there is a Service, and the last port check is long enough ago."""
        if not any(watched.services for watched in self.informers.workloads):
            return False
        if self._ports_checked_at is None:
            return True
        return time.monotonic() - self._ports_checked_at >= _PORT_CHECK_INTERVAL_SECONDS

    async def check_ports(self) -> None:
        """Check the ports of the Services, at the pods of each workload separately."""
        slots = asyncio.Semaphore(MAX_CONCURRENT)
        workloads = [watched for watched in self.informers.workloads if watched.services]
        results = await asyncio.gather(*(self._check_ports_of(watched, slots) for watched in workloads))
        self.port_results = {watched.ref: result for watched, result in zip(workloads, results, strict=True)}
        self._ports_checked_at = time.monotonic()
        for watched in workloads:
            self.informers.mark_changed(watched)

    async def _check_ports_of(self, watched: WatchedWorkload, slots: asyncio.Semaphore) -> tuple[PortResult, ...]:
        observation = self.informers.observe(watched)
        results = await check_ports(self.cluster, observation.services, observation.endpoints, observation.pods, slots)
        return keep_first_refusal(results, self.port_results.get(watched.ref, ()))

    # --- missing objects ---------------------------------------------------------------------------------------------

    async def find_missing(self, verdicts: Mapping[Ref, Verdict]) -> bool:
        """Look up what failed workloads are missing; whether any of it exists by now."""
        missing = [
            (watched, cause.missing)
            for watched in self.informers.workloads
            if verdicts[watched.ref].phase is Phase.FAILED
            for cause in verdicts[watched.ref].causes
            if cause.missing and not cause.permanent and cause.missing not in watched.present
        ]
        results = await asyncio.gather(*(self._is_present(watched, name) for watched, name in missing))
        for (watched, name), is_present in zip(missing, results, strict=True):
            if is_present:
                watched.present |= {name}
                self.informers.mark_changed(watched)
        return any(results)

    async def _is_present(self, watched: WatchedWorkload, missing: str) -> bool:
        if missing.startswith(f"{ADMISSION_DRY_RUN}/"):
            return await _is_admitted(self.cluster, self.informers.workload(watched.ref))
        return await _exists(self.cluster, missing, watched.ref.namespace)


async def _exists(cluster: Cluster, kind_and_name: str, namespace: str) -> bool:
    """Whether `configmap/NAME` or the like exists; False when it cannot be read."""
    kind, _, name = kind_and_name.partition("/")
    try:
        return await cluster.get(Ref("v1", _KINDS[kind], namespace, name)) is not None
    except (DeliveryError, ApiError, KeyError):
        return False


async def _is_admitted(cluster: Cluster, workload: Object) -> bool:
    """Whether the server would admit a pod of this workload now; False when it does not answer soon."""
    pod = dry_run_pod(workload)
    if pod is None:
        return False
    try:
        with anyio.fail_after(_DRY_RUN_SECONDS):
            await cluster.create(pod, dry_run=True)
    except (DeliveryError, ApiError, TimeoutError):
        return False
    return True


__all__ = ["LiveChecks"]
