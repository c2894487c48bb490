"""What a release needs of its environment and does not bring: known before the first write. Pure.

Decides which objects have to be looked up, which of them are missing, and who refers to them. Modules beside it decide
about Services, admission and images. The requests are in `tasks.requirements`. What is not known is no finding: a
release that is stopped without a reason is worse than a verdict that comes later.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prefect_cd.environment.creators import may_create, telling_annotations
from prefect_cd.environment.way_back import restarted
from prefect_cd.kube.objects import Object, as_objects, as_text, dig, dig_mapping, kind_and_name
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_references import API_VERSIONS, CLUSTER_SCOPED, pod_references
from prefect_cd.manifests.pod_templates import own_claims, pod_template_of, pod_templates_of
from prefect_cd.release.model import Result

_STARTS_PODS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job", "Pod"})
_HAS_KEYS = frozenset({"ConfigMap", "Secret"})
COMES_WITH_NAMESPACE = frozenset(
    {
        ("ServiceAccount", "default"),
        ("ConfigMap", "kube-root-ca.crt"),
        ("ConfigMap", "openshift-service-ca.crt"),
        ("ConfigMap", "istio-ca-root-cert"),
    }
)
"""What controllers put into every namespace soon after its creation."""


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
        if need.ref.identity not in inside and (need.ref.kind, need.ref.name) not in COMES_WITH_NAMESPACE
    ]


def incomplete(wanted: Iterable[Need], objects: Sequence[Object]) -> list[tuple[Need, Object]]:
    """The objects of the release that lack keys as they are written, and that nobody else fills."""
    inside = {Ref.of(item).identity: item for item in objects}
    found = [(need, inside[need.ref.identity]) for need in wanted if need.ref.identity in inside]
    return [(need, item) for need, item in found if _absent(need, item) and not _is_filled(item)]


def _is_filled(item: Object) -> bool:
    """Whether a controller may write keys into an object: for a token, or by an annotation or a label of its own."""
    labels, annotations = dig_mapping(item, "metadata", "labels"), telling_annotations(item)
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
        creator = next((other for other in creators if may_create(other, need.ref)), None)
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


# --- nodes and storage -----------------------------------------------------------------------------------------------


def unmet_node_selectors(workloads: Iterable[Object], nodes: Sequence[Object]) -> list[Unmet]:
    """Node selectors that no node has; an autoscaler may add one, so this is never certain."""
    found = []
    for pods in pod_templates_of(workloads, ()):
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
    "COMES_WITH_NAMESPACE",
    "Need",
    "Unmet",
    "incomplete",
    "needs",
    "outside",
    "starting",
    "storage_classes",
    "unmet_node_selectors",
    "unmet_references",
    "unmet_storage_classes",
]
