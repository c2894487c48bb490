"""What a trouble is called, and how the words of the cluster become a sentence for people.

Decides what a cause consists of. The rules are tables of words, tried from top to bottom; the words were recorded on
Kubernetes 1.36 with containerd 2.3 (tests/unit/observations) unless a comment names another source.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple

from prefect_cd.kube.objects import Object, kind_and_name, namespace_of


class Category(str, Enum):
    """What kind of trouble it is. The values are a stable contract: people filter on them."""

    IMAGE_NOT_FOUND = "image-not-found"
    IMAGE_DENIED = "image-denied"
    IMAGE_NAME_INVALID = "image-name-invalid"
    REGISTRY_UNREACHABLE = "registry-unreachable"
    CRASH = "crash"
    INIT_CONTAINER = "init-container"
    OUT_OF_MEMORY = "out-of-memory"
    COMMAND_NOT_FOUND = "command-not-found"
    WRONG_ARCHITECTURE = "wrong-architecture"
    MISSING_CONFIG = "missing-config"
    SECURITY = "security"
    READINESS = "readiness"
    LIVENESS = "liveness"
    STARTUP = "startup"
    UNSCHEDULABLE = "unschedulable"
    QUOTA = "quota"
    ADMISSION = "admission"
    VOLUME = "volume"
    SERVICE_ACCOUNT = "service-account"
    DEADLINE = "deadline"
    UNKNOWN = "unknown"
    NODE = "node"
    STORAGE_LIMIT = "storage-limit"
    REPLICA_SET = "replica-set"
    BLOCKED = "blocked"
    SERVICE = "service"
    PORT = "port"


ADMISSION_DRY_RUN = "admittance"
"""That the API server lets a pod of the workload in, which a dry run can tell."""


@dataclass(frozen=True)
class Cause:
    """One trouble of one object.

    Args:
        category: what kind of trouble.
        summary: one sentence that names object, container and the fact.
        evidence: the event's or container's own words.
        hint: the next command or the next edit.
        object: kind and name, for example `pod/shop-6d4f`.
        container: whose logs to read; empty when no container ran.
        proven: True: this will not heal by itself; False: it may.
        since: when the trouble began; None where the objects do not tell.
        seen: when the cluster met it last; what was seen only before a rollout says nothing about that rollout.
        times: how many runs failed, for troubles that count.
        counts: True: one time is nothing, many are doom (crashes); time alone proves nothing.
        allowed: how long, from `since`, this is no trouble yet: by the pod's own settings, or for a controller to look.
        trying: a new attempt is under way, whose end nobody knows.
        missing: what would heal it and can be asked for, by kind and name: an object (`configmap/shop`), or ADMITTANCE
            and the time of the refusal.
        left_to: who decides when it is doom, where that is not our patience; for people.
    """

    category: Category
    summary: str
    evidence: str
    hint: str
    object: str
    container: str = ""
    proven: bool = False
    since: datetime | None = None
    seen: datetime | None = None
    times: int = 0
    counts: bool = False
    allowed: timedelta = timedelta()
    trying: bool = False
    missing: str = ""
    left_to: str = ""


class Rule(NamedTuple):
    """Words of the cluster, and what they mean; `{words}` in `fact` stands for what the cluster said."""

    pattern: str
    category: Category
    proven: bool
    fact: str
    hint: str


def first(rules: Sequence[Rule], said: str, *names: str) -> Rule:
    """The first rule whose words are in `said`; every table ends with one that always is.

    Names do not decide, for someone will call a Deployment `configmap-timeout` and an image `not-found:403`: what
    stands in quotes, addresses, and the `names` that are given are taken out first. Of these only the compound ones:
    a container may be called `secret`, but that is also a word.
    """
    for name in sorted(filter(re.compile(r"\w\W").search, names), key=len, reverse=True):
        said = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", said)
    said = re.sub(r"https?://\S+|\"[^\"]*\"", '""', said)
    return next(rule for rule in rules if re.search(rule.pattern, said, re.IGNORECASE))


def explain(
    rule: Rule,
    thing: Object,
    said: str,
    *,
    container: str = "",
    image: str = "",
    since: datetime | None,
    seen: datetime | None,
    trying: bool = False,
) -> Cause:
    """The rule's sentence about one object."""
    names = {
        "object": kind_and_name(thing),
        "container": container,
        "image": image,
        "namespace": namespace_of(thing),
        "words": _brief(said),
    }
    return Cause(
        category=rule.category,
        summary=_sentence(f"{kind_and_name(thing)}: {rule.fact.format(**names)}", kind_and_name(thing)),
        evidence=said,
        hint=rule.hint.format(**names),
        object=kind_and_name(thing),
        container=container,
        missing=_missing(said),
        proven=rule.proven,
        since=since,
        seen=seen,
        trying=trying,
    )


def _missing(said: str) -> str:
    """The object that the cluster says it has not found."""
    found = re.search(r'(configmap|secret|serviceaccount|persistentvolumeclaim)s? "([^"/]*/)?([^"]+)" not found', said)
    return f"{found[1]}/{found[3]}" if found else ""


def recounted(cause: Cause, times: int) -> Cause:
    """The same trouble with another number of failed runs."""
    summary = re.sub(r", \d+ times$", "", cause.summary)
    return replace(cause, times=times, summary=summary + (f", {times} times" if times > 1 else ""))


def _brief(said: str) -> str:
    """The words without what surrounds the fact in messages of the kubelet and the scheduler."""
    said = re.sub(r"^MountVolume\.\w+ failed for volume (\"[^\"]*\") : ", r"\1: ", said)
    return without_preemption(said)


def without_preemption(said: str) -> str:
    """The scheduler's words about a pod, without those about whom it might have driven away for it."""
    return re.sub(r"\.( no new claims to deallocate,)? preemption: .*", "", said)


def _sentence(text: str, name: str) -> str:
    """Without the object's name in front where the sentence says it anyway."""
    rest = text.removeprefix(f"{name}: ")
    return rest if name in rest else text
