"""Whether requests reach the pods, by the Services that were applied with a workload.

Checked only once the pods are ready, since until then a Service without endpoints is normal. A Service that selects
none of the workload's pods is a problem if it has no endpoints, unless it had none before the rollout.
"""

from collections.abc import Sequence
from datetime import datetime

from prefect_cd.kube.objects import Object, as_int, as_objects, as_time, condition, created_at, dig, template_of
from prefect_cd.kube.selectors import has_selector, service_selects
from prefect_cd.rollout.assess.model import Observation
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.revisions import sort_key
from prefect_cd.rollout.diagnosis.cause import Cause
from prefect_cd.rollout.diagnosis.services import (
    all_ports_served,
    endpoint_problem,
    selector_problem,
    slices_of,
)

_CHANGED = "endpoints.kubernetes.io/last-change-trigger-time"
"""Annotation of an EndpointSlice: when the change of pods or Service happened that it reflects."""


def unreachable_services(observation: Observation, pods: Sequence[Object], clock: Clock) -> list[Cause]:
    """Why requests to the Services would reach no pod, although all pods of the workload are ready."""
    template = template_of(observation.workload)
    labels = dig(template, "metadata", "labels")
    template_and_pods = [template, *pods]  # webhooks may add containers, which only the pods show
    causes: list[Cause | None] = []
    for service in sorted(observation.services, key=sort_key):
        since = _expected_since(service, observation, pods)
        endpoints = observation.endpoints
        if service_selects(service, labels):
            cause = endpoint_problem(service, endpoints, template_and_pods, observation.port_results, since=since)
            causes.append(cause)
            continue
        leads_nowhere = has_selector(service) and not all_ports_served(service, endpoints)
        if leads_nowhere and not _was_empty_before(service, observation, clock):
            causes.append(selector_problem(service, endpoints, since=since))
    return [cause for cause in causes if cause]


def _expected_since(service: Object, observation: Observation, pods: Sequence[Object]) -> datetime | None:
    """Since when the Service should have endpoints: it exists, the pods are ready, and the slices last changed."""
    ready_times = [as_time(condition(pod, "Ready").get("lastTransitionTime")) for pod in pods]
    slices = slices_of(service, observation.endpoints)
    change_times = [as_time(dig(item, "metadata", "annotations", _CHANGED)) for item in slices]
    return max(filter(None, [*ready_times, created_at(service), *change_times]), default=None)


def _was_empty_before(service: Object, observation: Observation, clock: Clock) -> bool:
    """Whether the Service is older than the rollout and its slices have never had endpoints."""
    created = created_at(service)
    if created is None or clock.in_rollout(created):
        return False
    # The API server raises an object's generation with every change of what it specifies; 1 means never changed.
    return all(
        as_int(dig(item, "metadata", "generation")) <= 1 and not as_objects(item.get("endpoints"))
        for item in slices_of(service, observation.endpoints)
    )
