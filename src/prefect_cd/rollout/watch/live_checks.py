"""What no watch tells of a rollout, asked for: whether somebody listens, and whether what is missing came meanwhile.

Decides when to ask. Ports are knocked at once when all is complete, again while one is closed, and before the final
word; what is missing is asked for before doom, for a node or a controller may try again only after that. What the
answers mean is for `rollout` to say.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from prefect_cd.errors import DeliveryError
from prefect_cd.kube.client import Cluster
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.responses import ApiError
from prefect_cd.rollout.assess import Phase, PortResult, Verdict
from prefect_cd.rollout.diagnosis import ADMISSION_DRY_RUN
from prefect_cd.rollout.watch.informers import Informers
from prefect_cd.rollout.watch.port_check import MAX_CONCURRENT, check_ports, keep_first_refusal
from prefect_cd.rollout.watch.related import WatchedWorkload

_KNOCK_SECONDS = 3.0
_MISSED = {
    "configmap": "ConfigMap",
    "secret": "Secret",
    "serviceaccount": "ServiceAccount",
    "persistentvolumeclaim": "PersistentVolumeClaim",
}
"""What pods wait for when it is missing."""
_ANSWER_SECONDS = 1.5
"""A webhook may keep the server waiting, and the verdict is due."""
_NAME_LENGTH = 200


@dataclass
class LiveChecks:
    """The questions about what a sight shows, and the answers so far."""

    cluster: Cluster
    sight: Informers
    knocks: dict[Ref, tuple[PortResult, ...]] = field(default_factory=dict)
    """What the last knocks at each workload's Services found."""
    _knocked: float | None = None

    def wants_to_knock(self, *, complete: bool) -> bool:
        """Whether it is time to see who listens: once when all is complete, and again while a port is closed."""
        if self._knocked is None:
            return complete and self.may_knock
        closed = any(not each.open for told in self.knocks.values() for each in told)
        return closed and self.may_knock

    @property
    def may_knock(self) -> bool:
        """Whether there is a door, and the last knock is some time ago."""
        just = self._knocked is not None and time.monotonic() - self._knocked < _KNOCK_SECONDS
        return not just and any(subject.services for subject in self.sight.subjects)

    async def knock(self) -> None:
        """See who listens where the Services lead, at the pods of each workload by itself."""
        slots = asyncio.Semaphore(MAX_CONCURRENT)
        subjects = [subject for subject in self.sight.subjects if subject.services]
        told = await asyncio.gather(*(self._knock(subject, slots) for subject in subjects))
        self.knocks = {subject.ref: knocks for subject, knocks in zip(subjects, told, strict=True)}
        self._knocked = time.monotonic()
        for subject in subjects:
            self.sight.tell(subject)

    async def _knock(self, subject: WatchedWorkload, slots: asyncio.Semaphore) -> tuple[PortResult, ...]:
        seen = self.sight.observe(subject)
        told = await check_ports(self.cluster, seen.services, seen.endpoints, seen.pods, slots)
        return keep_first_refusal(told, self.knocks.get(subject.ref, ()))

    async def found_missing(self, verdicts: Mapping[Ref, Verdict]) -> bool:
        """Whether something is there by now that a doomed workload waits for."""
        asked = [
            (subject, cause.missing)
            for subject in self.sight.subjects
            if verdicts[subject.ref].phase is Phase.FAILED
            for cause in verdicts[subject.ref].causes
            if cause.missing and not cause.proven and cause.missing not in subject.present
        ]
        there = await asyncio.gather(*(self._is_there(subject, what) for subject, what in asked))
        for (subject, what), found in zip(asked, there, strict=True):
            if found:
                subject.present |= {what}
                self.sight.tell(subject)
        return any(there)

    async def _is_there(self, subject: WatchedWorkload, what: str) -> bool:
        if what.startswith(f"{ADMISSION_DRY_RUN}/"):
            return await _admitted(self.cluster, self.sight.workload(subject.ref))
        return await _exists(self.cluster, what, subject.ref.namespace)


async def _exists(cluster: Cluster, what: str, namespace: str) -> bool:
    """Whether `configmap/NAME` or the like is there; what we may not read is not."""
    kind, _, name = what.partition("/")
    try:
        return await cluster.get(Ref("v1", _MISSED[kind], namespace, name)) is not None
    except (DeliveryError, ApiError, KeyError):
        return False


async def _admitted(cluster: Cluster, workload: Object) -> bool:
    """Whether a pod of this workload's template would be let in now; a server that takes its time for it says no."""
    metadata, template = workload["metadata"], workload["spec"]["template"]
    name = {"name": f"{metadata['name'][:_NAME_LENGTH]}-prefect-cd-dry-run", "namespace": metadata["namespace"]}
    claims = [each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates") or []]
    claimed = [{"name": each, "persistentVolumeClaim": {"claimName": each}} for each in claims]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**(template.get("metadata") or {}), **name},
        "spec": {**template["spec"], "volumes": [*(template["spec"].get("volumes") or []), *claimed]},
    }
    try:
        await asyncio.wait_for(cluster.create(pod, dry_run=True), _ANSWER_SECONDS)
    except (DeliveryError, ApiError, asyncio.TimeoutError):
        return False
    return True


__all__ = ["LiveChecks"]
