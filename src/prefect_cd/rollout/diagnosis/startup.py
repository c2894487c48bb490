"""Why a container is not created or not started, though its image is there.

Decides by the kubelet's and the runtime's words. An image does not change, so a program that is not in it is proof,
unless a volume that is mounted where the program should be may still bring it.
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
from prefect_cd.rollout.diagnosis.cause import Category, Cause, Rule, explain, first
from prefect_cd.rollout.diagnosis.container import Container, is_transient, trouble_began
from prefect_cd.rollout.diagnosis.image_pull import PLATFORM, about_the_image

_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError",
            "StartError", "ContainerCannotRun")  # fmt: skip

_RULES = (
    Rule(r"exec format error", Category.WRONG_ARCHITECTURE, True,
         "the program of container {container} is for another processor, or a script without #!",
         PLATFORM),
    # "no such file" alone may be a mount; with exec or stat in front it is the program.
    Rule(r"executable file not found|(exec|stat)\b.*no such file or directory"
         r"|exec.*(permission denied|is a directory)",
         Category.COMMAND_NOT_FOUND, True, "container {container} cannot start: its command is not in the image",
         "correct command and args in the manifest, or the image's ENTRYPOINT"),
    Rule(r"runAsNonRoot|run as root|non-numeric user", Category.SECURITY, True,
         "container {container} is refused by its own securityContext: {words}",
         "give the image a numeric non-root USER, or correct securityContext"),
    Rule(r"configmap|secret|couldn't find key", Category.MISSING_CONFIG, False,
         "container {container} needs configuration that is not there: {words}",
         "add it to the manifests, or correct the reference (kubectl -n {namespace} get configmaps,secrets)"),
    Rule(r"subPath|volumeMount|\bmount", Category.VOLUME, False,
         "container {container} cannot be created: {words}",
         "kubectl -n {namespace} describe {object}"),
    Rule(r"", Category.UNKNOWN, False, "container {container} cannot be created: {words}",
         "kubectl -n {namespace} describe {object}"),
)  # fmt: skip


def unstarted(container: Container, events: Sequence[Object]) -> Cause | None:
    """What keeps a container from being created."""
    if container.running:
        return None
    waits, end = container.waiting, container.last_end
    failing = waits if waits.get("reason") in _REASONS else end if end.get("reason") in _REASONS else {}
    if not failing:
        return None
    said = as_text(failing.get("message")) or as_text(failing.get("reason"))
    if is_transient(said):
        return None
    failed = [event for event in with_reason(container.told(events), "Failed") if not about_the_image(event)]
    again = end.get("reason") in _REASONS  # then the latest end is the same trouble
    rule = first(_RULES, said, *names_in(container.pod))
    if rule.category is Category.COMMAND_NOT_FOUND and brought_by_volume(container, said):
        rule = rule._replace(proven=False)
    return explain(rule, container.pod, said, container=container.name,
                   since=trouble_began(container, failed) if failing is waits and not again else earliest(failed),
                   seen=latest(failed) or as_time(end.get("finishedAt")) or created_at(container.pod))  # fmt: skip


def brought_by_volume(container: Container, said: str) -> bool:
    """Whether the missing program lies where a volume is mounted: what fills the volume may be late."""
    mounts = [as_text(each.get("mountPath")).rstrip("/") for each in as_objects(container.spec.get("volumeMounts"))]
    command = container.spec.get("command")
    program = as_text(command[0]) if isinstance(command, list) and command else ""
    return any(mount and (program.startswith(f"{mount}/") or f"{mount}/" in said) for mount in mounts)
