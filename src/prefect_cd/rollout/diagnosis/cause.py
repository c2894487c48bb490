"""The categories of problems, and how a message of the cluster becomes a sentence for the user.

The other modules of this package map messages to categories by tables of rules, tried from top to bottom. The messages
were recorded on Kubernetes 1.36 with containerd 2.3 (tests/unit/observations) unless a comment names another source.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple

from prefect_cd.kube.objects import Object, kind_and_name, namespace_of


class Category(str, Enum):
    """The kind of problem. The values are a stable contract: users filter on them."""

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


class CategoryText(NamedTuple):
    """What the documentation says about a category (docs/categories.md is generated from these texts).

    A category may fail a rollout in three ways; each text says when it does so: `ALWAYS` where there is no condition,
    None where it never does.

    Args:
        meaning: the problem, in one sentence.
        permanent: fails the rollout at once.
        patience: may pass; fails the rollout when it lasts longer than the patience with the category.
        counted: fails the rollout by the number of failed runs or pods (`crashes`).
    """

    meaning: str
    permanent: str | None = None
    patience: str | None = None
    counted: str | None = None


ALWAYS = ""

CATEGORY_TEXTS = {
    Category.IMAGE_NOT_FOUND: CategoryText(
        "The image, its tag or its digest does not exist.",
        permanent=ALWAYS,
        patience="with imagePullPolicy Never, since a node may still get the image",
    ),
    Category.IMAGE_DENIED: CategoryText("The registry denies access to the image.", permanent=ALWAYS),
    Category.IMAGE_NAME_INVALID: CategoryText("The image name has a syntax error.", permanent=ALWAYS),
    Category.REGISTRY_UNREACHABLE: CategoryText(
        "The node cannot reach the registry, or the registry is overloaded.", patience=ALWAYS
    ),
    Category.CRASH: CategoryText(
        "A container ends although it should keep running.",
        permanent="when a Job reports that it has failed",
        counted=ALWAYS,
    ),
    Category.INIT_CONTAINER: CategoryText(
        "An init container fails, so the pod's other containers do not start.", counted=ALWAYS
    ),
    Category.OUT_OF_MEMORY: CategoryText(
        "A container uses more memory than its limit.",
        permanent="when the limit is too low even to set the pod up",
        counted=ALWAYS,
    ),
    Category.COMMAND_NOT_FOUND: CategoryText(
        "The program that a container should run, or one that it calls, is missing or not executable.",
        permanent="when no volume can provide it; if only a shell's exit code (126, 127) shows it, in the second run",
        patience="when a volume may still provide it",
        counted="when only a shell's exit code shows it, and a volume may still provide it",
    ),
    Category.WRONG_ARCHITECTURE: CategoryText(
        "The image is built for another CPU architecture than the node's.",
        permanent=ALWAYS,
        counted="when only the exit code suggests it",
    ),
    Category.MISSING_CONFIG: CategoryText("A ConfigMap, a Secret or a key in one does not exist.", patience=ALWAYS),
    Category.SECURITY: CategoryText(
        "The image contradicts the container's securityContext, for example runAsNonRoot.", permanent=ALWAYS
    ),
    Category.READINESS: CategoryText(
        "A pod is not ready: its readiness probe fails, a readiness gate is not true, or it loses its readiness again "
        "and again.",
        patience="counted from the end of the time that the pod's own probe settings allow",
    ),
    Category.LIVENESS: CategoryText("The liveness probe fails, so the kubelet kills the container.", counted=ALWAYS),
    Category.STARTUP: CategoryText(
        "The startup probe does not succeed.",
        patience="while the container runs; counted from the end of the time that the probe's own settings allow",
        counted="when the kubelet kills the container for it",
    ),
    Category.UNSCHEDULABLE: CategoryText(
        "No node takes the pod: too few resources, or no node fits its selectors, affinity and tolerations.",
        patience="counted from the last progress, and not while other pods start or terminate",
    ),
    Category.QUOTA: CategoryText(
        "A ResourceQuota of the namespace is used up.",
        patience="counted from the last progress, and not while other pods start or terminate",
    ),
    Category.ADMISSION: CategoryText(
        "The cluster refuses to create the pods.",
        permanent="when a policy, a limit or the validation refuses them",
        patience="when a webhook does not answer, and for other refusals",
    ),
    Category.VOLUME: CategoryText(
        "A volume does not exist, or cannot be mounted.",
        patience="counted from the last progress, and not while other pods start or terminate",
    ),
    Category.SERVICE_ACCOUNT: CategoryText("The pod's service account does not exist.", patience=ALWAYS),
    Category.DEADLINE: CategoryText(
        "The rollout makes no progress.",
        permanent="when its own deadline (progressDeadlineSeconds, a Job's activeDeadlineSeconds) or "
        "`rollout.patience.stall` has passed",
    ),
    Category.UNKNOWN: CategoryText(
        "A problem that no rule knows; its evidence is the cluster's message.",
        permanent="when a custom resource reports Stalled or Failed",
        patience=ALWAYS,
    ),
    Category.NODE: CategoryText(
        "The node cannot set the pod up, or rejects it.",
        patience=ALWAYS,
        counted="when nodes reject pods before any container runs",
    ),
    Category.STORAGE_LIMIT: CategoryText(
        "Pods were evicted because they exceeded their own storage limit.", counted=ALWAYS
    ),
    Category.REPLICA_SET: CategoryText("The Deployment cannot create its new ReplicaSet.", patience=ALWAYS),
    Category.BLOCKED: CategoryText(
        "A StatefulSet waits for a broken pod of an old revision, which it does not replace by itself.",
        patience=ALWAYS,
    ),
    Category.SERVICE: CategoryText(
        "Requests to a Service reach no pod: its selector matches none, or it has no ready endpoint.",
        patience="one minute longer while only the Service's controller is late",
    ),
    Category.PORT: CategoryText(
        "A Service sends to a port that the pods do not have.",
        permanent="when no container declares the port's name",
        patience="when nothing listens on the port",
    ),
}
"""The documentation of every category."""

ADMISSION_DRY_RUN = "admission-dry-run"
"""In `Cause.missing`: the API server's consent to a pod of the workload, which a dry run can check."""


@dataclass(frozen=True)
class Cause:
    """One problem of one object.

    Args:
        category: the kind of problem.
        fact: one sentence that names object, container and what happened; `summary` adds the count and the note.
        evidence: the exact text of the event, status or answer.
        hint: the next command or the next edit.
        object: kind and name, for example `pod/shop-6d4f`.
        container: the container whose logs to read; empty when no container ran.
        permanent: True: no retry can succeed without a change; False: the problem may pass.
        since: when the problem began; None where the objects do not say.
        last_seen: when the cluster last observed it. A problem last seen before the rollout began does not count.
        counted: the number of failed runs decides (crashes), and not how long the problem has lasted.
        times: how many runs or pods failed, for counted problems.
        unit: what `times` counts, for the summary.
        grace: the time from `since` in which this is not a failure yet: the pod's own probe settings allow it, or a
            controller may still need it.
        retrying: a new attempt is in progress, and its result is not known yet.
        missing: what a live check can look for, since the problem passes once it is there: an object
            (`configmap/shop`), or ADMISSION_DRY_RUN and the time of the refusal.
        deferred: for the user: what decides about failure in place of the patience settings; empty when they decide.
        note: for the user: what has changed since the problem was observed.
    """

    category: Category
    fact: str
    evidence: str
    hint: str
    object: str
    container: str = ""
    permanent: bool = False
    since: datetime | None = None
    last_seen: datetime | None = None
    times: int = 0
    unit: str = "times"
    counted: bool = False
    grace: timedelta = timedelta()
    retrying: bool = False
    missing: str = ""
    deferred: str = ""
    note: str = ""

    @property
    def summary(self) -> str:
        """The problem in one sentence, with how often it happened."""
        count = f", {self.times} {self.unit}" if self.times > 1 else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.fact}{count}{note}"


class Rule(NamedTuple):
    """A pattern in the cluster's messages, and what it means.

    `fact` and `hint` are templates: `{message}` stands for the cluster's message, `{object}`, `{container}`, `{image}`
    and `{namespace}` for names, `{created}` for what could not be created. A fact without `{object}` follows the
    object's name.
    """

    pattern: str
    category: Category
    permanent: bool
    fact: str
    hint: str


def matching_rule(rules: Sequence[Rule], message: str, *names: str) -> Rule:
    """The first rule whose pattern is in `message`; every table ends with a rule that matches everything.

    Names that users chose must not decide, since a Deployment may be called `configmap-timeout` and an image
    `not-found:403`. So quoted text, URLs and the given `names` are removed before matching. Only compound names are
    removed: a container may be called `secret`, but that is also a word of the messages.
    """
    compound = filter(re.compile(r"\w\W").search, names)
    for name in sorted(compound, key=len, reverse=True):
        message = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", message)
    message = re.sub(r"https?://\S+|\"[^\"]*\"", '""', message)
    return next(rule for rule in rules if re.search(rule.pattern, message, re.IGNORECASE))


def explain(
    rule: Rule,
    subject: Object,
    message: str,
    *,
    container: str = "",
    image: str = "",
    created: str = "pods",
    since: datetime | None,
    last_seen: datetime | None,
    retrying: bool = False,
) -> Cause:
    """Apply a rule to one object: fill in the templates of its fact and hint."""
    name = kind_and_name(subject)
    values = {
        "object": name,
        "container": container,
        "image": image,
        "namespace": namespace_of(subject),
        "created": created,
        "message": _shortened(message),
    }
    fact = rule.fact.format(**values)
    return Cause(
        category=rule.category,
        fact=fact if "{object}" in rule.fact else f"{name}: {fact}",
        evidence=message,
        hint=rule.hint.format(**values),
        object=name,
        container=container,
        missing=_missing_object(message),
        permanent=rule.permanent,
        since=since,
        last_seen=last_seen,
        retrying=retrying,
    )


def _missing_object(message: str) -> str:
    """The object that the cluster reports as not found, as `kind/name`; empty without one."""
    match = re.search(
        r'(configmap|secret|serviceaccount|persistentvolumeclaim)s? "([^"/]*/)?([^"]+)" not found', message
    )
    return f"{match[1]}/{match[3]}" if match else ""


def _shortened(message: str) -> str:
    """A message of the kubelet or the scheduler without the text around its fact."""
    message = re.sub(r"^MountVolume\.\w+ failed for volume (\"[^\"]*\") : ", r"\1: ", message)
    return without_preemption(message)


def without_preemption(message: str) -> str:
    """The scheduler's message about a pod, without its part about preempting other pods."""
    return re.sub(r"\.( no new claims to deallocate,)? preemption: .*", "", message)
