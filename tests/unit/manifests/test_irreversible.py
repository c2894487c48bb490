"""Which changes are not made in place, and what is said about them before a release."""

from typing import Any

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.irreversible import (
    data_to_keep,
    has_finished,
    irreversible,
    may_replace,
    refusal_hint,
    scaled_by,
    scaled_replicas,
    with_kept,
)


def an_object(kind: str, api_version: str = "v1", **parts: Any) -> Object:  # noqa: ANN401  JSON is anything
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "shop", "namespace": "shop"}, **parts}


def claim(size: str, **spec: object) -> Object:
    return an_object("PersistentVolumeClaim", spec={"resources": {"requests": {"storage": size}}, **spec})


def workload(kind: str = "Deployment", **spec: object) -> Object:
    return an_object(kind, "apps/v1", spec=spec)


def job(image: str = "shop:1", **parts: object) -> Object:
    return an_object("Job", "batch/v1", spec={"template": {"spec": {"containers": [{"image": image}]}}}, **parts)


def finished(kind: str) -> Object:
    return {"conditions": [{"type": kind, "status": "True"}]}


OPEN, SEALED = an_object("ConfigMap", data={"a": "1"}), an_object("ConfigMap", data={"a": "1"}, immutable=True)
SEALED_2 = an_object("ConfigMap", data={"a": "2"}, immutable=True)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (OPEN, OPEN, []),
        (OPEN, SEALED, ["replaced: it becomes immutable: a rollback deletes it and creates it again"]),
        (SEALED, SEALED, []),
        (SEALED, SEALED_2, ["replaced: it is immutable: it is deleted and created again, "]),
        (SEALED, OPEN, ["replaced: it is immutable"]),
        (OPEN, SEALED_2, ["replaced: it becomes immutable"]),
        (claim("1Gi"), claim("1Gi"), []),
        (claim("1Gi"), claim("1024Mi"), []),
        (claim("1Gi"), claim("2Gi"), ["irreversible: it grows to 2Gi, and a rollback cannot make it smaller"]),
        (claim("2Gi"), claim("1Gi"), []),  # the server refuses it before the release
        (
            claim("1Gi", storageClassName="a"),
            claim("1Gi", storageClassName="b"),
            ["irreversible: spec.storageClassName"],
        ),
        (job(), job(), []),
        (job(), job("shop:2"), ["replaced: its pod template changes, so it is replaced and runs again; a rollback"]),
        (workload(selector={"a": "1"}), workload(selector={"a": "2"}), ["irreversible: spec.selector changes"]),
        (workload(replicas=1), workload(replicas=2), []),
        (
            an_object("Service", spec={"clusterIP": "10.0.0.1"}),
            an_object("Service", spec={"clusterIP": "None"}),
            ["irreversible: spec.clusterIP changes"],
        ),
        (an_object("Service", spec={"clusterIP": "10.0.0.1"}), an_object("Service", spec={}), []),
    ],
)
def test_a_plan_says_what_a_rollback_cannot_undo_in_place(before: Object, after: Object, expected: list[str]) -> None:
    findings = irreversible([before], [after])
    assert len(findings) == len(expected)
    for finding, start in zip(findings, expected, strict=True):
        assert f"{finding.rule.value}: {finding.summary}".startswith(start)
        assert finding.cannot_be_undone
        assert not finding.loses_requests


def test_only_objects_of_both_versions_are_compared() -> None:
    other = {**SEALED, "metadata": {"name": "other", "namespace": "shop"}}
    assert irreversible([OPEN], [other]) == ()
    scaler = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "shop"}}
    assert (
        irreversible([{**scaler, "apiVersion": "autoscaling/v1"}], [{**scaler, "apiVersion": "autoscaling/v2"}]) == ()
    )


@pytest.mark.parametrize(
    ("size", "other", "keeps"),
    [
        ("2Gi", "1Gi", True),
        ("1Gi", "1G", True),
        ("1G", "1Gi", False),
        ("1.5Gi", "1536Mi", False),
        ("1e9", "1G", False),
        ("2e9", "1G", True),
        (2000, "1k", True),
        ("1500m", "1", True),
        ("?", "1Gi", False),
    ],
)
def test_a_claim_keeps_the_larger_size(size: object, other: str, keeps: bool) -> None:  # noqa: FBT001
    live = claim("1")
    live["spec"]["resources"]["requests"]["storage"] = size
    kept = data_to_keep(live, claim(other))
    assert bool(kept) == keeps
    if keeps:
        written = with_kept(claim(other), kept)
        assert written["spec"]["resources"]["requests"]["storage"] == size
        assert str(kept[0]) == f"spec.resources.requests.storage stays {size}: a claim can grow, and not shrink"


def test_a_field_that_is_kept_changes_no_other_object() -> None:
    item = workload(replicas=1, paused=True)
    kept = scaled_replicas(workload(replicas=3), item, "horizontalpodautoscaler/shop")
    assert with_kept(item, kept)["spec"] == {"replicas": 3, "paused": True}
    assert item["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("live", "wanted", "keeps"), [(3, 1, True), (1, 1, False), (0, 1, False), (3, None, False), (None, 1, False)]
)
def test_the_replicas_of_an_autoscaler_are_kept_while_there_are_any(
    live: int | None,
    wanted: int | None,
    keeps: bool,  # noqa: FBT001
) -> None:
    kept = scaled_replicas(workload(replicas=live), workload(replicas=wanted), "horizontalpodautoscaler/shop")
    assert bool(kept) == keeps


def test_an_autoscaler_scales_the_workload_that_it_names_in_its_namespace() -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"}
    scaler = an_object("HorizontalPodAutoscaler", "autoscaling/v2", spec={"scaleTargetRef": target})
    assert scaled_by([scaler]) == {("apps", "Deployment", "shop", "shop"): "horizontalpodautoscaler/shop"}
    assert scaled_by([]) == {}


@pytest.mark.parametrize(
    ("live", "forward", "back"),
    [
        (SEALED, True, True),
        (an_object("Secret"), True, True),
        (job(), False, True),
        (job(status=finished("Complete")), True, True),
        (job(status=finished("Failed")), True, True),
        (an_object("Pod"), True, True),
        (workload(), False, False),
        (claim("1Gi"), False, False),
        (an_object("Service"), False, False),
        (an_object("Secret", "example.com/v1"), False, False),
    ],
)
def test_what_loses_nothing_is_replaced(live: Object, forward: bool, back: bool) -> None:  # noqa: FBT001
    for refusal in (
        "data: Forbidden: field is immutable when `immutable` is set",
        "may not change fields other than x",
    ):
        assert may_replace(live, refusal, restoring=False) == forward
        assert may_replace(live, refusal, restoring=True) == back
    assert not may_replace(live, "error decoding YAML", restoring=True)


@pytest.mark.parametrize(("phase", "ended"), [("Succeeded", True), ("Failed", True), ("Running", False)])
def test_a_pod_has_finished_by_its_phase(phase: str, ended: bool) -> None:  # noqa: FBT001
    assert has_finished(an_object("Pod", status={"phase": phase})) == ended


@pytest.mark.parametrize(
    ("live", "item", "hint"),
    [
        (job(), job("shop:2"), "job/shop still runs"),
        (claim("2Gi"), claim("1Gi"), "write `storage: 2Gi`, which it has"),
        (
            workload(selector={"a": "1"}),
            workload(selector={"a": "2"}),
            "spec.selector cannot be changed: give the object",
        ),
        (workload(), workload(replicas=-1), ""),
    ],
)
def test_a_refusal_says_what_to_do(live: Object, item: Object, hint: str) -> None:
    assert refusal_hint(live, item).startswith(hint)
    assert bool(refusal_hint(live, item)) == bool(hint)
