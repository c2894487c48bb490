"""How a rollout stands, in one sentence: what is reached, what is missing, and how long it is still given."""

from collections.abc import Sequence

from prefect_cd.kube.objects import Object, as_text, created_at, dig, kind_and_name
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.progress import Progress
from prefect_cd.rollout.diagnosis.cause import Cause
from prefect_cd.rollout.diagnosis.container import containers, is_ready


def progress_message(
    progress: Progress, causes: Sequence[Cause], pods: Sequence[Object], unsettled: Sequence[Object], clock: Clock
) -> str:
    """The sentence of a rollout that goes on; the first of the causes with its countdown."""
    if progress.held:
        return progress.sentence
    if causes:
        return f"{progress.sentence}; {causes[0].summary}{clock.countdown(causes[0])}"
    late = [pod for pod in pods if not is_ready(pod)] or list(unsettled)
    if not late:
        return progress.sentence
    age = round(clock.elapsed(created_at(late[0])).total_seconds())
    return f"{progress.sentence}; waiting for {kind_and_name(late[0])} ({_state(late[0])}, {age} s)"


def _state(pod: Object) -> str:
    for container in containers(pod):
        if container.init and container.running:
            return f"init container {container.name} runs"
        if reason := as_text(container.waiting.get("reason")):
            return reason
    if is_ready(pod):
        return "just started"
    return (
        "not ready" if dig(pod, "status", "phase") == "Running" else as_text(dig(pod, "status", "phase")) or "Pending"
    )
