"""Explains why a rollout does not complete, and what to do about it.

From objects and events alone, this package decides which known problem exists, whether it is permanent or may pass, and
which text from the cluster proves it. It does not know the time, the patience settings, or the rollout as a whole: that
is `prefect_cd.rollout.assess`. Each module answers one question, with its table of rules at the top:

- `admission`: may the pods, or the ReplicaSet, be created?
- `scheduling`: is there a node, and can it set the pod up?
- `image_pull`: can the image be pulled?
- `startup`: can the container be created and started?
- `probes`: do the probes succeed?
- `termination`: why did a run of a container end?
- `services`: do requests to a Service reach the pods?
"""

from collections.abc import Callable, Mapping, Sequence

from prefect_cd.kube.objects import Object, as_time, dig, events_about
from prefect_cd.rollout.diagnosis.admission import pod_creation_problem, replica_set_creation_problem
from prefect_cd.rollout.diagnosis.cause import ADMISSION_DRY_RUN, Category, Cause
from prefect_cd.rollout.diagnosis.container import Container, containers, is_disrupted
from prefect_cd.rollout.diagnosis.image_pull import image_pull_problem
from prefect_cd.rollout.diagnosis.port_result import PortResult
from prefect_cd.rollout.diagnosis.probes import probe_problem, readiness_gate_problem
from prefect_cd.rollout.diagnosis.scheduling import (
    mount_problem,
    node_rejection_problem,
    rejected_pods,
    sandbox_problem,
    scheduling_problem,
    storage_limit_problem,
)
from prefect_cd.rollout.diagnosis.services import endpoint_problem, selector_problem
from prefect_cd.rollout.diagnosis.startup import startup_problem
from prefect_cd.rollout.diagnosis.termination import termination_problem


def diagnose(pod: Object, events: Sequence[Object], logs: Mapping[str, str] | None = None) -> tuple[Cause, ...]:
    """Find what keeps a pod from becoming ready, or made it crash.

    Args:
        pod: as read from the API.
        events: any events, in any order; those about other objects are ignored.
        logs: by container: the last lines of the run that ended, where they have been read.

    Returns:
        The causes of the pod itself, and for each container why it does not run or has crashed, and why it is not
        ready. Empty for a pod that is fine, is still starting, or was disrupted by the cluster.
    """
    if is_disrupted(pod) or dig(pod, "status", "phase") == "Succeeded":
        return ()
    pod_events = events_about(pod, events)
    causes = [cause for find_problem in _POD_CHECKS if (cause := find_problem(pod, pod_events))]
    for container in containers(pod):
        log = (logs or {}).get(container.name, "")
        # One cause per container that does not run: an image that cannot be pulled now matters more than an old crash.
        not_running = (
            image_pull_problem(container, pod_events)
            or startup_problem(container, pod_events)
            or termination_problem(container, pod_events, log)
        )
        causes += [cause for cause in (not_running, probe_problem(container, pod_events)) if cause]
    return tuple(causes)


_POD_CHECKS: tuple[Callable[[Object, Sequence[Object]], Cause | None], ...] = (
    scheduling_problem,
    mount_problem,
    sandbox_problem,
    readiness_gate_problem,
)

__all__ = [
    "ADMISSION_DRY_RUN",
    "Category",
    "Cause",
    "Container",
    "PortResult",
    "as_time",
    "containers",
    "diagnose",
    "endpoint_problem",
    "is_disrupted",
    "node_rejection_problem",
    "pod_creation_problem",
    "rejected_pods",
    "replica_set_creation_problem",
    "selector_problem",
    "storage_limit_problem",
]
