"""Why a pod will not come up, and what to do about it.

Decides, from a pod and its events alone, which known trouble it has, whether that is proven or may still heal, and
which words of the cluster show it. It refuses to know the time, how patient to be, and what a rollout is: that is
`prefect_cd.rollout`. The kubelet's first message has the cause, later ones only say back-off, so events are searched
for the first one. The rules are tables of words, tried from top to bottom; the words were recorded on Kubernetes
1.36 with containerd 2.3 (tests/unit/observations) unless a comment names another source.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Any, NamedTuple

from prefect_cd.release import Object


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
        since: when the trouble began, as far as the objects tell.
        seen: when the cluster met it last; what was seen only before a rollout says nothing about that rollout.
        times: how many runs failed, for troubles that count.
        counts: True: one time is nothing, many are doom (crashes); time alone proves nothing.
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


# --- reading objects that may lack anything --------------------------------------------------------------------------


def dig(value: object, *path: str) -> Any:  # noqa: ANN401  JSON is anything
    """The value at `path`, or None where a step is missing."""
    for step in path:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def objects(value: object) -> list[Object]:
    """The JSON objects in a list that may be missing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, (list, tuple)) else []


def count(value: object) -> int:
    """A whole number that may be missing: then 0."""
    return value if isinstance(value, int) else 0


def words(value: object) -> str:
    """A text that may be missing: then empty."""
    return value if isinstance(value, str) else ""


def moment(value: object) -> datetime | None:
    """A Kubernetes timestamp as an aware datetime; None for missing ones and for 1970, the kubelet's 'never'."""
    if isinstance(value, datetime):
        parsed = value
    else:
        try:
            parsed = datetime.fromisoformat(words(value).replace("Z", "+00:00"))
        except ValueError:
            return None
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    return parsed if parsed.year > 1970 else None  # noqa: PLR2004


def name_of(thing: Object) -> str:
    """Kind and name as kubectl takes them: `pod/shop-6d4f`."""
    return f"{words(thing.get('kind')).lower() or 'object'}/{words(dig(thing, 'metadata', 'name')) or '?'}"


def condition(thing: Object, kind: str) -> Object:
    """The condition called `kind`, or an empty object."""
    found = [each for each in objects(dig(thing, "status", "conditions")) if each.get("type") == kind]
    return found[0] if found else {}


def first_time(event: Object) -> datetime | None:
    """When an event happened first."""
    for path in (("firstTimestamp",), ("eventTime",), ("metadata", "creationTimestamp"), ("lastTimestamp",)):
        if found := moment(dig(event, *path)):
            return found
    return None


def last_time(event: Object) -> datetime | None:
    """When an event happened last."""
    for path in (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",), ("metadata", "creationTimestamp")):
        if found := moment(dig(event, *path)):
            return found
    return None


def about(thing: Object, events: Sequence[Object]) -> tuple[Object, ...]:
    """The events about one object, oldest first."""
    uid, name = dig(thing, "metadata", "uid"), dig(thing, "metadata", "name")
    mine = [
        event
        for event in events
        if (dig(event, "involvedObject", "uid") == uid if uid and dig(event, "involvedObject", "uid") else
            dig(event, "involvedObject", "name") == name
            and dig(event, "involvedObject", "kind") in (None, thing.get("kind")))
    ]  # fmt: skip
    return tuple(sorted(mine, key=lambda e: (str(first_time(e)), words(dig(e, "metadata", "name")), str(e))))


def leaving(pod: Object) -> bool:
    """Whether the pod goes for reasons that are not its program's: evicted, preempted, drained, node shut down.

    A pod that restarts its containers ends only by the node's decision. It is Failed then, or Succeeded when its
    program obeyed the SIGTERM: an evicted pod was recorded so.
    """
    if dig(pod, "metadata", "deletionTimestamp") or condition(pod, "DisruptionTarget").get("status") == "True":
        return True
    ended = dig(pod, "status", "phase") in ("Failed", "Succeeded")
    always = (dig(pod, "spec", "restartPolicy") or "Always") == "Always"
    return ended and (always or dig(pod, "status", "reason") in _NODE_REASONS)


_NODE_REASONS = ("Evicted", "NodeShutdown", "NodeLost", "Shutdown", "Terminated", "Preempting", "NodeAffinity")


@dataclass(frozen=True)
class Container:
    """A container of a pod: what was asked for, and what became of it."""

    pod: Object
    spec: Object
    status: Object
    init: bool
    """True for one that has to end before the next starts; a sidecar among the init containers is not."""

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return words(self.status.get("name"))

    @property
    def waiting(self) -> Object:
        """Why it waits; empty when it does not."""
        found = dig(self.status, "state", "waiting")
        return found if isinstance(found, dict) else {}

    @property
    def up_since(self) -> datetime | None:
        """When the present run started; None when nothing runs."""
        return moment(dig(self.status, "state", "running", "startedAt"))

    @property
    def running(self) -> bool:
        """Whether it runs at this moment."""
        return isinstance(dig(self.status, "state", "running"), dict)

    @property
    def ready(self) -> bool:
        """Whether the kubelet calls it ready."""
        return self.running and self.status.get("ready") is True

    @property
    def last_end(self) -> Object:
        """How the latest finished run ended; empty when none did."""
        for state in ("state", "lastState"):
            found = dig(self.status, state, "terminated")
            if isinstance(found, dict):
                return found
        return {}

    @property
    def failures(self) -> int:
        """How many runs have ended."""
        restarts = count(self.status.get("restartCount"))
        return restarts if self.running else restarts + bool(self.last_end)

    @property
    def ended_in_peace(self) -> bool:
        """Whether the latest end is one that was wanted: exit 0 where nobody asked for restarts."""
        once = self.init or (dig(self.pod, "spec", "restartPolicy") or "Always") != "Always"
        return once and self.last_end.get("exitCode") == 0


def containers(pod: Object) -> Iterator[Container]:
    """The containers that have a status, init containers first."""
    for specs, statuses in (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses")):
        by_name = {words(spec.get("name")): spec for spec in objects(dig(pod, "spec", specs))}
        for status in objects(dig(pod, "status", statuses)):
            spec = by_name.get(words(status.get("name")), {})
            init = specs == "initContainers" and spec.get("restartPolicy") != "Always"
            yield Container(pod, spec, status, init)


# --- the tables: words of the cluster -> what they mean --------------------------------------------------------------


class _Rule(NamedTuple):
    pattern: str
    category: Category
    proven: bool
    fact: str
    hint: str


_PLATFORM = "build the image for the nodes' platform (kubectl get nodes -L kubernetes.io/arch)"

_PULL_RULES = (
    # "no match for platform in manifest …: not found" is containerd's; it must come before the plain "not found".
    _Rule(r"no match for platform|no matching manifest|no image found in (image index|manifest list)",
          Category.WRONG_ARCHITECTURE, True, "the image {image} has no variant for the node's processor",
          _PLATFORM),
    # Denials: containerd, CRI-O and Docker Hub ("pull access denied, … may require authorization") in one.
    _Rule(r"unauthori[sz]ed|(?<!permission )denied|forbidden|authentication required|authorization failed"
          r"|no basic auth|\b40[13]\b|signature", Category.IMAGE_DENIED, True,
          "the registry refuses to give out {image}",
          "check the imagePullSecrets of the pod's service account in namespace {namespace}"),
    _Rule(r"no such host|dial tcp|i/o timeout|connection re(fused|set)|deadline exceeded|tls:|x509|\bEOF\b"
          r"|server gave HTTP response|too ?many ?requests|\b429\b|\b50[0234]\b|RegistryUnavailable|misbehaving",
          Category.REGISTRY_UNREACHABLE, False, "the node cannot reach the registry of {image}",
          "check the registry's host name and that the nodes can reach it"),
    _Rule(r"not found|NotFound|manifest unknown|name unknown|does not exist|ErrImageNeverPull",
          Category.IMAGE_NOT_FOUND, True, "the image {image} does not exist",
          "push the image, or correct its name in the manifest"),
    _Rule(r"InvalidImageName|couldn't parse image|invalid reference format",
          Category.IMAGE_NAME_INVALID, True, "{image!r} is not a valid image name",
          "correct the image name in the manifest"),
    _Rule(r"", Category.UNKNOWN, False, "the image {image} cannot be pulled",
          "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_START_RULES = (
    _Rule(r"exec format error", Category.WRONG_ARCHITECTURE, True,
          "the program of container {container} is for another processor, or a script without #!",
          _PLATFORM),
    # "no such file" alone may be a mount; with exec or stat in front it is the program.
    _Rule(r"executable file not found|(exec|stat)\b.*no such file or directory"
          r"|exec.*(permission denied|is a directory)",
          Category.COMMAND_NOT_FOUND, True, "container {container} cannot start: its command is not in the image",
          "correct command and args in the manifest, or the image's ENTRYPOINT"),
    _Rule(r"configmap|secret|couldn't find key", Category.MISSING_CONFIG, False,
          "container {container} needs configuration that is not there: {words}",
          "add it to the manifests, or correct the reference (kubectl -n {namespace} get configmaps,secrets)"),
    _Rule(r"runAsNonRoot|run as root|non-numeric user", Category.SECURITY, True,
          "container {container} is refused by its own securityContext: {words}",
          "give the image a numeric non-root USER, or correct securityContext"),
    _Rule(r"", Category.UNKNOWN, False, "container {container} cannot be created: {words}",
          "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_MOUNT_RULES = (
    _Rule(r"(configmap|secret) .*not found|references non-existent", Category.MISSING_CONFIG, False,
          "a volume of {object} needs configuration that is not there: {words}",
          "add it to the manifests, or correct the reference (kubectl -n {namespace} get configmaps,secrets)"),
    _Rule(r"", Category.VOLUME, False, "a volume of {object} cannot be mounted: {words}",
          "kubectl -n {namespace} describe {object}"),
)  # fmt: skip

_REFUSAL_RULES = (
    _Rule(r"exceeded quota", Category.QUOTA, False, "{object} may not create pods: {words}",
          "raise the quota or ask for less (kubectl -n {namespace} describe resourcequota)"),
    _Rule(r"serviceaccount .*not found|service account", Category.SERVICE_ACCOUNT, False,
          "{object} may not create pods: {words}",
          "add the ServiceAccount to the manifests, or correct serviceAccountName"),
    # A webhook that does not answer may answer later; a policy that denies the template will deny it again.
    _Rule(r"failed calling webhook|timeout|timed out|deadline exceeded|connection refused|no endpoints",
          Category.ADMISSION, False, "{object} cannot create pods: {words}",
          "check the webhook's own pods (kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations)"),
    _Rule(r"violates PodSecurity|denied (the )?request|failed quota|(maximum|minimum) .* usage per|LimitRange"
          r"|usage to limit ratio|is invalid|is forbidden: .*securit|being terminated", Category.ADMISSION, True,
          "the cluster refuses the pods of {object}: {words}",
          "correct the pod template; the same template will be refused again"),
    _Rule(r"", Category.ADMISSION, False, "{object} cannot create pods: {words}",
          "kubectl -n {namespace} describe {object}"),
)  # fmt: skip


def _first(rules: Sequence[_Rule], said: str) -> _Rule:
    """The first rule whose words are in `said`; every table ends with one that always is."""
    return next(rule for rule in rules if re.search(rule.pattern, said, re.IGNORECASE))


def _cause(
    rule: _Rule,
    thing: Object,
    said: str,
    *,
    container: str = "",
    image: str = "",
    since: datetime | None,
    seen: datetime | None,
) -> Cause:
    names = {
        "object": name_of(thing),
        "container": container,
        "image": image,
        "namespace": words(dig(thing, "metadata", "namespace")) or "default",
        "words": _brief(said),
    }
    return Cause(
        category=rule.category,
        summary=_sentence(f"{name_of(thing)}: {rule.fact.format(**names)}", name_of(thing)),
        evidence=said,
        hint=rule.hint.format(**names),
        object=name_of(thing),
        container=container,
        proven=rule.proven,
        since=since,
        seen=seen,
    )


def _brief(said: str) -> str:
    """The words without what surrounds the fact in messages of the kubelet and the scheduler."""
    said = re.sub(r"^MountVolume\.\w+ failed for volume (\"[^\"]*\") : ", r"\1: ", said)
    return re.sub(r"\.( no new claims to deallocate,)? preemption: .*", "", said)


def _sentence(text: str, name: str) -> str:
    """Without the object's name in front where the sentence says it anyway."""
    rest = text.removeprefix(f"{name}: ")
    return rest if name in rest else text


# --- the rules about a pod -------------------------------------------------------------------------------------------


def diagnose(pod: Object, events: Sequence[Object]) -> tuple[Cause, ...]:
    """What keeps a pod from coming up, or has made it crash.

    Args:
        pod: as read from the API.
        events: any events, in any order; those about other objects are ignored.

    Returns:
        At most one cause per container, and those of the pod itself; nothing for a pod that is fine, is merely
        starting, or goes for reasons that are not its own.
    """
    if leaving(pod) or dig(pod, "status", "phase") == "Succeeded":
        return ()
    mine = about(pod, events)
    found = [cause for rule in _POD_RULES if (cause := rule(pod, mine))]
    for container in containers(pod):
        found += [cause for rule in _CONTAINER_RULES if (cause := rule(container, mine))][:1]
    return tuple(found)


def refusal(owner: Object, message: str, *, since: datetime | None, seen: datetime | None) -> Cause:
    """Why the cluster does not let `owner` create its pods (a FailedCreate message)."""
    said = re.sub(r'^.*?Error creating: |^pods "[^"]*" is forbidden: ', "", message)
    said = re.sub(r'^pods "[^"]*" is forbidden: ', "", said)
    return _cause(_first(_REFUSAL_RULES, message), owner, said, since=since, seen=seen)


def _unscheduled(pod: Object, events: Sequence[Object]) -> Cause | None:
    placed = condition(pod, "PodScheduled")
    if placed.get("status") != "False" or placed.get("reason") != "Unschedulable":
        return None
    if any(event.get("reason") in ("TriggeredScaleUp", "Nominated") for event in events):
        return None  # cluster-autoscaler or Karpenter is already adding a node
    said = words(placed.get("message"))
    claim = "persistentvolumeclaim" in said.lower()
    rule = _Rule("", Category.VOLUME if claim else Category.UNSCHEDULABLE, False, "no node takes {object}: {words}",
                 "add the PersistentVolumeClaim to the manifests" if claim else
                 "correct nodeSelector, affinity, tolerations or requests (kubectl describe nodes)")  # fmt: skip
    return _cause(rule, pod, said, since=moment(placed.get("lastTransitionTime")) or _born(pod), seen=None)


def _unmounted(pod: Object, events: Sequence[Object]) -> Cause | None:
    """Missing volumes show in events only, so they count while the pod has started nothing."""
    if any(each.running or each.last_end or _explains(each.waiting) for each in containers(pod)):
        return None
    failed = [
        event
        for event in events
        if event.get("reason") in ("FailedMount", "FailedAttachVolume") and not _transient(words(event.get("message")))
    ]
    if not failed:
        return None
    # "Unable to attach or mount volumes … timed out" is the echo of an earlier message that has the cause.
    telling = [event for event in failed if "timed out waiting" not in words(event.get("message"))] or failed
    said = words(telling[0].get("message"))
    return _cause(_first(_MOUNT_RULES, said), pod, said, since=first_time(telling[0]), seen=_latest(telling))


_POD_RULES: tuple[Callable[[Object, Sequence[Object]], Cause | None], ...] = (_unscheduled, _unmounted)

# --- the rules about a container -------------------------------------------------------------------------------------

_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
                 "SignatureValidationFailed", "ImageInspectError")  # fmt: skip
_START_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError",
                  "StartError", "ContainerCannotRun")  # fmt: skip
_NOT_FOUND, _NOT_EXECUTABLE, _BARE_FAILURE = 127, 126, 255
_AT_ONCE = timedelta(seconds=1)


def _unpulled(container: Container, events: Sequence[Object]) -> Cause | None:
    reason = container.waiting.get("reason")
    if reason not in _PULL_REASONS:
        return None
    failed = [event for event in _of(container, events) if event.get("reason") in ("Failed", "InspectFailed")]
    told = [words(event.get("message")) for event in failed]
    said = words(container.waiting.get("message"))
    if re.fullmatch(r'(Back-off pulling image "[^"]*")?', said):  # older kubelets say no more than this
        said = next((text for text in told if text.startswith("Failed to pull image")), said)
    image = words(container.spec.get("image")) or words(container.status.get("image"))
    # The image's own name must not decide: someone will call an image "not-found".
    rule = _first(_PULL_RULES, f"{reason}: {said}".replace(image, "") if image else f"{reason}: {said}")
    return _cause(rule, container.pod, said or str(reason), container=container.name, image=image,
                  since=_earliest(failed) or _born(container.pod), seen=_latest(failed))  # fmt: skip


def _unstarted(container: Container, events: Sequence[Object]) -> Cause | None:
    if container.running:
        return None
    waits, end = container.waiting, container.last_end
    failing = waits if waits.get("reason") in _START_REASONS else end if end.get("reason") in _START_REASONS else {}
    if not failing:
        return None
    said = words(failing.get("message")) or words(failing.get("reason"))
    if _transient(said):
        return None
    failed = [event for event in _of(container, events) if event.get("reason") == "Failed"]
    return _cause(_first(_START_RULES, said), container.pod, said, container=container.name,
                  since=_earliest(failed) or _born(container.pod),
                  seen=_latest(failed) or moment(end.get("finishedAt")))  # fmt: skip


def _crashed(container: Container, events: Sequence[Object]) -> Cause | None:
    end = container.last_end
    if not end or container.ended_in_peace:
        return None
    started, finished = moment(end.get("startedAt")), moment(end.get("finishedAt"))
    killed = _killing(container, events)
    meaning = _meaning(container, killed)
    times = max(container.failures, 1)
    name = name_of(container.pod)
    return Cause(
        category=meaning.category,
        summary=f"{name}: container {container.name} {meaning.fact}{f', {times} times' if times > 1 else ''}",
        evidence=_ending(end, killed),
        hint=meaning.hint.format(
            pod=words(dig(container.pod, "metadata", "name")),
            namespace=words(dig(container.pod, "metadata", "namespace")) or "default",
            container=container.name,
            previous=" --previous" if container.status.get("restartCount") else "",
        ),
        object=name,
        container=container.name,
        proven=meaning.proven,
        since=finished,
        seen=started or finished,  # a run that began before the rollout says nothing about it
        times=times,
        counts=True,
    )


_LOGS = "kubectl -n {namespace} logs {pod} -c {container}{previous}"


class _Meaning(NamedTuple):
    """What a run that ended means; `fact` follows the container's name in a sentence."""

    category: Category
    fact: str
    hint: str = _LOGS
    proven: bool = False


def _meaning(container: Container, killed: Object) -> _Meaning:
    """The first of the rules below that knows how the latest run ended; the last of them always does."""
    return next(found for rule in _ENDINGS if (found := rule(container, container.last_end, killed)))


def _ended_for_memory(container: Container, end: Object, _: Object) -> _Meaning | None:
    limit = words(dig(container.spec, "resources", "limits", "memory"))
    fact = f"used more memory than its limit{f' of {limit}' if limit else ''}"
    hint = "raise resources.limits.memory, or make the program need less"
    return _Meaning(Category.OUT_OF_MEMORY, fact, hint) if end.get("reason") == "OOMKilled" else None


def _ended_by_probe(_: Container, __: Object, killed: Object) -> _Meaning | None:
    which = "startup" if "startup probe" in words(killed.get("message")) else "liveness"
    hint = f"correct {which}Probe, or give the program more time; {_LOGS}"
    return _Meaning(Category(which), f"was killed by its {which} probe", hint) if killed else None


def _ended_by_hook(_: Container, __: Object, killed: Object) -> _Meaning | None:
    if killed.get("reason") != "FailedPostStartHook":
        return None
    return _Meaning(
        Category.CRASH, "was killed because its postStart hook failed", f"correct lifecycle.postStart; {_LOGS}"
    )


def _ended_for_architecture(container: Container, end: Object, _: Object) -> _Meaning | None:
    if "exec format error" in words(end.get("message")):
        fact, hint = "is a program for another processor", _PLATFORM
        return _Meaning(Category.WRONG_ARCHITECTURE, fact, hint, proven=_repeats(container))
    if end.get("exitCode") == _BARE_FAILURE and _ran(end) <= _AT_ONCE:
        fact = "ended at once with exit code 255, as a program for another processor does"
        return _Meaning(Category.WRONG_ARCHITECTURE, fact, "look for 'exec format error': " + _LOGS)
    return None


def _repeats(container: Container) -> bool:
    """Whether an end that proves doom is still the state of things, and not one that the running container outlived."""
    return not container.running or container.failures > 1


def _ended_for_command(container: Container, end: Object, _: Object) -> _Meaning | None:
    what = {_NOT_FOUND: "found", _NOT_EXECUTABLE: "executed"}.get(end.get("exitCode", 0))
    fact = f"calls a command that cannot be {what} (exit code {end.get('exitCode')})"
    hint = f"correct command and args in the manifest, or the image; {_LOGS}"
    return _Meaning(Category.COMMAND_NOT_FOUND, fact, hint, proven=_repeats(container)) if what else None


def _ended_by_itself(container: Container, end: Object, _: Object) -> _Meaning:
    code = end.get("exitCode")
    if container.init:
        return _Meaning(Category.INIT_CONTAINER, f"must succeed before the pod starts, but ended with exit code {code}")
    if code == 0:
        return _Meaning(Category.CRASH, "ended with exit code 0, though it should keep running")
    return _Meaning(Category.CRASH, f"crashed with exit code {code}")


_ENDINGS: tuple[Callable[[Container, Object, Object], _Meaning | None], ...] = (
    _ended_for_memory,
    _ended_by_hook,
    _ended_by_probe,
    _ended_for_architecture,
    _ended_for_command,
    _ended_by_itself,
)


def _unhealthy(container: Container, events: Sequence[Object]) -> Cause | None:
    """A probe that says no; within the probe's own settings that is no trouble yet, and never a proof."""
    if not container.running or container.ready or container.init:
        return None
    starting = container.status.get("started") is False and dig(container.spec, "startupProbe")
    which = "startup" if starting else "readiness"
    said = [
        event
        for event in _of(container, events)
        if event.get("reason") == "Unhealthy" and words(event.get("message")).lower().startswith(which)
    ]
    if not said:
        return None
    name, namespace = words(dig(container.pod, "metadata", "name")), words(dig(container.pod, "metadata", "namespace"))
    return Cause(
        category=Category(which),
        summary=f"{name_of(container.pod)}: container {container.name} runs, but its {which} probe says no",
        evidence=words(said[-1].get("message")).strip(),
        hint=f"kubectl -n {namespace or 'default'} logs {name} -c {container.name}",
        object=name_of(container.pod),
        container=container.name,
        since=container.up_since,
        seen=_latest(said),
        counts=True,
    )


_CONTAINER_RULES: tuple[Callable[[Container, Sequence[Object]], Cause | None], ...] = (
    _unpulled,
    _unstarted,
    _crashed,
    _unhealthy,
)


def _of(container: Container, events: Sequence[Object]) -> list[Object]:
    """The pod's events about this container, and those that name none."""
    return [
        event
        for event in events
        if not (path := words(dig(event, "involvedObject", "fieldPath"))) or f"{{{container.name}}}" in path
    ]


def _killing(container: Container, events: Sequence[Object]) -> Object:
    """The event in which the kubelet says that a probe or hook, not the program, ended the run; empty without one."""
    probe = rf"Container {re.escape(container.name)} failed (liveness|startup) probe"
    for event in _of(container, events):
        if event.get("reason") == "FailedPostStartHook":
            return event
        if event.get("reason") == "Killing" and re.search(probe, words(event.get("message"))):
            return event
    return {}


def _ending(end: Object, killed: Object) -> str:
    parts = [f"exit code {end.get('exitCode')} ({end.get('reason') or 'no reason'})", words(killed.get("message")),
             words(end.get("message")).strip()]  # fmt: skip
    return "; ".join(part for part in parts if part)


def _ran(end: Object) -> timedelta:
    started, finished = moment(end.get("startedAt")), moment(end.get("finishedAt"))
    return finished - started if started and finished else timedelta()


def _explains(waiting: Object) -> bool:
    return bool(waiting) and waiting.get("reason") not in ("ContainerCreating", "PodInitializing", None)


_NODE_WAITS = (
    r"failed to sync (configmap|secret) cache|object .* not registered|"
    r"failed to fetch token.*(refused|timeout|unreachable|EOF)"
)


def _transient(said: str) -> bool:
    """The kubelet's own cache was not warm, or it did not reach the API server: nothing about the configuration."""
    return bool(re.search(_NODE_WAITS, said))


def _born(thing: Object) -> datetime | None:
    return moment(dig(thing, "metadata", "creationTimestamp"))


def _earliest(events: Sequence[Object]) -> datetime | None:
    return min((at for event in events if (at := first_time(event))), default=None)


def _latest(events: Sequence[Object]) -> datetime | None:
    return max((at for event in events if (at := last_time(event))), default=None)


__all__ = ["Category", "Cause", "diagnose", "refusal"]
