"""How a rollout stands, in one sentence: what is reached, what is missing, and how long it is still given."""

from collections.abc import Sequence

from prefect_cd.diagnosis.cause import Cause
from prefect_cd.diagnosis.container import containers, ready
from prefect_cd.diagnosis.reading import born, dig, name_of, words
from prefect_cd.release import Object
from prefect_cd.rollout.progress import Progress
from prefect_cd.rollout.weighing import Clock


def story(
    progress: Progress, causes: Sequence[Cause], pods: Sequence[Object], unsettled: Sequence[Object], clock: Clock
) -> str:
    """The sentence of a rollout that goes on; the first of the causes with its countdown."""
    if progress.held:
        return progress.sentence
    if causes:
        return f"{progress.sentence}; {causes[0].summary}{clock.countdown(causes[0])}"
    late = [pod for pod in pods if not ready(pod)] or list(unsettled)
    if not late:
        return progress.sentence
    age = round(clock.elapsed(born(late[0])).total_seconds())
    return f"{progress.sentence}; waiting for {name_of(late[0])} ({_state(late[0])}, {age} s)"


def _state(pod: Object) -> str:
    for container in containers(pod):
        if container.init and container.running:
            return f"init container {container.name} runs"
        if reason := words(container.waiting.get("reason")):
            return reason
    if ready(pod):
        return "just started"
    return "not ready" if dig(pod, "status", "phase") == "Running" else words(dig(pod, "status", "phase")) or "Pending"
