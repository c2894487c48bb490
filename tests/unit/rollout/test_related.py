"""What belongs to a workload, and what does not."""

import pytest

from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.rollout.watch.related import WatchedWorkload, assign_services, has_rollout, owned, sends_to


@pytest.mark.parametrize(
    ("api_version", "kind", "watched"),
    [
        ("apps/v1", "Deployment", True),
        ("apps/v1", "StatefulSet", True),
        ("apps/v1", "DaemonSet", True),
        ("batch/v1", "Job", True),
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
def test_workloads_and_custom_objects_are_watched(api_version: str, kind: str, watched: bool) -> None:  # noqa: FBT001
    assert has_rollout({"apiVersion": api_version, "kind": kind}) == watched


def test_what_another_workload_owns_is_not_ours() -> None:
    assert owned({"metadata": {"ownerReferences": [{"uid": "a"}, {"uid": "b"}]}}, "b")
    assert not owned({"metadata": {"ownerReferences": [{"uid": "a"}]}}, "b")
    assert not owned({"metadata": {}}, "b")


def thing(kind: str, name: str, labels: dict[str, str] | None = None, **more: object) -> Object:
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": labels}
    return {"apiVersion": "apps/v1" if kind == "Deployment" else "v1", "kind": kind, "metadata": metadata, **more}


def deployment(name: str, **labels: str) -> Object:
    return thing("Deployment", name, spec={"template": {"metadata": {"labels": labels}}})


def service(name: str, **selector: str) -> Object:
    return thing("Service", name, spec={"selector": selector})


SHOP = WatchedWorkload(
    Ref("apps/v1", "Deployment", "shop", "shop"), {"matchLabels": {"app": "shop"}}, frozenset({"front"})
)


@pytest.mark.parametrize(
    ("item", "concerned"),
    [
        (thing("Deployment", "shop"), True),
        (thing("Deployment", "other"), False),
        (thing("StatefulSet", "shop"), False),
        (thing("Pod", "x", {"app": "shop", "pod-template-hash": "1"}), True),
        (thing("Pod", "x", {"app": "other"}), False),
        (thing("Pod", "x"), False),
        (thing("ReplicaSet", "x", {"app": "shop"}), True),
        (thing("Service", "front"), True),
        (thing("EndpointSlice", "front-x", {"kubernetes.io/service-name": "front"}), True),
        (thing("EndpointSlice", "back-x", {"kubernetes.io/service-name": "back"}), False),
        (thing("Event", "e", involvedObject={"name": "shop-5d-x2z"}), True),
        (thing("Event", "e", involvedObject={"name": "other-5d-x2z"}), False),
        (thing("Event", "e"), False),
    ],
)
def test_a_change_concerns_the_workload_that_it_belongs_to(item: Object, concerned: bool) -> None:  # noqa: FBT001
    assert SHOP.concerns(item) == concerned


def test_what_lies_in_another_namespace_concerns_nobody_here() -> None:
    item = thing("Pod", "x", {"app": "shop"})
    assert not SHOP.concerns({**item, "metadata": {**item["metadata"], "namespace": "elsewhere"}})


def test_an_event_about_a_pod_whose_name_was_cut_is_found_all_the_same() -> None:
    long = "a-deployment-with-a-name-that-is-longer-than-any-pod-may-have-it"
    subject = WatchedWorkload(Ref("apps/v1", "Deployment", "shop", long), {})
    assert subject.concerns(thing("Event", "e", involvedObject={"name": f"{long[:58]}x2z9q"}))


def test_a_service_fronts_the_pods_that_its_selector_takes() -> None:
    assert sends_to(service("s", app="shop"), deployment("d", app="shop", tier="web"))
    assert not sends_to(service("s", app="shop", tier="web"), deployment("d", app="shop"))
    assert not sends_to(service("s"), deployment("d", app="shop"))
    assert not sends_to(thing("Service", "s"), thing("Deployment", "d"))


def test_a_service_is_judged_with_every_workload_that_it_fronts() -> None:
    blue, green = deployment("blue", app="shop"), deployment("green", app="shop")
    both = service("s", app="shop")
    assert assign_services([both], [blue, green]) == {"deployment/blue": [both], "deployment/green": [both]}


def test_a_service_that_leads_nowhere_is_judged_with_its_namesake_or_else_with_the_first() -> None:
    web, shop, job = deployment("web", app="web"), deployment("shop", app="shop"), thing("Job", "once")
    lost, namesake = service("lost", app="nobody"), service("shop", app="nobody")
    assert assign_services([lost, namesake], [job, web, shop]) == {
        "deployment/web": [lost],
        "deployment/shop": [namesake],
    }
    assert assign_services([lost], [job]) == {}


def test_a_service_without_selector_is_not_ours_to_judge() -> None:
    assert assign_services([service("external")], [deployment("shop", app="shop")]) == {}
