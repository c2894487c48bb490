"""What a release needs of its environment and does not bring: known before the first write. Pure.

Decides which objects have to be looked up, which of them are missing and who refers to them, and what an answer to the
dry run of a pod means. The requests are in `tasks.requirements`. What is not known is no finding: a release that is
stopped without a reason is worse than a verdict that comes later.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prefect_cd.environment.quotas import POD_AMOUNTS, amounts, has_scopes, plain, total
from prefect_cd.environment.way_back import restarted
from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.kube.quantities import quantity
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.selectors import has_selector, service_selects
from prefect_cd.manifests.pod_references import API_VERSIONS, CLUSTER_SCOPED, pod_references
from prefect_cd.manifests.pod_templates import PodTemplate, own_claims, pod_template_of
from prefect_cd.release.model import Result

_STARTS_PODS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job", "Pod"})
_HAS_KEYS = frozenset({"ConfigMap", "Secret"})
_COMES_WITH_NAMESPACE = frozenset(
    {
        ("ServiceAccount", "default"),
        ("ConfigMap", "kube-root-ca.crt"),
        ("ConfigMap", "openshift-service-ca.crt"),
        ("ConfigMap", "istio-ca-root-cert"),
    }
)
"""What controllers put into every namespace soon after its creation."""
_CREATES_NO_SECRETS = frozenset({"gateway.networking.k8s.io", "networking.istio.io", "monitoring.coreos.com"})
"""Groups of custom resources that only refer to Secrets and ConfigMaps."""
_REFERRING_ANNOTATIONS = ("kubectl.kubernetes.io/", "reloader.stakater.com/", "prefect-cd.dev/")
_ADMISSION_KINDS = frozenset({"Namespace", "LimitRange", "ResourceQuota"})


class Unmet(Result):
    """One thing that a release needs and that its environment does not have.

    Attributes:
        where: who needs it.
        summary: what is missing or would be refused.
        fix: the next command or the next edit.
        certain: whether no pod of it can start as things are; otherwise it may still work.
    """

    where: str
    summary: str
    fix: str
    certain: bool


@dataclass(frozen=True)
class Need:
    """An object that pods refer to.

    Attributes:
        ref: the object.
        keys: those that must be in it.
        places: who refers to it: `deployment/web: container app, env DB_URL`.
        needed: whether some pod does not start without it.
    """

    ref: Ref
    keys: frozenset[str]
    places: tuple[str, ...]
    needed: bool


# --- what starts -----------------------------------------------------------------------------------------------------


def starting(objects: Sequence[Object], runs: Sequence[Object]) -> list[Object]:
    """The workloads whose pods a release starts at once.

    Args:
        objects: of the release.
        runs: the objects of the version that runs: where their pods are the same, none starts.
    """
    return [item for item in restarted(objects, runs) if item["kind"] in _STARTS_PODS and _runs(item, objects)]


def _runs(item: Object, objects: Sequence[Object]) -> bool:
    template = pod_template_of(item, objects)
    idle = dig(item, "spec", "paused") is True or dig(item, "spec", "suspend") is True
    return template is not None and template.replicas > 0 and not idle


def _templates(workloads: Iterable[Object], objects: Sequence[Object]) -> list[PodTemplate]:
    return [template for item in workloads if (template := pod_template_of(item, objects))]


# --- objects that pods refer to --------------------------------------------------------------------------------------


def needs(workloads: Iterable[Object], namespace: str) -> list[Need]:
    """What the pods of these workloads refer to, each object once."""
    keys: dict[Ref, set[str]] = {}
    places: dict[Ref, dict[str, bool]] = {}
    for item in workloads:
        spec = item.get("spec") if item["kind"] == "Pod" else dig(item, "spec", "template", "spec")
        for reference in pod_references(spec or {}, own_claims=own_claims(item)):
            scope = "" if reference.kind in CLUSTER_SCOPED else namespace
            ref = Ref(API_VERSIONS[reference.kind], reference.kind, scope, reference.name)
            keys.setdefault(ref, set()).update(reference.keys)
            place = f"{kind_and_name(item)}: {reference.place}"
            places.setdefault(ref, {})[place] = reference.needed
    return [Need(ref, frozenset(keys[ref]), tuple(places[ref]), any(places[ref].values())) for ref in sorted(keys)]


def outside(wanted: Iterable[Need], objects: Sequence[Object]) -> list[Need]:
    """Those that the release does not bring, and that no controller brings into every namespace."""
    inside = {Ref.of(item).identity for item in objects}
    return [
        need
        for need in wanted
        if need.ref.identity not in inside and (need.ref.kind, need.ref.name) not in _COMES_WITH_NAMESPACE
    ]


def incomplete(wanted: Iterable[Need], objects: Sequence[Object]) -> list[tuple[Need, Object]]:
    """The objects of the release that lack keys as they are written, and that nobody else fills."""
    inside = {Ref.of(item).identity: item for item in objects}
    found = [(need, inside[need.ref.identity]) for need in wanted if need.ref.identity in inside]
    return [(need, item) for need, item in found if _absent(need, item) and not _is_filled(item)]


def _is_filled(item: Object) -> bool:
    """Whether a controller may write keys into an object: for a token, or by an annotation or a label of its own."""
    labels, annotations = dig_mapping(item, "metadata", "labels"), _annotations(item)
    is_token = item.get("type") == "kubernetes.io/service-account-token"
    return is_token or bool(annotations) or any("inject" in label for label in labels)


def _absent(need: Need, item: Object) -> list[str]:
    if need.ref.kind not in _HAS_KEYS:
        return []
    keys = {key for field in ("data", "binaryData", "stringData") for key in dig_mapping(item, field)}
    return sorted(need.keys - keys)


def unmet_references(
    wanted: Iterable[Need],
    live: Mapping[Ref, Object | None],
    creators: Sequence[Object],
    *,
    has_namespace: bool = True,
) -> list[Unmet]:
    """The references to what does not exist, or lacks keys.

    Args:
        wanted: what pods refer to.
        live: the objects as they are, or will be once the release is applied; one that is not known is left out.
        creators: the objects of the release, and others of the namespace, that may create what is missing.
        has_namespace: whether the namespace exists.
    """
    found = []
    for need in wanted:
        if need.ref not in live:
            continue
        item = live[need.ref]
        absent = [] if item is None else _absent(need, item)
        if item is not None and not absent:
            continue
        summary = f"{need.ref} has no key {', '.join(absent)}" if item else f"{need.ref} does not exist"
        creator = next((other for other in creators if _may_create(other, need.ref)), None)
        if creator:
            summary += f", unless {kind_and_name(creator)} is about to make it"
        found.append(
            Unmet(
                where="; ".join(need.places),
                summary=_with_namespace(summary, need, has_namespace=has_namespace),
                fix=_creation(need, absent, has_namespace=has_namespace),
                certain=need.needed and creator is None,
            )
        )
    return found


def _with_namespace(summary: str, need: Need, *, has_namespace: bool) -> str:
    if has_namespace or not need.ref.namespace:
        return summary
    return f"{summary}; neither does the namespace {need.ref.namespace}, which the release would create empty"


def _creation(need: Need, absent: Sequence[str], *, has_namespace: bool) -> str:
    """How to create what is missing; a Secret never by way of the repository."""
    ref = need.ref
    if ref.kind == "Secret":
        first = "" if has_namespace else f"kubectl create namespace {ref.namespace} && "
        return f"{first}kubectl -n {ref.namespace} {_secret_command(need, absent)}, or correct the reference"
    if ref.kind in CLUSTER_SCOPED:
        field, plural = f"{ref.kind[0].lower()}{ref.kind[1:]}Name", f"{ref.kind.lower()}es"
        return f"correct {field} (kubectl get {plural}), or have the class created by an administrator"
    what = (
        f"the key{'s' if len(absent) > 1 else ''} to the {ref.kind}" if absent else f"the {ref.kind} to the manifests"
    )
    return f"add {what}, or correct the reference"


def _secret_command(need: Need, absent: Sequence[str]) -> str:
    if absent:
        data = ",".join(f'"{key}":"…"' for key in absent)
        return f"patch secret {need.ref.name} -p '{{\"stringData\":{{{data}}}}}'"
    if not need.needed:
        return f"create secret docker-registry {need.ref.name} --docker-server=… --docker-username=…"
    values = " ".join(f"--from-literal={key}=…" for key in sorted(need.keys)) or "--from-literal=KEY=…"
    return f"create secret generic {need.ref.name} {values}"


# --- who may create what is missing ----------------------------------------------------------------------------------


def _may_create(item: Object, ref: Ref) -> bool:
    """Whether an object may lead to the creation of another: some controller's resource, or a Job of the release.

    A SealedSecret has the name of its Secret, an ExternalSecret and a Certificate have it in their spec, and operators
    make names of their own from that of their resource (`db` makes `db-app`).
    """
    if Ref.of(item).identity == ref.identity:
        return False
    if any(_names(text, ref.name) for text in _annotations(item).values()):
        return True
    if _is_custom(item):
        name = as_text(dig(item, "metadata", "name"))
        refers_only = item["apiVersion"].partition("/")[0] in _CREATES_NO_SECRETS
        return not refers_only and (any(_names(text, ref.name) for text in _texts(item)) or _names(ref.name, name))
    if item["kind"] == "Ingress":
        return any(tls.get("secretName") == ref.name for tls in as_objects(dig(item, "spec", "tls")))
    return _program_may_create(item, ref)


def _program_may_create(item: Object, ref: Ref) -> bool:
    """Whether the pods of a workload have an account of their own, and name what is missing in what they execute."""
    template = pod_template_of(item, ())
    if template is None or as_text(template.spec.get("serviceAccountName")) in {"", "default"}:
        return False
    containers = [*as_objects(template.spec.get("initContainers")), *as_objects(template.spec.get("containers"))]
    texts = [text for container in containers for key in ("command", "args") for text in _texts(container.get(key))]
    if item["kind"] in {"Job", "CronJob"}:
        texts += [as_text(variable.get("value")) for box in containers for variable in as_objects(box.get("env"))]
    return any(_names(text, ref.name) for text in texts)


def _annotations(item: Object) -> dict[str, str]:
    """The annotations that may tell a controller to create something."""
    annotations = dig_mapping(item, "metadata", "annotations")
    return {
        key: as_text(value)
        for key, value in annotations.items()
        if not any(known in key for known in _REFERRING_ANNOTATIONS)
    }


def _names(text: str, name: str) -> bool:
    """Whether a text contains a name as a whole word."""
    return bool(name) and re.search(rf"(?<![a-z0-9-]){re.escape(name)}(?![a-z0-9])", text) is not None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


# --- Services --------------------------------------------------------------------------------------------------------


def services_to_check(objects: Sequence[Object], runs: Sequence[Object]) -> list[Object]:
    """The Services of a release that may reach no pod of it, or none at a port's name.

    Nothing is found where no pods start, where custom resources may bring pods whose labels nobody knows, and about a
    Service that is the same, and reaches no pod, in the version that runs.
    """
    if not starting(objects, runs) or any(_is_custom(item) for item in objects):
        return []
    before = {Ref.of(item).identity: item for item in _unreachable(runs)}
    return [
        item
        for item in _unreachable(objects)
        if dig(before.get(Ref.of(item).identity), "spec", "selector") != dig(item, "spec", "selector")
    ]


def _unreachable(objects: Sequence[Object]) -> Iterator[Object]:
    templates = _templates(objects, objects)
    for item in objects:
        if (item["apiVersion"], item["kind"]) != ("v1", "Service") or not has_selector(item):
            continue
        if _contradicts(item, templates) or any(_undeclared(item, templates)):
            yield item


def _is_custom(item: Object) -> bool:
    return builtin_kind(item["apiVersion"], item["kind"]) is None


def unmet_services(services: Iterable[Object], objects: Sequence[Object], pods: Sequence[Object]) -> list[Unmet]:
    """Services that no pod answers, or none at a port's name.

    Args:
        services: those that `services_to_check` found.
        objects: of the release.
        pods: all pods of the namespace, which other applications may have put there.
    """
    templates = _templates(objects, objects)
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


# --- quotas ----------------------------------------------------------------------------------------------------------


def unmet_quotas(quotas: Iterable[Object], workloads: Sequence[Object], objects: Sequence[Object]) -> list[Unmet]:
    """The quotas that are too small for one workload alone, whatever else is freed in the namespace.

    Args:
        quotas: the ResourceQuotas of the namespace.
        workloads: those that start.
        objects: of the release; a quota among them is not the one that will count.
    """
    inside = {Ref.of(item).identity for item in objects}
    found = []
    for quota in quotas:
        if has_scopes(quota) or Ref.of(quota).identity in inside:
            continue
        hard = amounts(dig_mapping(quota, "spec", "hard"))
        for pods in _templates(workloads, objects):
            used = total([pods])
            for name, limit in sorted(hard.items()):
                if used.get(POD_AMOUNTS.get(name, ""), 0) > limit:
                    needed = plain(used[POD_AMOUNTS[name]])
                    summary = f"its pods need {needed} of {name}, and {kind_and_name(quota)} allows {plain(limit)}"
                    fix = "request less, or have the quota raised"
                    found.append(Unmet(where=pods.where, summary=summary, fix=fix, certain=True))
            if pods.kind == "Deployment" and hard.get("count/replicasets.apps") == 0:
                summary = f"{kind_and_name(quota)} allows no ReplicaSet (count/replicasets.apps: 0)"
                fix = "have the quota raised"
                found.append(Unmet(where=pods.where, summary=summary, fix=fix, certain=True))
    return found


# --- the dry run of a pod --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """What the API server would say to a pod.

    Attributes:
        unmet: the finding; None where the answer says nothing about the release.
        field: of the pod's spec, that can be left out to find what else is refused; empty: there is none.
    """

    unmet: Unmet | None
    field: str = ""


_ABSENT = (
    (r'error looking up service account \S+: serviceaccount "(?P<name>[^"]+)" not found', "ServiceAccount",
     "serviceAccountName"),
    (r"no PriorityClass with name (?P<name>\S+) was found", "PriorityClass", "priorityClassName"),
    (r'RuntimeClass "(?P<name>[^"]+)" not found', "RuntimeClass", "runtimeClassName"),
)  # fmt: skip
_SAME_AGAIN = "correct the pod template; the same template will be refused again"
_RULES = (
    # what a policy says follows these words, and may contain any other pattern
    (r"denied (the )?request", False, _SAME_AGAIN),
    (r"violates PodSecurity", True,
     f"set the securityContext that the namespace's Pod Security level requires; {_SAME_AGAIN}"),
    (r"exceeded quota:", True, "request less, or have the quota raised"),
    (r"failed quota:", True, f"set the requests and limits that the quota counts; {_SAME_AGAIN}"),
    (r"(maximum|minimum) .* usage per|usage to limit ratio", True,
     f"stay within the namespace's limits (kubectl -n {{namespace}} describe limitrange); {_SAME_AGAIN}"),
    (r"failed calling webhook", False,
     "check the webhook's own pods (kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations)"),
    (r"", False, _SAME_AGAIN),
)  # fmt: skip
"""Answers, whether they are about the pod itself and so the same for a controller's account, and what to do."""
_SAYS_NOTHING = r"does not support dry run|is being terminated"
_PREFIX = r'^pods "[^"]*" is forbidden: |^.*?(?=failed calling webhook)'


def refusal(message: str, workload: Object, objects: Sequence[Object]) -> Refusal:
    """What it means that the server refused a pod of a workload in a dry run.

    The verdict of a policy or a webhook is only likely: it may treat the controllers' accounts in another way.

    Args:
        message: of the API server.
        workload: whose pod it was.
        objects: of the release: a quota, a LimitRange or the Namespace among them will change the answer.
    """
    where, namespace = kind_and_name(workload), as_text(dig(workload, "metadata", "namespace"))
    text = re.sub(_PREFIX, "", message)
    # the old pods count in a quota until they have ended
    if re.search(_SAYS_NOTHING, text) or ("exceeded quota:" in text and not _exceeds_alone(text)):
        return Refusal(None)
    for pattern, kind, field in _ABSENT:
        if match := re.search(pattern, text):
            return Refusal(_absent_by_admission(where, namespace, kind, match["name"], field), field)
    changes_itself = any(item["kind"] in _ADMISSION_KINDS for item in objects)
    sure, fix = next((sure, fix) for pattern, sure, fix in _RULES if re.search(pattern, text))
    return Refusal(
        Unmet(
            where=where,
            summary=f"the cluster would refuse its pods: {text}",
            fix=fix.format(namespace=namespace),
            certain=sure and not changes_itself,
        )
    )


def _absent_by_admission(where: str, namespace: str, kind: str, name: str, field: str) -> Unmet | None:
    if (kind, name) in _COMES_WITH_NAMESPACE:
        return None
    scope = "" if kind in CLUSTER_SCOPED else namespace
    need = Need(Ref(API_VERSIONS[kind], kind, scope, name), frozenset(), (f"{where}: {field}",), needed=True)
    (unmet,) = unmet_references([need], {need.ref: None}, ())
    return unmet


def _exceeds_alone(message: str) -> bool:
    """Whether one pod requests more than a quota allows at all: `requested: pods=1, used: pods=0, limited: pods=0`."""
    sections = re.search(r"requested: (.*), used: .*, limited: (.*)$", message)
    if not sections:
        return False
    requested, limited = (
        {name: quantity(value) for name, _, value in (part.partition("=") for part in re.split(r",\s*", section))}
        for section in sections.groups()
    )
    return any(
        (amount := requested[name]) is not None and (limit := limited.get(name)) is not None and amount > limit
        for name in requested
    )


# --- nodes and storage -----------------------------------------------------------------------------------------------


def unmet_node_selectors(workloads: Iterable[Object], nodes: Sequence[Object]) -> list[Unmet]:
    """Node selectors that no node has; an autoscaler may add one, so this is never certain."""
    found = []
    for pods in _templates(workloads, ()):
        selector = dig_mapping(pods.spec, "nodeSelector")
        labels = [dig_mapping(node, "metadata", "labels") for node in nodes]
        if selector and nodes and not any(selector.items() <= owned.items() for owned in labels):
            text = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
            summary = f"no node has the labels of nodeSelector {text} now"
            fix = "correct nodeSelector (kubectl get nodes --show-labels), unless an autoscaler adds such a node"
            found.append(Unmet(where=pods.where, summary=summary, fix=fix, certain=False))
    return found


def storage_classes(objects: Iterable[Object]) -> dict[str, list[str]]:
    """The storage classes that claims of a release name, and who does."""
    found: dict[str, list[str]] = {}
    for item in objects:
        claims = as_objects(dig(item, "spec", "volumeClaimTemplates"))
        claims += [item] if item["kind"] == "PersistentVolumeClaim" else []
        for claim in claims:
            if name := as_text(dig(claim, "spec", "storageClassName")):
                found.setdefault(name, []).append(kind_and_name(item))
    return found


def unmet_storage_classes(classes: Mapping[str, Sequence[str]], absent: Collection[str]) -> list[Unmet]:
    """Storage classes that do not exist; a volume that names one may exist without it, so this is never certain."""
    fix = "correct storageClassName (kubectl get storageclasses), unless a volume with this class is there"
    return [
        Unmet(where="; ".join(users), summary=f"storageclass/{name} does not exist", fix=fix, certain=False)
        for name, users in sorted(classes.items())
        if name in absent
    ]


__all__ = [
    "Need",
    "Refusal",
    "Unmet",
    "incomplete",
    "needs",
    "outside",
    "refusal",
    "services_to_check",
    "starting",
    "storage_classes",
    "unmet_node_selectors",
    "unmet_quotas",
    "unmet_references",
    "unmet_services",
    "unmet_storage_classes",
]
