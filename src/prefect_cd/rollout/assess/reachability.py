"""Whether requests reach the pods: the Services that were applied with a workload.

Decides only once its pods are up, for until then an empty Service says nothing. A Service that selects none of the
workload's pods leads nowhere if it has no endpoints, but is not blamed for what was so before the rollout.
"""

from collections.abc import Sequence
from datetime import datetime

from prefect_cd.kube.objects import Object, as_int, as_objects, as_time, condition, created_at, dig
from prefect_cd.rollout.assess.model import Observation
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.revisions import sort_key
from prefect_cd.rollout.diagnosis.cause import Cause
from prefect_cd.rollout.diagnosis.services import answering, has_selector, matches, slices_of, unselected, unserved

_CHANGED = "endpoints.kubernetes.io/last-change-trigger-time"


def unreachable_services(observation: Observation, pods: Sequence[Object], clock: Clock) -> list[Cause]:
    """Why requests to the Services would find nobody, though all pods of the workload are up."""
    template = dig(observation.workload, "spec", "template") or {}
    labels = dig(template, "metadata", "labels")
    # webhooks add containers, which only the pods show
    bearers = [template, *pods]
    found: list[Cause | None] = []
    for service in sorted(observation.services, key=sort_key):
        since = _since(service, observation, pods)
        if matches(service, labels):
            found.append(unserved(service, observation.endpoints, bearers, observation.knocks, since=since))
        elif has_selector(service) and not answering(service, observation.endpoints):
            blamed = not _was_empty(service, observation, clock)
            found.append(unselected(service, observation.endpoints, since=since) if blamed else None)
    return [cause for cause in found if cause]


def _since(service: Object, observation: Observation, pods: Sequence[Object]) -> datetime | None:
    """From when on it should lead somewhere: the pods ready, the Service there, and its endpoints as they are now."""
    times = [as_time(condition(pod, "Ready").get("lastTransitionTime")) for pod in pods]
    changed = [dig(each, "metadata", "annotations", _CHANGED) for each in slices_of(service, observation.endpoints)]
    return max(filter(None, [*times, created_at(service), *map(as_time, changed)]), default=None)


def _was_empty(service: Object, observation: Observation, clock: Clock) -> bool:
    """Whether the Service was there before the rollout, with endpoints that have never been others than none."""
    made = created_at(service)
    if made is None or clock.fresh(made):
        return False
    mine = slices_of(service, observation.endpoints)
    return all(
        as_int(dig(each, "metadata", "generation")) <= 1 and not as_objects(each.get("endpoints")) for each in mine
    )
