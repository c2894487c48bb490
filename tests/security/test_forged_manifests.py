"""A commit forges what is prefect-cd's own: a record, a lock, its labels; and the limits of its own namespace."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefect_cd.errors import InvalidManifest
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.labels import PREFIX
from prefect_cd.manifests.load import Manifest, load, refuse_malformed
from prefect_cd.manifests.prepare import set_namespaces
from prefect_cd.manifests.reserved import reserved

RECORD_LABELS = {"prefect-cd.dev/record": "release", "prefect-cd.dev/state": "known-good"}


def refused(top: Path, *objects: Object) -> InvalidManifest:
    """The refusal of a commit with these objects in one file, after a harmless one."""
    harmless = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}}
    (top / "shop.yaml").write_text(yaml.safe_dump_all([harmless, *objects], sort_keys=False))
    with pytest.raises(InvalidManifest) as caught:
        load(top, top)
    return caught.value


def secret(name: str = "keys", kind: str = "Opaque", **metadata: object) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, **metadata}, "type": kind}


def deployment(template: Object) -> Object:
    spec = {"containers": [{"name": "main", "image": "shop"}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "shop"},
        "spec": {"template": {"metadata": template, "spec": spec}},
    }


@pytest.mark.parametrize(
    ("item", "line", "what"),
    [
        (secret(labels=RECORD_LABELS), 11, "sets prefect-cd.dev/record in metadata.labels"),
        (
            secret(annotations={"a": "b", "prefect-cd.dev/head": "{}"}),
            12,
            "prefect-cd.dev/head in metadata.annotations",
        ),
        (secret("prefect-cd.shop.7"), 9, "has the name of a record or lock"),
        (secret("prefect-cd.shop.7.0123abcd.1"), 9, "has the name of a record or lock"),
        (secret(kind="prefect-cd.dev/record.v2"), 10, "has the type prefect-cd.dev/record.v2"),
        (deployment({"labels": {"prefect-cd.dev/environment": "production"}}), 14, "in spec.template.metadata.labels"),
    ],
    ids=["label", "annotation", "name", "part", "type", "pod-template"],
)
def test_a_commit_contains_a_record(tmp_path: Path, item: Object, line: int, what: str) -> None:
    error = refused(tmp_path, item)
    assert what in error.reason
    assert error.where == f"shop.yaml:{line}"
    assert error.hint


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_commit_contains_the_lock(tmp_path: Path, version: str) -> None:
    lease = {"apiVersion": f"coordination.k8s.io/{version}", "kind": "Lease", "metadata": {"name": "prefect-cd.shop"}}
    assert "has the name of a record or lock" in refused(tmp_path, lease).reason


def test_a_controller_makes_a_record_of_a_template(tmp_path: Path) -> None:
    """As the External Secrets Operator does, whose Secrets have the labels and the type of the template."""
    template = {"type": "prefect-cd.dev/record.v2", "metadata": {"labels": {}}}
    external = {"apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "metadata": {"name": "keys"}}
    error = refused(tmp_path, {**external, "spec": {"sources": [{"template": template}]}})
    assert (error.where, "has the type" in error.reason) == ("shop.yaml:13", True)
    template = {"metadata": {"labels": RECORD_LABELS}}
    error = refused(tmp_path, {**external, "spec": {"target": {"template": template}}})
    assert "prefect-cd.dev/record in spec.target.template.metadata.labels" in error.reason


def test_a_list_does_not_hide_a_record(tmp_path: Path) -> None:
    hidden = {"apiVersion": "v1", "kind": "List", "items": [secret(labels=RECORD_LABELS)]}
    assert "prefect-cd.dev/record" in refused(tmp_path, hidden).reason


def test_what_selects_our_labels_or_only_looks_like_them_is_accepted(tmp_path: Path) -> None:
    selector = {"namespaceSelector": {"matchLabels": {"prefect-cd.dev/application": "shop"}}}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "shop"}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "prefect-cd.shop.1"}}
    labelled = secret("keys-of-prefect-cd", labels={"app.kubernetes.io/managed-by": "me", "x.prefect-cd.dev/a": "b"})
    objects = [{**policy, "spec": {"ingress": [{"from": [selector]}]}}, config, labelled]
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump_all(objects))
    assert len(load(tmp_path, tmp_path)) == 3


# --- the limits of its own namespace ---------------------------------------------------------------------------------

NAMESPACED = {("v1", "Namespace"): False}


def namespace(name: str = "shop-staging", **labels: str) -> Manifest:
    item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    return Manifest(item, "k8s/namespace.yaml:1")


@pytest.mark.parametrize("label", ["enforce", "enforce-version", "warn"])
def test_a_commit_lifts_the_pod_security_of_its_own_namespace(label: str) -> None:
    manifest = namespace(**{f"pod-security.kubernetes.io/{label}": "privileged", "team": "shop"})
    with pytest.raises(InvalidManifest) as caught:
        set_namespaces([manifest], "shop-staging", NAMESPACED, [])
    assert caught.value.where == "k8s/namespace.yaml:1"
    assert f"sets pod-security.kubernetes.io/{label}, and the pipeline file does not allow it" in caught.value.reason
    assert f"kubectl label namespace shop-staging pod-security.kubernetes.io/{label}=" in caught.value.hint
    assert set_namespaces([manifest], "shop-staging", NAMESPACED, ["Namespace"])


def test_other_labels_of_its_own_namespace_are_a_commits() -> None:
    assert set_namespaces([namespace(team="shop")], "shop-staging", NAMESPACED, [])


# --- whatever a commit contains --------------------------------------------------------------------------------------

_scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
_keys = st.sampled_from(["metadata", "labels", "annotations", "type", "spec", "template", PREFIX + "record", "x"])
_values = st.recursive(
    _scalars | st.just(PREFIX + "record.v2"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4),
    max_leaves=15,
)


def _has_ours(value: Any, under: str = "") -> bool:  # noqa: ANN401
    if isinstance(value, list):
        return any(map(_has_ours, value))
    if not isinstance(value, dict):
        return False
    return any(
        (under in {"labels", "annotations"} and key.startswith(PREFIX))
        or (key == "type" and isinstance(child, str) and child.startswith(PREFIX))
        or _has_ours(child, key)
        for key, child in value.items()
    )


@given(rest=st.dictionaries(_keys, _values, max_size=4), metadata=st.dictionaries(_keys, _values, max_size=3))
def test_nothing_of_ours_passes_and_nothing_else_is_refused(rest: Object, metadata: Object) -> None:
    item = {"apiVersion": "v1", "kind": "Secret", **rest, "metadata": {**metadata, "name": "keys"}}
    assert (reserved(item) is not None) == _has_ours(item)


@given(_values)
def test_a_malformed_object_is_refused_and_raises_nothing_else(value: Any) -> None:  # noqa: ANN401
    for item in (value, {"apiVersion": "v1", "kind": "Secret", "metadata": value}):
        try:
            refuse_malformed(item, "here")
        except InvalidManifest:
            continue
        assert (reserved(item) is not None) == _has_ours(item)
