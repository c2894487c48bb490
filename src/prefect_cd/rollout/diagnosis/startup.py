"""Why a container cannot be created or started, although its image was pulled.

The messages of the kubelet and the container runtime decide. An image does not change, so a program that is missing
from it is a permanent problem, unless a volume is mounted where the program should be and may still provide it.
"""

from collections.abc import Sequence

from prefect_cd.kube.objects import (
    Object,
    as_objects,
    as_text,
    as_time,
    created_at,
    earliest,
    latest,
    names_in,
    with_reason,
)
from prefect_cd.rollout.diagnosis.cause import Category, Cause, Rule, explain, matching_rule
from prefect_cd.rollout.diagnosis.container import Container, is_transient, problem_start
from prefect_cd.rollout.diagnosis.image_pull import PLATFORM, is_about_image

_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError",
            "StartError", "ContainerCannotRun")  # fmt: skip

_RULES = (
    Rule(r"exec format error", Category.WRONG_ARCHITECTURE, True,
         "the program of container {container} is built for another CPU architecture, or is a script without #!",
         PLATFORM),
    # "no such file" alone may be about a mount; with exec or stat in front it is about the program.
    Rule(r"executable file not found|(exec|stat)\b.*no such file or directory"
         r"|exec.*(permission denied|is a directory)",
         Category.COMMAND_NOT_FOUND, True, "container {container} cannot start: its command is not in the image",
         "correct command and args in the manifest, or the image's ENTRYPOINT"),
    Rule(r"runAsNonRoot|run as root|non-numeric user", Category.SECURITY, True,
         "container {container} violates its own securityContext: {message}",
         "give the image a numeric non-root USER, or correct securityContext"),
    Rule(r"configmap|secret|couldn't find key", Category.MISSING_CONFIG, False,
         "container {container} needs configuration that does not exist: {message}",
         "add it to the manifests, or correct the reference (kubectl -n {namespace} get configmaps,secrets)"),
    Rule(r"subPath|volumeMount|\bmount", Category.VOLUME, False,
         "container {container} cannot be created: {message}",
         "kubectl -n {namespace} describe {object}"),
    Rule(r"", Category.UNKNOWN, False, "container {container} cannot be created: {message}",
         "kubectl -n {namespace} describe {object}"),
)  # fmt: skip


def startup_problem(container: Container, events: Sequence[Object]) -> Cause | None:
    """The reason why a container cannot be created or started; None when it runs or waits for something else."""
    if container.running:
        return None
    waiting, termination = container.waiting, container.last_termination
    start_failed = termination.get("reason") in _REASONS  # the latest run ended before the program ran
    if waiting.get("reason") in _REASONS:
        state = waiting
    elif start_failed:
        state = termination
    else:
        return None
    message = as_text(state.get("message")) or as_text(state.get("reason"))
    if is_transient(message):
        return None
    failures = [event for event in with_reason(container.events_in(events), "Failed") if not is_about_image(event)]
    rule = matching_rule(_RULES, message, *names_in(container.pod))
    if rule.category is Category.COMMAND_NOT_FOUND and may_come_from_volume(container, message):
        rule = rule._replace(permanent=False)
    return explain(
        rule,
        container.pod,
        message,
        container=container.name,
        # After a failed start, `finishedAt` is the end of the same problem and must not reset its beginning.
        since=earliest(failures) if start_failed else problem_start(container, failures),
        last_seen=latest(failures) or as_time(termination.get("finishedAt")) or created_at(container.pod),
    )


def may_come_from_volume(container: Container, message: str) -> bool:
    """Whether the missing program would lie in a mounted volume, which may still be filled."""
    mounts = [as_text(mount.get("mountPath")).rstrip("/") for mount in as_objects(container.spec.get("volumeMounts"))]
    command = container.spec.get("command")
    program = as_text(command[0]) if isinstance(command, list) and command else ""
    return any(path and (program.startswith(f"{path}/") or f"{path}/" in message) for path in mounts)
