"""Services of a release that no pod would answer, from its pod templates and the pods that there are. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prefect_cd.environment.creators import is_custom
from prefect_cd.environment.requirements import Unmet, starting
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.kube.resources import Identity, Ref
from prefect_cd.kube.selectors import has_selector, service_selects
from prefect_cd.manifests.pod_templates import PodTemplate, pod_templates_of


def services_to_check(objects: Sequence[Object], runs: Sequence[Object]) -> list[Object]:
    """The Services of a release that may reach no pod of it, or none at a port's name.

    Nothing is found where no pods start, where custom resources may bring pods whose labels nobody knows, and about a
    Service that is the same, and reaches no pod, in the version that runs.
    """
    if not starting(objects, runs) or any(is_custom(item) for item in objects):
        return []
    before = {Ref.of(item).identity: item for item in _unreachable(runs)}
    return [
        item
        for item in _unreachable(objects)
        if dig(before.get(Ref.of(item).identity), "spec", "selector") != dig(item, "spec", "selector")
    ]


def _unreachable(objects: Sequence[Object]) -> Iterator[Object]:
    templates = pod_templates_of(objects, objects)
    for item in objects:
        if (item["apiVersion"], item["kind"]) != ("v1", "Service") or not has_selector(item):
            continue
        if _contradicts(item, templates) or any(_undeclared(item, templates)):
            yield item


def as_admitted(objects: Sequence[Object], pods: Mapping[Identity, Object]) -> list[Object]:
    """The objects with the pod templates that the cluster makes of them: it may add containers with ports, and labels.

    Args:
        objects: of the release.
        pods: by workload, a pod of it as the cluster would admit it.
    """

    def admitted(item: Object) -> Object:
        pod = pods.get(Ref.of(item).identity)
        if pod is None:
            return item
        template = {"metadata": dig_mapping(pod, "metadata"), "spec": dig_mapping(pod, "spec")}
        return {**item, "spec": {**item["spec"], "template": template}}

    return [admitted(item) for item in objects]


def unmet_services(services: Iterable[Object], objects: Sequence[Object], pods: Sequence[Object]) -> list[Unmet]:
    """Services that no pod answers, or none at a port's name.

    Args:
        services: those that `services_to_check` found.
        objects: of the release, as the cluster would admit its pods.
        pods: all pods of the namespace, which other applications may have put there.
    """
    templates = pod_templates_of(objects, objects)
    found = []
    for service in services:
        if any(
            service_selects(service, dig(pod, "metadata", "labels")) for pod in pods if not _replaced(pod, templates)
        ):
            continue
        selector = ",".join(f"{key}={value}" for key, value in sorted(dig_mapping(service, "spec", "selector").items()))
        if _contradicts(service, templates):
            summary = f"selector {selector} matches neither a pod template of the release nor a pod of the namespace"
            fix = "correct spec.selector of the Service, or the labels of the pod template"
            found.append(Unmet(where=kind_and_name(service), summary=summary, fix=fix, certain=True))
        for target, names in _undeclared(service, templates):
            summary = f"targetPort {target!r}: no container of the pods that it selects has a port of this name"
            fix = f"name a container port {target!r}, or use one of the existing: {', '.join(names) or 'none'}"
            found.append(Unmet(where=kind_and_name(service), summary=summary, fix=fix, certain=True))
    return found


def _contradicts(service: Object, templates: Sequence[PodTemplate]) -> bool:
    """Whether no template can have pods with the selected labels.

    A label that a template does not have may be set later, by a controller or by the program: on its leader only.
    """
    selector = dig_mapping(service, "spec", "selector")
    return bool(templates) and all(
        any(key in pods.labels and pods.labels[key] != value for key, value in selector.items()) for pods in templates
    )


def _undeclared(service: Object, templates: Sequence[PodTemplate]) -> Iterator[tuple[str, list[str]]]:
    """The names of ports that no selected template has, each with the names that there are."""
    selected = [pods for pods in templates if service_selects(service, pods.labels)]
    ports = [port for pods in selected for container in pods.containers for port in as_objects(container.get("ports"))]
    for port in as_objects(dig(service, "spec", "ports")):
        target, protocol = port.get("targetPort"), _protocol(port)
        names = sorted({as_text(own.get("name")) for own in ports if own.get("name") and _protocol(own) == protocol})
        if selected and isinstance(target, str) and not target.isdigit() and target not in names:
            yield target, names


def _protocol(port: Object) -> str:
    return as_text(port.get("protocol")) or "TCP"


def _replaced(pod: Object, templates: Sequence[PodTemplate]) -> bool:
    """Whether a live pod is one of an earlier version of a template: the release ends it."""
    labels = dig_mapping(pod, "metadata", "labels")
    return any(bool(pods.labels) and pods.labels.items() <= labels.items() for pods in templates)


__all__ = ["as_admitted", "services_to_check", "unmet_services"]
