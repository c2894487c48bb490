"""Which changes the server does not make in place, and what to do about them. Pure.

Three answers: the object is replaced where that loses nothing, a field keeps its live value where it belongs to
somebody else or holds data, and everything else is refused with words that say what to do. Both directions count: what
a release does in place may be what a rollback cannot undo.

Source: kubernetes/kubernetes `pkg/apis/{core,batch,apps}/validation`, the functions `Validate…Update`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from prefect_cd.kube.objects import Object, as_text, condition_holds, dig, dig_mapping, kind_and_name
from prefect_cd.kube.resources import Ref, group_of
from prefect_cd.manifests.lint import Finding, Rule
from prefect_cd.release.model import Result

_REPLACEABLE = frozenset({("", "ConfigMap"), ("", "Secret"), ("", "Pod"), ("batch", "Job")})
_IMMUTABLE = ("field is immutable", "may not change fields other than")
"""What the server says of fields that it does not change in place; the second of Pods."""
_SELECTORS = frozenset({("apps", "Deployment"), ("apps", "StatefulSet"), ("apps", "DaemonSet")})
_CONTENT = ("data", "binaryData", "type", "immutable")
_STORAGE = ("spec", "resources", "requests", "storage")
_REPLICAS = ("spec", "replicas")
_QUANTITY = re.compile(r"([0-9.]+)(m|[kMGTPE]i?|[eE][0-9]+)?")
_FACTORS = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)} | {
    prefix + suffix: Decimal(base) ** exponent
    for suffix, base in (("", 1000), ("i", 1024))
    for exponent, prefix in enumerate("KMGTPE", 1)
}


class Kept(Result):
    """A field that keeps its live value, though the manifest has another one.

    Args:
        path: the keys to the field; empty where the whole object stays as it is.
        value: the live value.
        reason: why.
    """

    path: tuple[str, ...]
    value: str | int
    reason: str

    def __str__(self) -> str:
        return f"{'.'.join(self.path)} stays {self.value}: {self.reason}" if self.path else self.reason


def with_kept(item: Object, kept: Iterable[Kept]) -> Object:
    """The object as it is written: with the live values of the fields that are kept."""
    for field in kept:
        item = _with_value(item, field.path, field.value) if field.path else item
    return item


def _with_value(item: Object, path: Sequence[str], value: object) -> Object:
    key, *rest = path
    return {**item, key: _with_value(item.get(key) or {}, rest, value) if rest else value}


# --- fields that keep their live value -------------------------------------------------------------------------------


def scaled_by(scalers: Iterable[Object]) -> dict[tuple[str, str, str, str], str]:
    """The workloads that autoscalers scale, by identity, and the autoscaler of each.

    Args:
        scalers: live HorizontalPodAutoscalers.
    """
    targets = {}
    for scaler in scalers:
        target = dig_mapping(scaler, "spec", "scaleTargetRef")
        group = group_of(as_text(target.get("apiVersion")))
        namespace = as_text(dig(scaler, "metadata", "namespace"))
        identity = (group, as_text(target.get("kind")), namespace, as_text(target.get("name")))
        targets[identity] = kind_and_name(scaler)
    return targets


def scaled_replicas(live: Object, item: Object, scaler: str) -> tuple[Kept, ...]:
    """The number of replicas that an autoscaler has set; it has set none while there are none.

    The live value is applied, since a field that is left out would fall back to its default of 1.

    Args:
        live: the workload.
        item: the same, to apply.
        scaler: what scales it.
    """
    replicas = dig(live, *_REPLICAS)
    if not replicas or replicas == dig(item, *_REPLICAS) or dig(item, *_REPLICAS) is None:
        return ()
    return (Kept(path=_REPLICAS, value=replicas, reason=f"{scaler} sets it"),)


def data_to_keep(live: Object, item: Object) -> tuple[Kept, ...]:
    """What of a PersistentVolumeClaim a rollback cannot undo: its size."""
    if not _is_claim(live) or _bytes(dig(live, *_STORAGE)) <= _bytes(dig(item, *_STORAGE)):
        return ()
    return (Kept(path=_STORAGE, value=dig(live, *_STORAGE), reason="a claim can grow, and not shrink"),)


def _is_claim(item: Object) -> bool:
    return bool((item["apiVersion"], item["kind"]) == ("v1", "PersistentVolumeClaim"))


def _bytes(quantity: object) -> Decimal:
    """A quantity as the API writes it (`resource.Quantity`); 0 where it is none."""
    match = _QUANTITY.fullmatch(str(quantity))
    if not match:
        return Decimal(0)
    number, suffix = Decimal(match[1]), match[2] or ""
    return number * (_FACTORS[suffix] if suffix in _FACTORS else Decimal(f"1{suffix}"))


# --- objects that are replaced ---------------------------------------------------------------------------------------


def may_replace(live: Object, refusal: str, *, restoring: bool) -> bool:
    """Whether an object of ours may be deleted and created again: nothing is lost by that.

    A Job that runs is replaced only on the way back, where it belongs to what failed.

    Args:
        live: the object.
        refusal: why the server does not change it in place.
        restoring: whether an earlier version is brought back.
    """
    is_replaceable = (group_of(live["apiVersion"]), live["kind"]) in _REPLACEABLE
    if not is_replaceable or not any(text in refusal for text in _IMMUTABLE):
        return False
    return restoring or live["kind"] != "Job" or has_finished(live)


def has_finished(live: Object) -> bool:
    """Whether a Job or a Pod has ended and will not run again."""
    if live["kind"] == "Pod":
        return dig(live, "status", "phase") in {"Succeeded", "Failed"}
    return any(condition_holds(live, kind) for kind in ("Complete", "Failed"))


def refusal_hint(live: Object, item: Object) -> str:
    """What to do where the server refuses to change a live object of ours in place; empty where that is not known."""
    name = kind_and_name(live)
    if live["kind"] == "Job" and not has_finished(live):
        return f"{name} still runs, and a Job's pod template cannot be changed: wait until it has ended, or delete it"
    if kept := data_to_keep(live, item):
        return f"write `storage: {kept[0].value}`, which it has: {kept[0].reason}"
    if moved := next(_immutable_fields(live, item), None):
        return (
            f"{moved} cannot be changed: give the object another name, "
            f"or delete {name} yourself, if its users can do without it for a moment"
        )
    return ""


def _immutable_fields(before: Object, after: Object) -> Iterator[str]:
    """The fields that differ and that the server never changes, of kinds that are not replaced."""
    kind = (group_of(before["apiVersion"]), before["kind"])
    paths: list[tuple[str, ...]] = []
    if kind in _SELECTORS:
        paths = [("spec", "selector")]
    if kind == ("", "Service"):
        paths = [("spec", "clusterIP")]
    if kind == ("", "PersistentVolumeClaim"):
        paths = [("spec", "storageClassName"), ("spec", "accessModes"), ("spec", "volumeName"), ("spec", "volumeMode")]
    for path in paths:
        old, new = dig(before, *path), dig(after, *path)
        if new is not None and old is not None and old != new:
            yield ".".join(path)


# --- what to say before the release ----------------------------------------------------------------------------------


def irreversible(before: Sequence[Object], after: Sequence[Object]) -> tuple[Finding, ...]:
    """What a rollback from `after` to `before` cannot undo in place.

    Args:
        before: the full set of objects that runs.
        after: that of the release.
    """
    earlier = {Ref.of(item).identity: item for item in before}
    pairs = [(earlier[identity], item) for item in after if (identity := Ref.of(item).identity) in earlier]
    return tuple(finding for old, new in pairs for finding in _findings(old, new))


def _findings(old: Object, new: Object) -> Iterator[Finding]:
    where, kind = kind_and_name(new), (group_of(new["apiVersion"]), new["kind"])
    if kind in {("", "ConfigMap"), ("", "Secret")}:
        differs = any((old.get(key) or None) != (new.get(key) or None) for key in _CONTENT)
        if old.get("immutable") and differs:
            yield _replaced(where, "is immutable: it is deleted and created again, pods that run keep the old content")
        elif new.get("immutable") and not old.get("immutable"):
            yield _replaced(where, "becomes immutable: a rollback deletes it and creates it again")
    if kind == ("batch", "Job") and dig(old, "spec", "template") != dig(new, "spec", "template"):
        yield Finding(
            rule=Rule.REPLACED,
            where=where,
            summary="its pod template changes, so it is replaced and runs again; a rollback runs the old one again",
            fix="make sure that it may run twice, and that the old one may run after the new one",
        )
    if grown := data_to_keep(new, old):
        yield Finding(
            rule=Rule.IRREVERSIBLE,
            where=where,
            summary=f"it grows to {grown[0].value}, and a rollback cannot make it smaller",
            fix="nothing, if the old version can do with the larger one: after a rollback the size stays",
        )
    for field in _immutable_fields(old, new):
        yield Finding(
            rule=Rule.IRREVERSIBLE,
            where=where,
            summary=f"{field} changes, which neither the release nor a rollback can do in place",
            fix="give the object another name",
        )


def _replaced(where: str, summary: str) -> Finding:
    fix = "give the new content a new name, as the generators of Kustomize do"
    return Finding(rule=Rule.REPLACED, where=where, summary=f"it {summary}", fix=fix)


def definitions_of(objects: Iterable[Object]) -> list[Object]:
    """The CustomResourceDefinitions among the objects."""
    return [item for item in objects if is_definition(item)]


def is_definition(item: Object) -> bool:
    """Whether an object is a CustomResourceDefinition."""
    return bool(item["kind"] == "CustomResourceDefinition" and group_of(item["apiVersion"]) == "apiextensions.k8s.io")


def unchecked_finding(where: str) -> Finding:
    """That an object could not be dry-run, because the release brings its CustomResourceDefinition, too."""
    return Finding(
        rule=Rule.NOT_DRY_RUN,
        where=where,
        summary="it could not be dry-run: its CustomResourceDefinition comes with this release. That is done once the "
        "definition is established, before anything else is written",
        fix="nothing; or release the definition first",
    )


__all__ = [
    "Kept",
    "data_to_keep",
    "definitions_of",
    "has_finished",
    "irreversible",
    "is_definition",
    "may_replace",
    "refusal_hint",
    "scaled_by",
    "scaled_replicas",
    "unchecked_finding",
    "with_kept",
]
