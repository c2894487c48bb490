"""The kinds of workloads: how each one's status is read, and which of its pods are new."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from prefect_cd.kube.objects import Object, as_text, created_at
from prefect_cd.rollout.assess.creation import count_job_retries
from prefect_cd.rollout.assess.model import Observation
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.progress import (
    Progress,
    daemon_set_progress,
    deployment_progress,
    job_progress,
    object_progress,
    pod_progress,
    stateful_set_progress,
)
from prefect_cd.rollout.assess.revisions import (
    Revision,
    daemon_set_revision,
    deployment_revision,
    only_revision,
    stateful_set_revision,
)
from prefect_cd.rollout.diagnosis.cause import Cause


def _unchanged(cause: Cause, _: Object) -> Cause:
    return cause


def _from_workload(read: Callable[[Object, int], Progress]) -> Callable[[Observation, int, Clock], Progress]:
    return lambda observation, ready_pods, _: read(observation.workload, ready_pods)


def _other_progress(observation: Observation, _: int, clock: Clock) -> Progress:
    """The progress of any other object; one that was just created may still get a status from its controller."""
    workload = observation.workload
    progress, created = object_progress(workload), created_at(workload)
    is_new = created is not None and clock.in_rollout(created) and clock.elapsed(created) < clock.patience.min_uptime
    return replace(progress, complete=False, ready=0) if is_new and not workload.get("status") else progress


@dataclass(frozen=True)
class Kind:
    """How one kind of workload is read.

    Args:
        progress: the progress by the workload's own status; its second parameter is the number of ready new pods.
        new_revision: the new revision and its pods.
        adjust: what a problem of a pod means for the whole workload.
    """

    progress: Callable[[Observation, int, Clock], Progress]
    new_revision: Callable[[Observation], Revision]
    adjust: Callable[[Cause, Object], Cause] = _unchanged


_KINDS = {
    "Deployment": Kind(_from_workload(deployment_progress), deployment_revision),
    "StatefulSet": Kind(_from_workload(stateful_set_progress), stateful_set_revision),
    "DaemonSet": Kind(_from_workload(daemon_set_progress), daemon_set_revision),
    "Job": Kind(_from_workload(job_progress), only_revision, count_job_retries),
}
_GROUPS = ("apps", "batch")
"""A Job of another API group (for example Volcano's) has another status."""
_POD = Kind(_from_workload(pod_progress), only_revision)
_OTHER = Kind(_other_progress, only_revision)


def kind_of(workload: Object) -> Kind:
    """How to read a workload; kinds that are not built in are read by their conditions."""
    group, slash, _ = (as_text(workload.get("apiVersion")) or "apps/v1").partition("/")
    if not slash or group not in _GROUPS:
        return _POD if (group, workload.get("kind")) == ("v1", "Pod") else _OTHER
    return _KINDS.get(as_text(workload.get("kind")), _OTHER)
