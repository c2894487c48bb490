"""Compute a pod's phase and conditions from its containers. Pure.

Source: kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle; the rest was recorded on Kubernetes 1.36. `container`
maintains each container's own state (waiting, running, terminated).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prefect_cd_local.client import Object

_NEVER = "1970-01-01T00:00:00Z"


@dataclass
class Record:
    """A container's status."""

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
        """Begin another run."""
        if self.identity:
            self.restarts += 1
            self.last = self.state if "terminated" in self.state else self.last
        self.identity, self.image_identity = identity, image_identity

    def shown(self) -> Object:
        """Return it as an entry of containerStatuses."""
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
        """The exit code of the present run."""
        code: int | None = self.state.get("terminated", {}).get("exitCode")
        return code


def terminated(code: int, started: str, finished: str, identity: str, *, reason: str = "", message: str = "") -> Object:
    """Return the state of a container whose process has ended."""
    reason = reason or ("Completed" if code == 0 else "Error")
    state = {"exitCode": code, "reason": reason, "startedAt": started or _NEVER, "finishedAt": finished,
             "containerID": identity}  # fmt: skip
    return {"terminated": {**state, "message": message} if message else state}


def phase(policy: str, init: Sequence[Record], main: Sequence[Record], *, over: bool) -> str:
    """Return the pod's phase.

    Args:
        policy: the pod's restartPolicy.
        init: init containers.
        main: the other containers.
        over: nothing will be started any more.
    """
    first = [record.exit_code for record in init if not record.sidecar]
    codes = [record.exit_code for record in main]
    ended = "Succeeded" if codes and all(code == 0 for code in codes) else "Failed"
    if over or (policy == "Never" and any(first)):
        return ended
    unready = any(code != 0 for code in first) or any(record.sidecar and not record.started for record in init)
    if unready or any("waiting" in record.state and not record.stopped for record in main):
        return "Pending"
    final = policy != "Always" and None not in codes and (policy == "Never" or ended == "Succeeded")
    return ended if final else "Running"


def conditions(
    phase_: str, init: Sequence[Record], main: Sequence[Record], *, sandbox: bool
) -> dict[str, tuple[str, str, str]]:
    """Return condition types with status, reason and message."""
    incomplete = [record.name for record in init if not (record.started if record.sidecar else record.exit_code == 0)]
    unready = [record.name for record in (*(record for record in init if record.sidecar), *main) if not record.ready]
    begun = any(record.running or record.stopped for record in main)  # a restarted init container changes nothing
    initialized = ready = ("True", "", "")
    if phase_ == "Succeeded":
        initialized = ("True", "PodCompleted", "")
    elif incomplete and not begun:
        message = f"containers with incomplete status: [{' '.join(incomplete)}]"
        initialized = ("False", "ContainersNotInitialized", message)
    if phase_ in ("Succeeded", "Failed"):
        ready = ("False", "PodCompleted" if phase_ == "Succeeded" else "PodFailed", "")
    elif unready:
        ready = ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    sandbox_ready = ("True" if sandbox else "False", "", "")
    return {
        "PodReadyToStartContainers": sandbox_ready,
        "Initialized": initialized,
        "Ready": ready,
        "ContainersReady": ready,
    }


def merged(
    known: Sequence[Object], wanted: dict[str, tuple[str, str, str]], now: str, generation: int | None
) -> list[Object]:
    """Return conditions as they are written: the transition time changes only with the status."""
    before = {(entry["type"], entry["status"]): entry["lastTransitionTime"] for entry in known}
    seen = {"observedGeneration": generation} if generation else {}
    return [
        {"type": kind, "status": status, "lastProbeTime": None, "lastTransitionTime": before.get((kind, status)) or now,
         "reason": reason or None, "message": message or None, **seen}
        for kind, (status, reason, message) in wanted.items()
    ]  # fmt: skip
