"""The data of an assessment: what is observed, the patience settings, the memory, and the verdict.

Decides nothing. Every value is frozen, so that an assessment can be repeated.
"""

from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum

from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.port_result import PortResult


class Phase(str, Enum):
    """The state of a rollout, in the terms of Kubernetes (documentation, Deployment status)."""

    PROGRESSING = "progressing"
    COMPLETE = "complete"
    FAILED = "failed"


@dataclass(frozen=True)
class Log:
    """The last lines of a container's run that ended."""

    pod: str
    container: str
    text: str


@dataclass(frozen=True)
class Peers:
    """The other workloads of a release.

    Args:
        starting: whether one of them is still starting.
        ready_at: when the last of the others became ready, by the cluster's clock.
    """

    starting: bool = False
    ready_at: datetime | None = None


NO_PEERS = Peers()


@dataclass(frozen=True)
class Observation:
    """A workload and all objects related to it, as read from the API at about the same time.

    Args:
        workload: Deployment, StatefulSet, DaemonSet, Job, or any other object.
        revisions: ReplicaSets or ControllerRevisions that it owns, in any order.
        pods: the pods of its selector, those of old revisions included, in any order.
        events: events about the workload, its revisions and pods, in any order.
        services: Services to assess with the workload, in any order: those that select its pods, and any that select
            nothing.
        endpoints: the EndpointSlices of these Services; empty means that there are none.
        port_results: connections that were tried to these Services.
        logs: of runs that failed, where they have been read.
        present: what causes reported as missing (`configmap/shop`), and a live check has found since.
        peers: the other workloads of the same release.
    """

    workload: Object
    revisions: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    services: tuple[Object, ...] = ()
    endpoints: tuple[Object, ...] = ()
    port_results: tuple[PortResult, ...] = ()
    logs: tuple[Log, ...] = ()
    present: frozenset[str] = frozenset()
    peers: Peers = NO_PEERS


_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Patience:
    """How long a problem may last before it fails the rollout.

    A watch makes it with `from_settings`: the values come from the pipeline file, and their defaults from
    `RolloutSettings` and `PatienceSettings` in `pipeline/models.py`. The defaults here are the same (a test compares
    them); only `min_uptime` and `min_recovery`, which the file cannot set, are decided here.

    Args:
        crashes: the number of failed runs of one container that fails the rollout.
        configuration: for a ConfigMap, Secret, key or service account that is missing.
        registry: for a registry that does not answer; the kubelet tries again after 10, 30 and 70 s.
        volume: for a volume that does not exist or cannot be mounted.
        quota: for a quota that is used up.
        node: for a node with room, and for a node that cannot set the pod up.
        admission: for a webhook that does not answer, and for other refusals to create an object.
        readiness: for a failing probe, after the time that its own settings allow.
        service: for a Service that selects no pods, or a port nothing listens on, once the pods are ready; a minute
            longer where the Service's controller may only be late.
        other: for problems of no other category.
        stall: without any progress at all; a longer `progressDeadlineSeconds` is respected.
        min_uptime: how long a container without readiness probe must run before it counts as stable: the kubelet
            reports such a container as ready the moment it starts, even if it ends the next moment.
        min_recovery: how long a container that crashed, or a pod that lost its readiness, must stay up at least before
            it counts as stable again; longer if it had been up longer before.
    """

    crashes: int = 3
    configuration: timedelta = _MINUTE
    registry: timedelta = timedelta(seconds=90)
    volume: timedelta = _MINUTE
    quota: timedelta = _MINUTE
    node: timedelta = _MINUTE
    admission: timedelta = _MINUTE
    readiness: timedelta = _MINUTE
    service: timedelta = timedelta(seconds=30)
    other: timedelta = _MINUTE
    stall: timedelta = timedelta(minutes=10)
    min_uptime: timedelta = timedelta(seconds=5)
    min_recovery: timedelta = timedelta(seconds=10)

    @classmethod
    def from_settings(cls, settings: RolloutSettings) -> "Patience":
        """The patience that an environment of the pipeline file asks for."""
        durations = {name: getattr(settings.patience, name) for name in type(settings.patience).model_fields}
        return cls(crashes=settings.crashes, **durations)

    def extended_by(self, time: timedelta) -> "Patience":
        """More patience with every problem that may pass: for time in which the cluster could not be observed."""
        unchanged = ("crashes", "min_uptime", "min_recovery")
        names = [item.name for item in fields(self) if item.name not in unchanged]
        return replace(self, **{name: getattr(self, name) + time for name in names})

    def for_category(self, category: Category) -> timedelta:
        """The patience with one category of problems that may pass."""
        duration: timedelta = getattr(self, patience_key(category))
        return duration


_FIELDS = {
    Category.MISSING_CONFIG: "configuration",
    Category.SERVICE_ACCOUNT: "configuration",
    Category.REGISTRY_UNREACHABLE: "registry",
    Category.VOLUME: "volume",
    Category.QUOTA: "quota",
    Category.UNSCHEDULABLE: "node",
    Category.NODE: "node",
    Category.ADMISSION: "admission",
    Category.REPLICA_SET: "admission",
    Category.READINESS: "readiness",
    Category.STARTUP: "readiness",
    Category.BLOCKED: "readiness",
    Category.SERVICE: "service",
    Category.PORT: "service",
}
"""The field of `Patience` for each category; the other categories use `other`, are counted, or are permanent."""


def patience_key(category: Category) -> str:
    """The key under `rollout.patience` in the pipeline file for the problems of one category that may pass."""
    return _FIELDS.get(category, "other")


@dataclass(frozen=True)
class PodMemory:
    """What one pod did in earlier observations, as far as its current status does not show it.

    Args:
        uid: the pod's uid.
        ready: whether it was ready.
        transition: `lastTransitionTime` of its Ready condition, as written: another value means that the readiness has
            changed since.
        changed_at: when the readiness changed.
        ended_runs: how many runs of its containers had ended.
        ended_before: how many of them before the first observation.
        losses: how often it has lost its readiness without a crash, since it was last stable.
        first_lost_at: when it lost it first; None when it has been stable since.
        longest_ready: the longest time that it had been ready before it lost it.
        startup_passed: containers whose startup probe has succeeded, and when that was first observed.
        forgiven: containers that have recovered from crashes, and from how many.
        undated: problems whose beginning is not in the objects, and when they were first observed.
    """

    uid: str
    ready: bool
    transition: str
    changed_at: datetime
    ended_runs: int = 0
    ended_before: int = 0
    losses: int = 0
    first_lost_at: datetime | None = None
    longest_ready: timedelta = timedelta()
    startup_passed: tuple[tuple[str, datetime], ...] = ()
    forgiven: tuple[tuple[str, int], ...] = ()
    undated: tuple[tuple[str, Category, datetime], ...] = ()


@dataclass(frozen=True)
class Memory:
    """What one assessment hands to the next one of the same workload.

    Args:
        revision: the revision that this is about; a new revision begins with an empty memory.
        best: the highest progress mark so far; None before the first observation.
        progressed_at: when it was reached; progress that is lost and regained does not count again.
        wanted: how many pods were wanted then.
        pods: what each pod of the revision did.
        rejected: uids of pods that their nodes rejected: such pods disappear soon, and their replacements continue the
            count.
        rejection: the cause that the latest of them gave.
        phase: failed is final for a revision; complete may still become failed, but not progressing.
        summary: why it failed.
        causes: the causes of the failure.
    """

    revision: str = ""
    best: int | None = None
    progressed_at: datetime | None = None
    wanted: int = 0
    pods: tuple[PodMemory, ...] = ()
    rejected: frozenset[str] = frozenset()
    rejection: Cause | None = None
    phase: Phase = Phase.PROGRESSING
    summary: str = ""
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The state of a rollout.

    Args:
        phase: progressing, complete or failed.
        summary: one sentence for the user.
        ready: pods of the new revision that are ready (for a Job: that succeeded).
        wanted: how many there should be.
        causes: the problems, the most important first.
        healthy: complete, and without any problem at this moment.
        final: complete, and nothing can change it (a Job, or no pods).
        unchanged_since: since when its pods have been as they are, by the cluster's clock; None without pods.
        summary_without_seconds: the summary with … in place of seconds that change all the time; empty where it has
            none.
        memory: for the next assessment of this workload.
    """

    phase: Phase
    summary: str
    ready: int = 0
    wanted: int = 0
    causes: tuple[Cause, ...] = ()
    healthy: bool = False
    final: bool = False
    unchanged_since: datetime | None = None
    summary_without_seconds: str = ""
    memory: Memory = field(default=Memory(), repr=False)


DEFAULT_PATIENCE = Patience()
"""The default of `assess`, which tests use; a watch always uses `Patience.from_settings`."""
NO_MEMORY = Memory()
"""Before the first observation."""
