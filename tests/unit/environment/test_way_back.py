"""What would keep a rollback from working, from the objects alone."""

from typing import Any

import pytest

from prefect_cd.environment.way_back import (
    Obstacle,
    missing,
    quota_findings,
    references,
    restarted,
    restored,
)
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref


def item(kind: str, name: str, api_version: str = "v1", **content: Any) -> Object:  # noqa: ANN401
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, **content}


def deployment(
    name: str = "shop",
    *,
    replicas: int = 2,
    strategy: Object | None = None,
    kind: str = "Deployment",
    **pod: Any,  # noqa: ANN401
) -> Object:
    container = {"name": "main", "image": "example.org/shop@sha256:1", **pod.pop("container", {})}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container], **pod}}
    spec = {"replicas": replicas, "template": template, **({"strategy": strategy} if strategy else {})}
    return item(kind, name, "apps/v1", spec=spec)


# --- what a rollback does --------------------------------------------------------------------------------------------


def test_a_rollback_writes_what_the_release_changes_and_removes() -> None:
    same, changed, removed = item("Secret", "same"), item("ConfigMap", "a", data={"x": "1"}), item("Service", "gone")
    candidate = [same, item("ConfigMap", "a", data={"x": "2"}), item("ConfigMap", "new")]
    assert restored([same, changed, removed], candidate) == [changed, removed]
    assert restored([same], [same]) == []


def test_only_pods_whose_template_changes_are_started_again() -> None:
    base = [
        deployment("same"),
        deployment("labelled"),
        deployment("changed"),
        deployment("removed"),
        item("Secret", "s"),
    ]
    labelled = {**deployment("labelled"), "metadata": {**deployment("labelled")["metadata"], "annotations": {"a": "b"}}}
    candidate = [deployment("same"), labelled, deployment("changed", container={"image": "other"})]
    assert [workload["metadata"]["name"] for workload in restarted(base, candidate)] == ["changed", "removed"]


def test_an_object_under_another_version_of_its_group_is_the_same_one() -> None:
    old = item("HorizontalPodAutoscaler", "shop", "autoscaling/v1")
    assert restored([old], [item("HorizontalPodAutoscaler", "shop", "autoscaling/v2")]) == [old]
    assert restarted([old], []) == []


# --- references ------------------------------------------------------------------------------------------------------

EVERYWHERE = deployment(
    container={
        "envFrom": [{"configMapRef": {"name": "from"}}, {"secretRef": {"name": "hidden"}}],
        "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "b"}}},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "password", "key": "c"}}},
            {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "E", "value": "plain"},
        ],
    },
    initContainers=[{"name": "init", "image": "i", "envFrom": [{"configMapRef": {"name": "init"}}]}],
    volumes=[
        {"name": "a", "configMap": {"name": "files", "items": [{"key": "f", "path": "f"}]}},
        {"name": "b", "secret": {"secretName": "certificate"}},
        {"name": "c", "projected": {"sources": [{"secret": {"name": "token"}}, {"configMap": {"name": "root"}}]}},
        {"name": "d", "emptyDir": {}},
    ],
)


def test_references_are_found_wherever_pods_have_them() -> None:
    found = {str(reference.ref): set(reference.keys) for reference in references([EVERYWHERE], [EVERYWHERE])}
    assert found == {
        "configmap/from": set(),
        "secret/hidden": set(),
        "configmap/settings": {"a", "b"},
        "secret/password": {"c"},
        "configmap/init": set(),
        "configmap/files": {"f"},
        "secret/certificate": set(),
        "secret/token": set(),
        "configmap/root": set(),
    }


def test_what_is_restored_with_them_or_optional_is_not_needed_before() -> None:
    optional = {"configMapRef": {"name": "maybe", "optional": True}}
    workload = deployment(container={"envFrom": [optional, {"configMapRef": {"name": "own"}}]})
    assert references([workload], [workload, item("ConfigMap", "own")]) == []


@pytest.mark.parametrize(
    ("live", "summary"),
    [
        (None, "configmap/settings does not exist"),
        (item("ConfigMap", "settings", data={"a": "1"}), "configmap/settings has no key b"),
        (item("ConfigMap", "settings"), "configmap/settings has no key a, b"),
    ],
)
def test_what_is_missing_is_named_with_the_workload(live: Object | None, summary: str) -> None:
    reference = next(r for r in references([EVERYWHERE], [EVERYWHERE]) if r.ref.name == "settings")
    finding = missing(reference, live)
    assert finding is not None
    assert finding.obstacle is Obstacle.REFERENCE
    assert finding.where == "deployment/shop"
    assert summary in finding.summary


def test_a_reference_that_is_complete_is_no_finding() -> None:
    reference = next(r for r in references([EVERYWHERE], [EVERYWHERE]) if r.ref.name == "settings")
    assert missing(reference, item("ConfigMap", "settings", data={"a": "1"}, binaryData={"b": "MQ=="})) is None
    assert reference.ref == Ref("v1", "ConfigMap", "shop", "settings")


# --- quotas ----------------------------------------------------------------------------------------------------------


def sized(memory: str, **changes: Any) -> Object:  # noqa: ANN401
    return deployment(container={"resources": {"requests": {"memory": memory, "cpu": "100m"}}}, **changes)


def quota(hard: dict[str, str], used: dict[str, str], **spec: object) -> Object:
    return item("ResourceQuota", "team", spec=spec, status={"hard": hard, "used": used})


def exceeded(quotas: list[Object], base: Object, candidate: Object | None) -> list[str]:
    after = [candidate] if candidate else []
    findings = quota_findings(quotas, [base], [base], after)
    assert all(finding.obstacle is Obstacle.QUOTA for finding in findings)
    return [finding.summary for finding in findings]


def test_the_old_pods_may_not_fit_beside_the_new_ones() -> None:
    """Two old pods of 1 Gi run; the release's two pods take 0.5 Gi each; the way back has one of 1 Gi beside them."""
    base, candidate = sized("1Gi"), sized("512Mi")
    assert exceeded([quota({"requests.memory": "2Gi"}, {"requests.memory": "2Gi"})], base, candidate) == []
    others = quota({"requests.memory": "4Gi"}, {"requests.memory": "4Gi"})  # 2 Gi are of another application
    assert exceeded([others], base, candidate) == []
    assert exceeded([quota({"pods": "2"}, {"pods": "2"})], base, candidate) == [
        "a rollback needs 3 of pods at its peak, and the quota allows 2"
    ]
    larger = sized("2Gi")  # 2 * 2 Gi of the release, and 1 Gi beside them
    assert exceeded([quota({"memory": "4Gi"}, {"memory": "2Gi"})], base, larger) == [
        "a rollback needs 5368709120 of memory at its peak, and the quota allows 4294967296"
    ]
    assert exceeded([quota({"memory": "5Gi"}, {"memory": "2Gi"})], base, larger) == []


def test_a_quota_that_was_lowered_under_what_runs_lets_no_pod_start_again() -> None:
    lowered = quota({"cpu": "150m"}, {"cpu": "200m"})
    assert exceeded([lowered], sized("1Gi", kind="StatefulSet"), sized("2Gi", kind="StatefulSet")) != []
    assert exceeded([lowered], sized("1Gi"), None) != []


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"type": "Recreate"}},
        {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}},
        {"replicas": 4},
        {"replicas": 0},
        {"kind": "StatefulSet"},
    ],
)
def test_where_an_old_pod_ends_first_no_room_is_needed(changes: dict[str, Any]) -> None:
    full = quota({"pods": "4"}, {"pods": "4"})
    assert exceeded([full], sized("1Gi", **changes), sized("2Gi", **changes)) == []


def test_a_quota_for_some_pods_only_and_one_for_other_things_are_left_out() -> None:
    full: tuple[dict[str, str], dict[str, str]] = ({"pods": "2"}, {"pods": "2"})
    some = [quota(*full, scopes=["BestEffort"]), quota(*full, scopeSelector={"matchExpressions": []})]
    assert exceeded(some, sized("1Gi"), sized("2Gi")) == []
    assert exceeded([quota({"services": "1"}, {"services": "2"})], sized("1Gi"), sized("2Gi")) == []


def test_where_no_pod_is_started_again_no_quota_matters() -> None:
    assert quota_findings([quota({"pods": "1"}, {"pods": "2"})], [], [sized("1Gi")], [sized("1Gi")]) == []


def test_a_pod_uses_its_containers_together_or_its_largest_init_container() -> None:
    init = [{"name": "init", "image": "i", "resources": {"limits": {"memory": "3Gi"}}}]
    base = sized("1Gi", replicas=1, initContainers=init)
    tight = quota({"requests.memory": "5Gi"}, {"requests.memory": "3Gi"})
    assert exceeded([tight], base, sized("1Gi", replicas=1)) == []  # 1 Gi of the release, and 3 Gi beside it
    assert exceeded([tight], base, sized("3Gi", replicas=1)) != []
