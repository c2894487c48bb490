"""The state of a rollout in one sentence: what is reached, what is missing, and the patience left."""

from collections.abc import Sequence
from typing import NamedTuple

from prefect_cd.kube.objects import Object, as_text, created_at, dig, kind_and_name
from prefect_cd.rollout.assess.patience import Clock
from prefect_cd.rollout.assess.progress import Progress
from prefect_cd.rollout.diagnosis.cause import Cause
from prefect_cd.rollout.diagnosis.container import containers, is_ready


class Message(NamedTuple):
    """A sentence, and the same with … in place of seconds that change all the time.

    When `without_seconds` is equal to that of an earlier message, there is nothing new to show.
    """

    text: str
    without_seconds: str


def progress_message(
    progress: Progress, causes: Sequence[Cause], pods: Sequence[Object], unstable: Sequence[Object], clock: Clock
) -> Message:
    """The sentence of a rollout that is not complete; with the first of the causes and its countdown."""
    pending = [pod for pod in pods if not is_ready(pod)] or list(unstable)
    if progress.paused or not (causes or pending):
        return Message(progress.message, progress.message)
    if causes:
        start = f"{progress.message}; {causes[0].summary}"
        return Message(start + clock.countdown(causes[0]), start + clock.countdown(causes[0], show_seconds=False))
    start = f"{progress.message}; waiting for {kind_and_name(pending[0])} ({_pod_state(pending[0])}"
    age = round(clock.elapsed(created_at(pending[0])).total_seconds())
    return Message(f"{start}, {age} s)", f"{start}, … s)")


def _pod_state(pod: Object) -> str:
    for container in containers(pod):
        if container.init and container.running:
            return f"init container {container.name} runs"
        if reason := as_text(container.waiting.get("reason")):
            return reason
    if is_ready(pod):
        return "just started"
    phase = as_text(dig(pod, "status", "phase")) or "Pending"
    return "not ready" if phase == "Running" else phase
