"""From what containers do to what the API says about their pod: phase and conditions, as pure functions.

Source: kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle; what it leaves open was recorded on Kubernetes 1.36.
What a container's own status shows (waiting, running, terminated) is kept by `container`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prefect_cd.local.client import Object

_NEVER = "1970-01-01T00:00:00Z"


@dataclass
class Record:
    """A container as its status shows it."""

    name: str
    image: str
    state: Object
    last: Object = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    identity: str = ""
    image_identity: str = ""
    sidecar: bool = False

    def begin(self, identity: str, image_identity: str) -> None:
        """Another run begins."""
        if self.identity:
            self.restarts += 1
            self.last = self.state if "terminated" in self.state else self.last
        self.identity, self.image_identity = identity, image_identity

    def shown(self) -> Object:
        """As an entry of containerStatuses."""
        identity = {"containerID": self.identity} if self.identity else {}
        return {"name": self.name, "image": self.image, "imageID": self.image_identity, "state": self.state,
                "lastState": self.last, "ready": self.ready, "started": self.started, "restartCount": self.restarts,
                **identity}  # fmt: skip

    @property
    def running(self) -> bool:
        """Whether a process runs."""
        return "running" in self.state

    @property
    def stopped(self) -> bool:
        """Whether it ran and does not run now."""
        return "terminated" in self.state or bool(self.last and not self.running)

    @property
    def exit_code(self) -> int | None:
        """Of the run that is shown as the present one."""
        code: int | None = self.state.get("terminated", {}).get("exitCode")
        return code


def terminated(code: int, started: str, finished: str, identity: str, *, reason: str = "", message: str = "") -> Object:
    """The state of a container whose process has ended."""
    reason = reason or ("Completed" if code == 0 else "Error")
    state = {"exitCode": code, "reason": reason, "startedAt": started or _NEVER, "finishedAt": finished,
             "containerID": identity}  # fmt: skip
    return {"terminated": {**state, "message": message} if message else state}


def phase(policy: str, init: Sequence[Record], main: Sequence[Record], *, over: bool) -> str:
    """The pod's phase.

    Args:
        policy: the pod's restartPolicy.
        init: init containers.
        main: the other containers.
        over: nothing will be started any more.
    """
    first = [each.exit_code for each in init if not each.sidecar]
    codes = [each.exit_code for each in main]
    ended = "Succeeded" if codes and all(code == 0 for code in codes) else "Failed"
    if over or (policy == "Never" and any(first)):
        return ended
    unready = any(code != 0 for code in first) or any(each.sidecar and not each.started for each in init)
    if unready or any("waiting" in each.state and not each.stopped for each in main):
        return "Pending"
    final = policy != "Always" and None not in codes and (policy == "Never" or ended == "Succeeded")
    return ended if final else "Running"


def conditions(
    phase_: str, init: Sequence[Record], main: Sequence[Record], *, sandbox: bool
) -> dict[str, tuple[str, str, str]]:
    """Condition types with status, reason and message."""
    incomplete = [each.name for each in init if not (each.started if each.sidecar else each.exit_code == 0)]
    unready = [each.name for each in (*(one for one in init if one.sidecar), *main) if not each.ready]
    begun = any(each.running or each.stopped for each in main)  # an init container that runs again changes nothing
    initialized = ready = ("True", "", "")
    if phase_ == "Succeeded":
        initialized = ("True", "PodCompleted", "")
    elif incomplete and not begun:
        said = f"containers with incomplete status: [{' '.join(incomplete)}]"
        initialized = ("False", "ContainersNotInitialized", said)
    if phase_ in ("Succeeded", "Failed"):
        ready = ("False", "PodCompleted" if phase_ == "Succeeded" else "PodFailed", "")
    elif unready:
        ready = ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    there = ("True" if sandbox else "False", "", "")
    return {"PodReadyToStartContainers": there, "Initialized": initialized, "Ready": ready, "ContainersReady": ready}


def merged(
    known: Sequence[Object], wanted: dict[str, tuple[str, str, str]], now: str, generation: int | None
) -> list[Object]:
    """Conditions as they are written: the time changes only with the status."""
    before = {(each["type"], each["status"]): each["lastTransitionTime"] for each in known}
    seen = {"observedGeneration": generation} if generation else {}
    return [
        {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": before.get((kind, status)) or now,
         "reason": reason or None, "message": message or None, **seen}
        for kind, (status, reason, message) in wanted.items()
    ]  # fmt: skip
