"""Why a rollout will not come up, and what to do about it.

Decides, from objects and events alone, which known trouble there is, whether that is proven or may still heal, and
which words of the cluster show it. It refuses to know the time, how patient to be, and what a rollout is: that is
`prefect_cd.rollout`. One file, one question: `pulling`, `starting`, `ending`, `probing`, `placing`, `admission` and
`serving`.
"""

from collections.abc import Callable, Mapping, Sequence

from prefect_cd.kube.objects import Object, as_time, dig, events_about
from prefect_cd.rollout.diagnosis.admission import refusal, unreplicated
from prefect_cd.rollout.diagnosis.cause import ADMISSION_DRY_RUN, Category, Cause
from prefect_cd.rollout.diagnosis.container import Container, containers, is_disrupted
from prefect_cd.rollout.diagnosis.image_pull import unpulled
from prefect_cd.rollout.diagnosis.port_result import PortResult
from prefect_cd.rollout.diagnosis.probes import ungated, unhealthy
from prefect_cd.rollout.diagnosis.scheduling import overfull, refused, turned_away, unmounted, unsandboxed, unscheduled
from prefect_cd.rollout.diagnosis.services import unselected, unserved
from prefect_cd.rollout.diagnosis.startup import unstarted
from prefect_cd.rollout.diagnosis.termination import crashed


def diagnose(pod: Object, events: Sequence[Object], logs: Mapping[str, str] | None = None) -> tuple[Cause, ...]:
    """What keeps a pod from coming up, or has made it crash.

    Args:
        pod: as read from the API.
        events: any events, in any order; those about other objects are ignored.
        logs: by container: the last lines of the run that ended, where somebody has read them.

    Returns:
        The causes of the pod itself, and for each container why it does not run, or has crashed, and why it is not
        ready; nothing for a pod that is fine, is merely starting, or goes for reasons that are not its own.
    """
    if is_disrupted(pod) or dig(pod, "status", "phase") == "Succeeded":
        return ()
    mine = events_about(pod, events)
    found = [cause for rule in _POD_RULES if (cause := rule(pod, mine))]
    for container in containers(pod):
        ended = crashed(container, mine, (logs or {}).get(container.name, ""))
        held_up = unpulled(container, mine) or unstarted(container, mine) or ended
        found += [cause for cause in (held_up, unhealthy(container, mine)) if cause]
    return tuple(found)


_POD_RULES: tuple[Callable[[Object, Sequence[Object]], Cause | None], ...] = (
    unscheduled,
    unmounted,
    unsandboxed,
    ungated,
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
    "is_disrupted",
    "overfull",
    "refusal",
    "refused",
    "turned_away",
    "unreplicated",
    "unselected",
    "unserved",
]
