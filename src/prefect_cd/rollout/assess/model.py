"""The words of a verdict: what is observed, how patient to be, what is remembered, and what comes out.

Decides nothing; every value is frozen, so that a judgement can be repeated.
"""

from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import Enum

from prefect_cd.kube.objects import Object
from prefect_cd.pipeline.models import RolloutSettings
from prefect_cd.rollout.diagnosis.cause import Category, Cause
from prefect_cd.rollout.diagnosis.port_result import PortResult


class Phase(str, Enum):
    """The verdict in one word."""

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
        coming: whether one of them is still coming up.
        up_at: when the last of the others came up, by the cluster's clock.
    """

    coming: bool = False
    up_at: datetime | None = None


NO_PEERS = Peers()


@dataclass(frozen=True)
class Observation:
    """A workload and all that belongs to it, as read from the API at about one moment.

    Args:
        workload: Deployment, StatefulSet, DaemonSet, Job, or anything else.
        revisions: ReplicaSets or ControllerRevisions that it owns, in any order.
        pods: the pods of its selector, in any order, those of old revisions among them.
        events: events about the workload, its revisions and pods, in any order.
        services: Services to be judged with the workload, in any order: those that select its pods, and any that
            select nothing.
        endpoints: the EndpointSlices of these Services; none means that there are none.
        knocks: connections that somebody tried to these Services.
        logs: what runs that failed wrote, where somebody has read it.
        present: what causes called missing (`configmap/shop`), and somebody has found since.
        company: the other workloads of the same release.
    """

    workload: Object
    revisions: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    events: tuple[Object, ...] = ()
    services: tuple[Object, ...] = ()
    endpoints: tuple[Object, ...] = ()
    knocks: tuple[PortResult, ...] = ()
    logs: tuple[Log, ...] = ()
    present: frozenset[str] = frozenset()
    company: Peers = NO_PEERS


_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Patience:
    """How much trouble is still no doom; the defaults are those of the pipeline file.

    Args:
        crashes: failed runs of one container that are doom.
        configuration: for a ConfigMap, Secret, key or service account that is missing.
        registry: for a registry that does not answer; the kubelet tries again after 10, 30 and 70 s.
        volume: for a volume that is not there or cannot be mounted.
        quota: for a quota that is used up.
        node: for a node with room, and for a node that sets the pod up.
        admission: for a webhook that does not answer, and whatever else refuses to create an object.
        readiness: for a probe that says no, after the time that its own settings allow.
        service: for a Service that selects no pod, or a port nobody listens on, once the pods are ready; a minute more
            where only the Service's controller is behind.
        other: for what has no name of its own.
        stall: without any progress at all; a longer `progressDeadlineSeconds` is respected.
        settle: how long a container without readiness probe must run before it counts as up: such a container is
            called ready the moment it starts, even if it dies the next.
        recover: how long, at least, one that crashed or lost its readiness must hold out; longer if it had held out
            longer before.
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
    settle: timedelta = timedelta(seconds=5)
    recover: timedelta = timedelta(seconds=10)

    @classmethod
    def by(cls, settings: RolloutSettings) -> "Patience":
        """As an environment of the pipeline file wants it."""
        given = {name: getattr(settings.patience, name) for name in type(settings.patience).model_fields}
        return cls(crashes=settings.crashes, **given)

    def longer(self, time: timedelta) -> "Patience":
        """With more of it for everything that may heal: time in which nobody could look."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        healing = {name: value + time for name, value in given.items() if name not in ("crashes", "settle", "recover")}
        return replace(self, **healing)

    def with_(self, category: Category) -> timedelta:
        """The patience with one category of trouble that may heal."""
        found: timedelta = getattr(self, _FIELDS.get(category, "other"))
        return found


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
"""Which patience is meant; what is not named here is `other`, or counts, or is proof."""


@dataclass(frozen=True)
class PodMemory:
    """What one pod did in earlier observations, as far as its present state does not tell.

    Args:
        pod: its uid.
        ready: whether it was ready.
        changed: the cluster's word for when that began: another word means that it has changed meanwhile.
        at: when that began.
        ends: how many runs of its containers had ended.
        earlier: how many of them before the first look.
        losses: how often it has lost its readiness without a crash, since it last held out.
        lost: when it lost it first; None when it has held out since.
        held: the longest time that it had been ready before it lost it.
        started: containers whose startup probe said yes, and when that was first seen.
        forgiven: containers that have outlived their crashes, and how many those were.
        troubles: containers whose trouble has no beginning in the objects, and when it was first seen.
    """

    pod: str
    ready: bool
    changed: str
    at: datetime
    ends: int = 0
    earlier: int = 0
    losses: int = 0
    lost: datetime | None = None
    held: timedelta = timedelta()
    started: tuple[tuple[str, datetime], ...] = ()
    forgiven: tuple[tuple[str, int], ...] = ()
    troubles: tuple[tuple[str, Category, datetime], ...] = ()


@dataclass(frozen=True)
class Memory:
    """What a judgement hands to the next one about the same workload.

    Args:
        revision: what it is about; a new revision begins with an empty memory.
        best: the most that was reached; None before the first look.
        best_at: when; progress that is lost again does not count a second time.
        wanted: how many pods that was about.
        pods: what each pod of the revision did.
        refused: uids of pods that their nodes refused; they are gone soon, and their like come again.
        refusal: what the latest of them told.
        phase: complete and doomed are final for a revision, except that what is complete may become doomed.
        summary: why it is doomed.
        causes: the same, cause by cause.
    """

    revision: str = ""
    best: int | None = None
    best_at: datetime | None = None
    wanted: int = 0
    pods: tuple[PodMemory, ...] = ()
    refused: frozenset[str] = frozenset()
    refusal: Cause | None = None
    phase: Phase = Phase.PROGRESSING
    summary: str = ""
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a rollout has come to.

    Args:
        phase: progressing, complete or doomed.
        summary: one sentence for people.
        ready: pods of the new revision that serve (for a Job: that succeeded).
        wanted: how many there should be.
        causes: what is wrong, the one to show first.
        well: complete, and nothing is wrong at this moment.
        final: complete, and nothing can come after it (a Job, or no pods).
        unchanged_since: since when its pods have been as they are, by the cluster's clock; None without pods.
        memory: to be handed to the next judgement about this workload.
    """

    phase: Phase
    summary: str
    ready: int = 0
    wanted: int = 0
    causes: tuple[Cause, ...] = ()
    well: bool = False
    final: bool = False
    unchanged_since: datetime | None = None
    memory: Memory = field(default=Memory(), repr=False)


DEFAULT = Patience()
"""What an environment has whose pipeline file says nothing."""
NOTHING = Memory()
"""Before the first look."""
