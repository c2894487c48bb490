"""Which objects are related to a workload, and which are not."""

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.watch.related import WatchedWorkload, assign_services, has_rollout, is_owned_by, selects_pods_of


@pytest.mark.parametrize(
    ("api_version", "kind", "expected"),
    [
        ("apps/v1", "Deployment", True),
        ("apps/v1", "StatefulSet", True),
        ("apps/v1", "DaemonSet", True),
        ("batch/v1", "Job", True),
        ("v1", "Pod", True),
        ("batch/v1", "CronJob", False),
        ("v1", "ConfigMap", False),
        ("v1", "Service", False),
        ("networking.k8s.io/v1", "Ingress", False),
        ("policy/v1", "PodDisruptionBudget", False),
        ("autoscaling/v2", "HorizontalPodAutoscaler", False),
        ("rbac.authorization.k8s.io/v1", "Role", False),
        ("acid.zalan.do/v1", "postgresql", True),
    ],
)
def test_workloads_and_custom_resources_have_a_rollout(api_version: str, kind: str, expected: bool) -> None:  # noqa: FBT001
    assert has_rollout({"apiVersion": api_version, "kind": kind}) == expected


def test_an_object_is_owned_by_its_owner_references_alone() -> None:
    assert is_owned_by({"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b"}]}}, "b")
    assert not is_owned_by({"metadata": {"ownerReferences": [{"uid": "a"}]}}, "b")
    assert not is_owned_by({"metadata": {}}, "b")


def an_object(kind: str, name: str, labels: dict[str, str] | None = None, **more: object) -> Object:
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": labels}
    return {"apiVersion": "apps/v1" if kind == "Deployment" else "v1", "kind": kind, "metadata": metadata, **more}


def deployment(name: str, **labels: str) -> Object:
    return an_object("Deployment", name, spec={"template": {"metadata": {"labels": labels}}})


def service(name: str, **selector: str) -> Object:
    return an_object("Service", name, spec={"selector": selector})


SHOP = WatchedWorkload(
    Ref("apps/v1", "Deployment", "shop", "shop"), {"matchLabels": {"app": "shop"}}, frozenset({"front"})
)


@pytest.mark.parametrize(
    ("item", "affected"),
    [
        (an_object("Deployment", "shop"), True),
        (an_object("Deployment", "other"), False),
        (an_object("StatefulSet", "shop"), False),
        (an_object("Pod", "x", {"app": "shop", "pod-template-hash": "1"}), True),
        (an_object("Pod", "x", {"app": "other"}), False),
        (an_object("Pod", "x"), False),
        (an_object("ReplicaSet", "x", {"app": "shop"}), True),
        (an_object("Service", "front"), True),
        (an_object("EndpointSlice", "front-x", {"kubernetes.io/service-name": "front"}), True),
        (an_object("EndpointSlice", "back-x", {"kubernetes.io/service-name": "back"}), False),
        (an_object("Event", "e", involvedObject={"name": "shop-5d-x2z"}), True),
        (an_object("Event", "e", involvedObject={"name": "other-5d-x2z"}), False),
        (an_object("Event", "e"), False),
    ],
)
def test_a_change_affects_the_workload_that_it_is_related_to(item: Object, affected: bool) -> None:  # noqa: FBT001
    assert SHOP.is_affected_by(item) == affected


def test_a_change_in_another_namespace_affects_no_workload_here() -> None:
    item = an_object("Pod", "x", {"app": "shop"})
    assert not SHOP.is_affected_by({**item, "metadata": {**item["metadata"], "namespace": "elsewhere"}})


def test_an_event_about_a_pod_whose_name_was_cut_affects_its_workload() -> None:
    long = "a-deployment-with-a-name-that-is-longer-than-any-pod-may-have-it"
    watched = WatchedWorkload(Ref("apps/v1", "Deployment", "shop", long), {})
    assert watched.is_affected_by(an_object("Event", "e", involvedObject={"name": f"{long[:58]}x2z9q"}))


def test_a_service_selects_the_pods_of_a_workload_by_their_template() -> None:
    assert selects_pods_of(service("s", app="shop"), deployment("d", app="shop", tier="web"))
    assert not selects_pods_of(service("s", app="shop", tier="web"), deployment("d", app="shop"))
    assert not selects_pods_of(service("s"), deployment("d", app="shop"))
    assert not selects_pods_of(an_object("Service", "s"), an_object("Deployment", "d"))


def test_a_service_is_assessed_with_every_workload_whose_pods_it_selects() -> None:
    blue, green = deployment("blue", app="shop"), deployment("green", app="shop")
    both = service("s", app="shop")
    assert assign_services([both], [blue, green]) == {"deployment/blue": [both], "deployment/green": [both]}


def test_a_service_that_selects_no_pods_is_assessed_with_the_workload_of_its_name_or_else_with_the_first() -> None:
    web, shop, job = deployment("web", app="web"), deployment("shop", app="shop"), an_object("Job", "once")
    no_pods, same_name = service("no-pods", app="none"), service("shop", app="none")
    assert assign_services([no_pods, same_name], [job, web, shop]) == {
        "deployment/web": [no_pods],
        "deployment/shop": [same_name],
    }
    assert assign_services([no_pods], [job]) == {}


def test_a_service_whose_endpoints_do_not_follow_from_its_selector_belongs_to_no_workload() -> None:
    external = an_object("Service", "external", spec={"type": "ExternalName", "selector": {"app": "shop"}})
    assert not selects_pods_of(external, deployment("shop", app="shop"))
    assert assign_services([service("no-selector"), external], [deployment("shop", app="shop")]) == {}
