"""The kinds of workloads: where each says how far it is, and which of its pods are the new ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from prefect_cd.kube.objects import Object, as_text, created_at
from prefect_cd.rollout.assess import progress as account
from prefect_cd.rollout.assess.creation import job_retries
from prefect_cd.rollout.assess.model import Observation
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.progress import Progress
from prefect_cd.rollout.assess.revisions import Revision, all_pods, newest_daemons, newest_replica_set, updated_set
from prefect_cd.rollout.diagnosis.cause import Cause


def _as_it_is(cause: Cause, _: Object) -> Cause:
    return cause


def _of_workload(read: Callable[[Object, int], Progress]) -> Callable[[Observation, int, Clock], Progress]:
    return lambda observation, ready_pods, _: read(observation.workload, ready_pods)


def _of_anything(observation: Observation, _: int, clock: Clock) -> Progress:
    """A thing of seconds ago that has no status yet may still get one."""
    workload = observation.workload
    progress, made = account.anything(workload, 0), created_at(workload)
    young = made is not None and clock.fresh(made) and clock.elapsed(made) < clock.patience.settle
    return replace(progress, done=False, ready=0) if young and not workload.get("status") else progress


@dataclass(frozen=True)
class Kind:
    """How one kind is read.

    Args:
        progress: from an observation and the number of ready new pods to the workload's own account.
        newest: who creates the new pods, and which they are.
        weigh: what a trouble of a pod means for the whole.
    """

    progress: Callable[[Observation, int, Clock], Progress]
    newest: Callable[[Observation], Revision]
    weigh: Callable[[Cause, Object], Cause] = _as_it_is


_KINDS = {
    "Deployment": Kind(_of_workload(account.deployment), newest_replica_set),
    "StatefulSet": Kind(_of_workload(account.stateful_set), updated_set),
    "DaemonSet": Kind(_of_workload(account.daemon_set), newest_daemons),
    "Job": Kind(_of_workload(account.job), all_pods, job_retries),
}
_GROUPS = ("apps", "batch")  # a Job of another group is another thing
_ANYTHING = Kind(_of_anything, all_pods)


def kind_of(workload: Object) -> Kind:
    """How to read a workload; kinds never heard of are read by their conditions."""
    group, slash, _ = (as_text(workload.get("apiVersion")) or "apps/v1").partition("/")
    return _KINDS.get(as_text(workload.get("kind")), _ANYTHING) if slash and group in _GROUPS else _ANYTHING
