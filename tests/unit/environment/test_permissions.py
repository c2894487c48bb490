"""Which verbs an environment needs."""

import pytest

from prefect_cd.environment.permissions import Permission, cluster_wide, permissions
from prefect_cd.kube.builtin import builtin_kind
from prefect_cd.kube.resources import Kind
from prefect_cd.pipeline.models import Environment, Gate, HttpCheck, Probe


def environment(**settings: object) -> Environment:
    return Environment.model_validate({"name": "staging", "namespace": "shop", "manifests": "k8s", **settings})


def kinds(*names: str) -> list[Kind]:
    found = [builtin_kind(*name.rpartition("/")[::2]) for name in names]
    return [kind for kind in found if kind]


def verbs(needed: list[Permission], resource: str, *, required: bool = True) -> str:
    chosen = [item for item in needed if item.resource == resource and item.required == required]
    return " ".join(sorted(item.verb for item in chosen))


def test_every_verb_of_a_resource_is_there_once() -> None:
    needed = permissions(kinds("v1/Secret", "v1/ConfigMap"), environment())
    keys = [(item.group, item.resource, item.verb) for item in needed]
    assert len(keys) == len(set(keys))
    assert verbs(needed, "secrets") == "create delete get list patch"
    assert verbs(needed, "leases") == "create get update"


def test_a_verb_is_required_if_any_of_its_purposes_requires_it() -> None:
    assert verbs(permissions([], environment()), "configmaps", required=False) == "get"
    needed = permissions(kinds("v1/ConfigMap"), environment())
    assert verbs(needed, "configmaps") == "create delete get list patch"
    assert verbs(needed, "configmaps", required=False) == ""


def test_only_what_has_a_rollout_is_watched_and_a_service_only_in_front_of_it() -> None:
    alone = permissions(kinds("v1/Service", "v1/ConfigMap"), environment())
    assert "watch" not in {item.verb for item in alone}
    needed = permissions(kinds("v1/Service", "v1/ConfigMap", "apps/v1/Deployment"), environment())
    watched = {item.resource for item in needed if item.verb == "watch"}
    assert watched == {"deployments", "services", "pods", "events", "replicasets", "endpointslices"}
    assert all(item.required for item in needed if item.verb == "watch")


@pytest.mark.parametrize(
    ("kind", "revisions"),
    [
        ("apps/v1/Deployment", {"replicasets"}),
        ("apps/v1/StatefulSet", {"controllerrevisions"}),
        ("apps/v1/DaemonSet", {"controllerrevisions"}),
        ("batch/v1/Job", set()),
        ("v1/Pod", set()),
    ],
)
def test_a_workload_needs_its_pods_their_events_and_its_revisions(kind: str, revisions: set[str]) -> None:
    needed = permissions(kinds(kind), environment())
    listed = {item.resource for item in needed if item.verb == "watch"}
    assert listed == {"pods", "events", *(item.plural for item in kinds(kind)), *revisions}


def test_autoscalers_are_listed_for_what_they_can_scale() -> None:
    needed = permissions(kinds("apps/v1/Deployment"), environment())
    assert verbs(needed, "horizontalpodautoscalers", required=False) == "list"
    assert verbs(permissions(kinds("batch/v1/Job"), environment()), "horizontalpodautoscalers", required=False) == ""


def test_a_custom_resource_is_watched_and_has_no_pods() -> None:
    basket = Kind("example.org/v1", "Basket", "baskets", namespaced=True)
    needed = permissions([basket], environment())
    assert verbs(needed, "baskets") == "create delete get list patch watch"
    assert verbs(needed, "pods") == ""


def test_what_holds_data_is_never_deleted() -> None:
    needed = permissions(kinds("v1/PersistentVolumeClaim"), environment())
    assert verbs(needed, "persistentvolumeclaims") == "create get list patch"


def test_what_an_earlier_release_brought_in_may_have_to_be_removed() -> None:
    needed = permissions(kinds("v1/ConfigMap"), environment(), known=kinds("batch/v1/CronJob"))
    assert verbs(needed, "cronjobs") == "delete get list patch"


def test_cluster_scoped_kinds_are_asked_for_in_the_whole_cluster() -> None:
    needed = permissions(kinds("rbac.authorization.k8s.io/v1/ClusterRole", "v1/ConfigMap"), environment())
    assert {item.resource for item in needed if not item.namespaced} == {"clusterroles"}


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"url": "service/shop", "gates": [Gate(name="smoke", http=HttpCheck())]}, True),
        ({"url": "service/shop", "probe": Probe()}, True),
        ({"url": "service/shop"}, False),
        ({"url": "https://shop.example.org", "gates": [Gate(name="smoke", http=HttpCheck())]}, False),
    ],
)
def test_only_requests_to_a_service_need_to_find_it(settings: dict[str, object], *, needs: bool) -> None:
    needed = permissions([], environment(**settings))
    assert verbs(needed, "services") == ("get" if needs else "")
    assert verbs(needed, "endpointslices") == ("list" if needs else "")
    assert ("nodes" in {item.resource for item in cluster_wide([environment(**settings)])}) is needs


def test_what_is_optional_for_the_cluster_is_required_nowhere() -> None:
    assert not any(item.required or item.namespaced for item in cluster_wide([environment()]))
