"""What in a changed object may give whoever controls it more than an application needs. Pure.

A long diff hides one line, so these lines are named apart from it, and first. The rules for pods are those of the level
`baseline` (https://kubernetes.io/docs/concepts/security/pod-security-standards/), and root, tokens and images that are
not pinned. Pods are found wherever an object has a list of containers, also in custom resources. Nothing is refused
here: a person decides, or an admission policy of the cluster.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from prefect_cd.kube.objects import Object, as_int, as_objects, as_text, dig, dig_mapping
from prefect_cd.kube.resources import group_of
from prefect_cd.release.model import Result

_MOST_LISTED = 8
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_RBAC, _ADMISSION = "rbac.authorization.k8s.io", ("admissionregistration.k8s.io", "apiregistration.k8s.io")
_AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"
_HOST_NAMESPACES = {"hostNetwork": "network", "hostPID": "processes", "hostIPC": "shared memory"}
_POWERFUL = (
    "*", "secrets", "escalate", "bind", "impersonate", "pods/exec", "pods/attach", "serviceaccounts/token",
    "nodes/proxy",
)  # fmt: skip


class RiskKind(str, Enum):
    """What a risk is about, the worst first: a form lists them in this order."""

    PRIVILEGED = "privileged"
    HOST_NAMESPACE = "host-namespace"
    HOST_PATH = "host-path"
    CAPABILITY = "capability"
    ISOLATION = "isolation"
    RBAC = "rbac"
    ADMISSION = "admission"
    DEFINITION = "definition"
    NETWORK = "network"
    TOKEN = "token"  # noqa: S105  the name of a rule
    ROOT = "root"
    IMAGE = "image"


_ONLY_NEW = frozenset({RiskKind.TOKEN, RiskKind.ROOT, RiskKind.IMAGE})
"""Too common to be named with every release."""


class Risk(Result):
    """One risk of one changed object.

    Attributes:
        kind: what it is about.
        summary: what the object does, as the rest of a sentence that begins with its name.
        new: whether it comes with this change; else the live object has it already.
    """

    kind: RiskKind
    summary: str
    new: bool


class _Fact(NamedTuple):
    kind: RiskKind
    summary: str


def risks(live: Object | None, planned: Object | None) -> tuple[Risk, ...]:
    """The risks of a change, the worst first.

    Args:
        live: the object as it is; None where there is none.
        planned: the object as it will be; None where it is deleted.
    """
    if planned is None:
        return tuple(_removed(live or {}))
    before = set(_facts(live)) if live else set()
    facts = sorted(dict.fromkeys(_facts(planned)), key=lambda fact: (_ORDER[fact.kind], fact in before))
    return tuple(
        Risk(kind=fact.kind, summary=fact.summary, new=fact not in before)
        for fact in facts
        if fact not in before or fact.kind not in _ONLY_NEW
    )


_ORDER = {kind: place for place, kind in enumerate(RiskKind)}


def worst_first(risk: Risk) -> tuple[bool, int]:
    """The order of risks of several objects: new ones first."""
    return not risk.new, _ORDER[risk.kind]


def _removed(live: Object) -> Iterator[Risk]:
    """Objects that limit others are missed when they are gone."""
    if as_text(live.get("kind")) == "NetworkPolicy":
        yield Risk(kind=RiskKind.NETWORK, summary="no longer limits the traffic of pods", new=True)
    elif _group(live) in _ADMISSION:
        yield Risk(kind=RiskKind.ADMISSION, summary="no longer decides about requests to the API server", new=True)


def _group(item: Object) -> str:
    return group_of(as_text(item.get("apiVersion")))


def _facts(item: Object) -> Iterator[_Fact]:
    for spec in _pod_specs(item):
        yield from _pod(spec)
    kind, group = as_text(item.get("kind")), _group(item)
    if group == _RBAC:
        yield from _rbac(item)
    elif group in _ADMISSION:
        yield _Fact(RiskKind.ADMISSION, "decides about requests to the API server")
    elif kind == "CustomResourceDefinition":
        names = f"{_quoted(dig(item, 'spec', 'names', 'kind'))} of {_quoted(dig(item, 'spec', 'group'))}"
        yield _Fact(RiskKind.DEFINITION, f"defines the kind {names} for the whole cluster")
    elif kind == "NetworkPolicy":
        yield _Fact(RiskKind.NETWORK, "decides which traffic of pods is allowed")
    elif kind == "Service" and dig(item, "spec", "externalIPs"):
        addresses = _listed(dig(item, "spec", "externalIPs"))
        yield _Fact(RiskKind.NETWORK, f"takes the cluster's traffic to the addresses {addresses}")
    elif kind == "PersistentVolume" and (path := _path_of_node(item)):
        yield _Fact(RiskKind.HOST_PATH, f"offers a folder of a node: {_quoted(path)}")
    elif kind == "Secret" and item.get("type") == "kubernetes.io/service-account-token":
        yield _Fact(RiskKind.TOKEN, "gets a token of a service account that does not expire")


def _quoted(value: object) -> str:
    return repr(as_text(value))


def _path_of_node(volume: Object) -> str:
    paths = (as_text(dig(volume, "spec", source, "path")) for source in ("hostPath", "local"))
    return next(filter(None, paths), "")


def _listed(values: object) -> str:
    """The values, the most powerful first: the rest of a long list must not hide them."""
    texts = list(dict.fromkeys(_texts(values)))
    texts.sort(key=lambda text: _POWERFUL.index(text) if text in _POWERFUL else len(_POWERFUL))
    more = f" and {len(texts) - _MOST_LISTED} more" if len(texts) > _MOST_LISTED else ""
    return ", ".join(texts[:_MOST_LISTED]) + more


# --- pods ------------------------------------------------------------------------------------------------------------


def _pod_specs(item: Object) -> Iterator[Object]:
    """Every part of an object that has containers."""
    rest: list[object] = [item]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if any(as_objects(value.get(key)) for key in _CONTAINERS):
                yield value
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += value


def _pod(spec: Object) -> Iterator[_Fact]:
    for key, name in _HOST_NAMESPACES.items():
        if spec.get(key):
            yield _Fact(RiskKind.HOST_NAMESPACE, f"its pods share the {name} of their node ({key})")
    for volume in as_objects(spec.get("volumes")):
        yield from _volume(volume)
    yield from _token(spec)
    yield from _security("its pods", dig_mapping(spec, "securityContext"))
    for container in (container for key in _CONTAINERS for container in as_objects(spec.get(key))):
        yield from _container(container)


def _volume(volume: Object) -> Iterator[_Fact]:
    if path := dig(volume, "hostPath", "path"):
        yield _Fact(RiskKind.HOST_PATH, f"its pods reach {_quoted(path)} of their node")
    if image := dig(volume, "image", "reference"):
        yield from _image(f"volume {_quoted(volume.get('name'))}", image)
    for source in as_objects(dig(volume, "projected", "sources")):
        if source.get("serviceAccountToken"):
            audience = as_text(dig(source, "serviceAccountToken", "audience"))
            for_it = f" for {audience!r}" if audience else ""
            yield _Fact(RiskKind.TOKEN, f"its pods get a token of their service account{for_it}")


def _token(spec: Object) -> Iterator[_Fact]:
    """A token that is mounted on purpose: that of the default account is mounted everywhere, and permits little."""
    account = as_text(spec.get("serviceAccountName")) or as_text(spec.get("serviceAccount"))
    automount = spec.get("automountServiceAccountToken")
    if automount or (account not in {"", "default"} and automount is not False):
        yield _Fact(RiskKind.TOKEN, f"its pods get a token of the service account {account or 'default'!r}")


def _container(container: Object) -> Iterator[_Fact]:
    who, context = f"container {_quoted(container.get('name'))}", dig_mapping(container, "securityContext")
    if context.get("privileged"):
        yield _Fact(RiskKind.PRIVILEGED, f"{who} is privileged: it may do all that its node may")
    for capability in sorted(set(_texts(dig(context, "capabilities", "add")))):
        yield _Fact(RiskKind.CAPABILITY, f"{who} gets the capability {capability}")
    if context.get("allowPrivilegeEscalation"):
        yield _Fact(RiskKind.ISOLATION, f"{who} may get more privileges than its process (allowPrivilegeEscalation)")
    if context.get("procMount") == "Unmasked":
        yield _Fact(RiskKind.ISOLATION, f"{who} sees all of /proc (procMount Unmasked)")
    yield from _security(who, context)
    for port in as_objects(container.get("ports")):
        if number := as_int(port.get("hostPort")):
            yield _Fact(RiskKind.NETWORK, f"{who} listens at port {number} of its node")
    yield from _image(who, container.get("image"))


def _security(who: str, context: Object) -> Iterator[_Fact]:
    """What a pod and a container may set alike."""
    for profile in ("seccompProfile", "appArmorProfile"):
        if dig(context, profile, "type") == "Unconfined":
            yield _Fact(RiskKind.ISOLATION, f"{who} may use every system call or file ({profile} Unconfined)")
    if options := dig_mapping(context, "seLinuxOptions"):
        yield _Fact(
            RiskKind.ISOLATION, f"{who} may act as {_listed(sorted(_texts([*options.values()])))} (seLinuxOptions)"
        )
    if dig(context, "windowsOptions", "hostProcess"):
        yield _Fact(RiskKind.PRIVILEGED, f"{who} may do all that the node may (hostProcess)")
    for sysctl in as_objects(context.get("sysctls")):
        yield _Fact(RiskKind.ISOLATION, f"{who} may set {_quoted(sysctl.get('name'))} of the kernel (sysctls)")
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield _Fact(RiskKind.ROOT, f"{who} may run as root")


def _image(who: str, image: object) -> Iterator[_Fact]:
    if isinstance(image, str) and "@" not in image:
        yield _Fact(RiskKind.IMAGE, f"{who} runs {image!r}, which a tag names: it may become another image")


# --- rights ----------------------------------------------------------------------------------------------------------


def _rbac(item: Object) -> Iterator[_Fact]:
    role = dig_mapping(item, "roleRef")
    if role:
        name = f"{as_text(role.get('kind'))} {_quoted(role.get('name'))}"
        subjects = as_objects(item.get("subjects"))
        yield from (_Fact(RiskKind.RBAC, f"gives {name} to {_subject(subject)}") for subject in subjects)
        if not subjects:
            yield _Fact(RiskKind.RBAC, f"gives {name} to nobody yet")
        return
    rules = [_Fact(RiskKind.RBAC, _rule(rule)) for rule in sorted(as_objects(item.get("rules")), key=_rule_order)]
    labels = dig_mapping(item, "metadata", "labels")
    added = [key.removeprefix(_AGGREGATE) for key in map(str, labels) if key.startswith(_AGGREGATE)]
    if dig(item, "aggregationRule"):
        rules.append(_Fact(RiskKind.RBAC, "takes over the rules of other ClusterRoles (aggregationRule)"))
    rules += [_Fact(RiskKind.RBAC, f"adds its rules to the ClusterRole {name!r}") for name in added]
    yield from rules or [_Fact(RiskKind.RBAC, "has no rules yet")]


def _subject(subject: Object) -> str:
    kind, namespace, name = (as_text(subject.get(key)) for key in ("kind", "namespace", "name"))
    full_name = f"{namespace}/{name}" if namespace else name
    return f"{kind} {full_name!r}"


def _rule(rule: Object) -> str:
    named = f", only {_listed(rule['resourceNames'])}" if rule.get("resourceNames") else ""
    what = _listed(rule.get("resources")) or _listed(rule.get("nonResourceURLs"))
    groups = [group for group in _texts(rule.get("apiGroups")) if group]
    return f"permits {_listed(rule.get('verbs'))} on {what}{f' of {_listed(groups)}' if groups else ''}{named}"


def _rule_order(rule: Object) -> int:
    values = {text for key in ("verbs", "resources", "nonResourceURLs", "apiGroups") for text in _texts(rule.get(key))}
    return min((_POWERFUL.index(value) for value in values if value in _POWERFUL), default=len(_POWERFUL))


def _texts(values: object) -> Sequence[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, (list, tuple)) else []


__all__ = ["Risk", "RiskKind", "risks", "worst_first"]
