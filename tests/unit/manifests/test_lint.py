"""What will lose requests is named from the manifests alone, and what will not is left in peace."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.manifests.lint import Rule, lint

SHOP = Path(__file__).resolve().parents[3] / "examples/shop/k8s"
GOOD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: n}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec:
      containers:
        - name: main
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /, port: http}}
          lifecycle: {preStop: {sleep: {seconds: 5}}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: n}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: n}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
"""


class Set:
    """A set of objects that loses nothing, to be spoiled in one place."""

    def __init__(self) -> None:
        self.deployment, self.service, self.budget = yaml.safe_load_all(GOOD)
        self.more: list[Any] = []

    @property
    def pod(self) -> Any:  # noqa: ANN401
        return self.deployment["spec"]["template"]["spec"]

    @property
    def container(self) -> Any:  # noqa: ANN401
        return self.pod["containers"][0]

    def named(self) -> list[Rule]:
        return [each.hazard for each in lint([self.deployment, self.service, self.budget, *self.more])]


@pytest.fixture
def good() -> Set:
    return Set()


def test_a_careful_set_has_no_weakness(good: Set) -> None:
    assert good.named() == []


def test_a_workload_that_no_service_calls_has_no_user_to_lose(good: Set) -> None:
    del good.container["readinessProbe"], good.container["lifecycle"]
    good.deployment["spec"]["strategy"] = {"type": "Recreate"}
    good.service = {"kind": "ConfigMap"}
    assert good.named() == []


def test_a_workload_without_pods_loses_nothing(good: Set) -> None:
    del good.container["readinessProbe"]
    good.deployment["spec"]["replicas"] = 0
    assert good.named() == []


# --- the beginning and the end of a pod ------------------------------------------------------------------------------


def test_no_readiness_probe(good: Set) -> None:
    del good.container["readinessProbe"]
    (found,) = lint([good.deployment, good.service, good.budget])
    assert (found.hazard, found.where) == (Rule.NO_READINESS, "deployment/web")
    assert "'main'" in found.summary
    assert "readinessProbe" in found.fix


@pytest.mark.parametrize("instead", ["startupProbe", "readinessGates"])
def test_a_startup_probe_or_a_gate_keeps_a_new_pod_waiting_too(good: Set, instead: str) -> None:
    del good.container["readinessProbe"]
    if instead == "startupProbe":
        good.container["startupProbe"] = {"tcpSocket": {"port": 8080}}
    else:
        good.pod["readinessGates"] = [{"conditionType": "balancer"}]
    assert good.named() == []


@pytest.mark.parametrize("hook", [None, {}, {"preStop": {"sleep": {"seconds": 0}}}, {"postStart": {"exec": {}}}])
def test_no_wait_before_the_end(good: Set, hook: object) -> None:
    good.container["lifecycle"] = hook
    assert good.named() == [Rule.NO_PRE_STOP]


@pytest.mark.parametrize(
    "hook",
    [
        {"sleep": {"seconds": 1}},
        {"exec": {"command": ["sleep", "5"]}},
        {"exec": {"command": ["sh", "-c", "nginx -s quit; sleep 10s"]}},
        {"exec": {"command": ["/app/drain"]}},
        {"httpGet": {"path": "/drain", "port": 8080}},
    ],
)
def test_any_hook_that_waits_is_enough(good: Set, hook: object) -> None:
    good.container["lifecycle"] = {"preStop": hook}
    assert good.named() == []


@pytest.mark.parametrize(
    ("hook", "grace", "early"),
    [
        ({"sleep": {"seconds": 30}}, None, True),
        ({"sleep": {"seconds": 29}}, None, False),
        ({"exec": {"command": ["sh", "-c", "sleep 15"]}}, 10, True),
        ({"exec": {"command": ["sleep", "0.5"]}}, 1, False),
        ({"exec": {"command": ["sleep", "2m"]}}, 60, False),  # what cannot be read accuses nobody
        ({"exec": {"command": ["/app/drain"]}}, 0, True),
    ],
)
def test_killed_before_its_wait_is_over(good: Set, hook: object, grace: int | None, early: bool) -> None:  # noqa: FBT001
    good.container["lifecycle"] = {"preStop": hook}
    if grace is not None:
        good.pod["terminationGracePeriodSeconds"] = grace
    assert good.named() == ([Rule.KILLED_EARLY] if early else [])


def test_only_the_container_that_serves_is_asked_for_probes(good: Set) -> None:
    good.pod["containers"].append({"name": "log-shipper"})
    assert good.named() == []
    good.service["spec"]["ports"][0]["targetPort"] = 8080
    assert good.named() == []
    good.service["spec"]["ports"][0]["targetPort"] = 9999  # not written down whose it is: the careful one's
    assert good.named() == []


def test_a_sidecar_that_serves_is_asked(good: Set) -> None:
    good.container["ports"] = []
    good.pod["initContainers"] = [
        {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 80}]}
    ]
    assert good.named() == [Rule.NO_READINESS, Rule.NO_PRE_STOP]


# --- how many at once ------------------------------------------------------------------------------------------------


def test_recreate(good: Set) -> None:
    good.deployment["spec"]["strategy"] = {"type": "Recreate"}
    assert good.named() == [Rule.RECREATE]


@pytest.mark.parametrize(
    ("replicas", "rolling", "lost"),
    [
        (1, {}, False),  # 25 % of one: none away, one more
        (1, {"maxUnavailable": 1}, True),
        (1, {"maxUnavailable": "100%"}, True),
        (1, {"maxSurge": 0}, True),  # 25 % rounds down to none; both none: one is away
        (1, {"maxSurge": "0%", "maxUnavailable": "25%"}, True),
        (1, {"maxSurge": 1, "maxUnavailable": 0}, False),
        (3, {"maxUnavailable": 2}, False),
        (3, {"maxUnavailable": "99%"}, False),
        (3, {"maxUnavailable": 3}, True),
        (4, {"maxUnavailable": "100%"}, True),
    ],
)
def test_all_away_at_once(good: Set, replicas: int, rolling: object, lost: bool) -> None:  # noqa: FBT001
    good.deployment["spec"].update(replicas=replicas, strategy={"type": "RollingUpdate", "rollingUpdate": rolling})
    good.budget = {"kind": "ConfigMap"}
    assert (Rule.ALL_AT_ONCE in good.named()) is lost


def test_a_single_pod_of_a_stateful_set_has_no_substitute(good: Set) -> None:
    good.deployment.update(kind="StatefulSet")
    assert good.named() == []
    del good.deployment["spec"]["replicas"]
    good.budget = {"kind": "ConfigMap"}
    assert good.named() == [Rule.ALL_AT_ONCE]


def test_an_autoscaler_says_how_many_there_are(good: Set) -> None:
    del good.deployment["spec"]["replicas"]
    good.deployment["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 1}}
    scaler = {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 3}
    good.more = [{"kind": "HorizontalPodAutoscaler", "metadata": {"name": "web", "namespace": "n"}, "spec": scaler}]
    assert good.named() == []
    scaler["minReplicas"] = 1
    assert Rule.ALL_AT_ONCE in good.named()


@pytest.mark.parametrize(
    ("replicas", "spec", "named"),
    [
        (2, {"maxUnavailable": 1}, []),
        (2, {"minAvailable": 1}, []),
        (2, {"minAvailable": "50%"}, []),
        (3, {"maxUnavailable": "10%"}, []),  # rounds up
        (2, {"minAvailable": 2}, [Rule.BLOCKING_BUDGET]),
        (2, {"minAvailable": "51%"}, [Rule.BLOCKING_BUDGET]),  # rounds up, too
        (2, {"maxUnavailable": 0}, [Rule.BLOCKING_BUDGET]),
        (2, {"maxUnavailable": "0%"}, [Rule.BLOCKING_BUDGET]),
        (1, {"minAvailable": 1}, [Rule.BLOCKING_BUDGET]),
        (1, {}, []),
    ],
)
def test_a_budget_that_lets_nobody_go(good: Set, replicas: int, spec: dict[str, Any], named: list[Rule]) -> None:
    good.deployment["spec"]["replicas"] = replicas
    good.budget["spec"] = {"selector": good.budget["spec"]["selector"], **spec}
    assert good.named() == named


@pytest.mark.parametrize(
    ("selector", "namespace", "missing"),
    [
        ({}, "n", False),
        (None, "n", True),
        ({"matchLabels": {"app": "web"}}, "other", True),
        ({"matchLabels": {"app": "other"}}, "n", True),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "api"]}]}, "n", False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, "n", True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, "n", False),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, "n", True),
        ({"matchExpressions": [{"key": "tier", "operator": "Resembles"}]}, "n", True),
    ],
)
def test_no_budget_for_these_pods(good: Set, selector: object, namespace: str, missing: bool) -> None:  # noqa: FBT001
    good.budget["spec"]["selector"] = selector
    good.budget["metadata"]["namespace"] = namespace
    assert good.named() == ([Rule.NO_BUDGET] if missing else [])


# --- services --------------------------------------------------------------------------------------------------------


def test_a_service_whose_selector_matches_no_pods(good: Set) -> None:
    good.service["spec"]["selector"] = {"app": "wbe"}
    (found,) = lint([good.deployment, good.service, good.budget])
    assert (found.hazard, found.where) == (Rule.NO_PODS, "service/web")
    assert "app=wbe" in found.summary


@pytest.mark.parametrize("selector", [None, {}])
def test_a_service_without_selector_has_its_pods_elsewhere(good: Set, selector: object) -> None:
    good.service["spec"]["selector"] = selector
    assert good.named() == []


def test_pods_of_any_kind_of_workload_are_known(good: Set) -> None:
    good.deployment.update(apiVersion="argoproj.io/v1alpha1", kind="Rollout")
    assert good.named() == []
    bare = {"kind": "Pod", "metadata": {"name": "p", "namespace": "n", "labels": {"app": "p"}}}
    good.more = [
        {**bare, "spec": {"containers": [copy.deepcopy(good.container)]}},
        {"kind": "Service", "metadata": {"name": "p", "namespace": "n"}, "spec": {"selector": {"app": "p"}}},
    ]
    assert good.named() == []


def test_a_target_port_that_no_container_names(good: Set) -> None:
    good.service["spec"]["ports"][0]["targetPort"] = "web"
    (found,) = lint([good.deployment, good.service, good.budget])
    assert found.hazard is Rule.NO_PORT
    assert "there are: http" in found.fix


def test_a_port_number_need_not_be_written_down(good: Set) -> None:
    good.service["spec"]["ports"][0]["targetPort"] = 8080
    del good.container["ports"]
    assert good.named() == []


def test_pods_that_are_not_ready_are_published_only_for_headless_services(good: Set) -> None:
    good.service["spec"]["publishNotReadyAddresses"] = True
    assert good.named() == [Rule.NOT_READY]
    good.service["spec"]["clusterIP"] = "None"
    assert good.named() == []


# --- all of them -----------------------------------------------------------------------------------------------------


def test_the_sample_application_keeps_every_request_of_production() -> None:
    found = lint([yaml.safe_load(path.read_text()) for path in (SHOP / "production").glob("*.yaml")])
    assert {each.hazard for each in found} <= {Rule.NO_BUDGET}


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(3)))
def test_the_order_of_objects_does_not_matter(order: list[int]) -> None:
    spoiled = Set()
    del spoiled.container["readinessProbe"], spoiled.container["lifecycle"]
    items = [spoiled.deployment, spoiled.service, spoiled.budget]
    assert set(lint([items[n] for n in order])) == set(lint(items))


_PARSED = list(yaml.safe_load_all(GOOD))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "50%", "http", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["app", "name", "spec"]), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_objects_that_lack_anything_are_survived(data: st.DataObject) -> None:
    """Whatever stands in one place of a set, somebody else complains about it, and not we by crashing."""
    items = copy.deepcopy(_PARSED)
    place: Any = data.draw(st.sampled_from(items))
    while True:
        key = data.draw(
            st.sampled_from(sorted(place)) if isinstance(place, dict) else st.sampled_from(range(len(place)))
        )
        if not (isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(_JSON)
    lint(items)
