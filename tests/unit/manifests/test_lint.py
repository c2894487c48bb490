"""What will lose requests is found from the manifests alone, and nothing else is reported."""

# ruff: noqa: FBT001  a parameter of a test is a row of its table
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


class Objects:
    """A set of objects without a finding, of which a test changes one field."""

    def __init__(self) -> None:
        self.deployment, self.service, self.budget = yaml.safe_load_all(GOOD)
        self.more: list[Any] = []

    @property
    def pod(self) -> Any:  # noqa: ANN401
        return self.deployment["spec"]["template"]["spec"]

    @property
    def container(self) -> Any:  # noqa: ANN401
        return self.pod["containers"][0]

    def rules(self) -> list[Rule]:
        return [finding.rule for finding in lint([self.deployment, self.service, self.budget, *self.more])]


@pytest.fixture
def good() -> Objects:
    return Objects()


def test_a_careful_set_has_no_findings(good: Objects) -> None:
    assert good.rules() == []


def test_a_workload_without_a_service_has_no_findings(good: Objects) -> None:
    del good.container["readinessProbe"], good.container["lifecycle"]
    good.deployment["spec"]["strategy"] = {"type": "Recreate"}
    good.service = {"kind": "ConfigMap"}
    assert good.rules() == []


def test_a_workload_without_replicas_has_no_findings(good: Objects) -> None:
    del good.container["readinessProbe"]
    good.deployment["spec"]["replicas"] = 0
    assert good.rules() == []


# --- start and end of a pod ------------------------------------------------------------------------------------------


def test_no_readiness_probe(good: Objects) -> None:
    del good.container["readinessProbe"]
    (finding,) = lint([good.deployment, good.service, good.budget])
    assert (finding.rule, finding.where) == (Rule.NO_READINESS, "deployment/web")
    assert "'main'" in finding.summary
    assert "readinessProbe" in finding.fix


@pytest.mark.parametrize("instead", ["startupProbe", "readinessGates"])
def test_a_startup_probe_or_a_readiness_gate_delays_requests_as_well(good: Objects, instead: str) -> None:
    del good.container["readinessProbe"]
    if instead == "startupProbe":
        good.container["startupProbe"] = {"tcpSocket": {"port": 8080}}
    else:
        good.pod["readinessGates"] = [{"conditionType": "balancer"}]
    assert good.rules() == []


@pytest.mark.parametrize("hook", [None, {}, {"preStop": {"sleep": {"seconds": 0}}}, {"postStart": {"exec": {}}}])
def test_no_pre_stop_hook_that_waits(good: Objects, hook: object) -> None:
    good.container["lifecycle"] = hook
    assert good.rules() == [Rule.NO_PRE_STOP]


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
def test_any_hook_that_waits_is_enough(good: Objects, hook: object) -> None:
    good.container["lifecycle"] = {"preStop": hook}
    assert good.rules() == []


@pytest.mark.parametrize(
    ("hook", "grace", "early"),
    [
        ({"sleep": {"seconds": 30}}, None, True),
        ({"sleep": {"seconds": 29}}, None, False),
        ({"exec": {"command": ["sh", "-c", "sleep 15"]}}, 10, True),
        ({"exec": {"command": ["sleep", "0.5"]}}, 1, False),
        ({"exec": {"command": ["sleep", "2m"]}}, 60, False),  # an unreadable duration is not reported
        ({"exec": {"command": ["/app/drain"]}}, 0, True),
    ],
)
def test_a_pre_stop_wait_longer_than_the_grace_period(
    good: Objects, hook: object, grace: int | None, early: bool
) -> None:
    good.container["lifecycle"] = {"preStop": hook}
    if grace is not None:
        good.pod["terminationGracePeriodSeconds"] = grace
    assert good.rules() == ([Rule.KILLED_EARLY] if early else [])


def test_only_the_container_that_serves_needs_probes(good: Objects) -> None:
    good.pod["containers"].append({"name": "log-shipper"})
    assert good.rules() == []
    good.service["spec"]["ports"][0]["targetPort"] = 8080
    assert good.rules() == []
    good.service["spec"]["ports"][0]["targetPort"] = (
        9999  # no container declares it: the one with a probe is the likely server
    )
    assert good.rules() == []


def test_a_sidecar_that_serves_needs_probes(good: Objects) -> None:
    good.container["ports"] = []
    good.pod["initContainers"] = [
        {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 80}]}
    ]
    assert good.rules() == [Rule.NO_READINESS, Rule.NO_PRE_STOP]


# --- pods that are unavailable at once -------------------------------------------------------------------------------


def test_recreate(good: Objects) -> None:
    good.deployment["spec"]["strategy"] = {"type": "Recreate"}
    assert good.rules() == [Rule.RECREATE]


@pytest.mark.parametrize(
    ("replicas", "rolling", "reported"),
    [
        (1, {}, False),  # 25 % of one: none unavailable, one more
        (1, {"maxUnavailable": 1}, True),
        (1, {"maxUnavailable": "100%"}, True),
        (1, {"maxSurge": 0}, True),  # 25 % rounds down to none; with both none, one is unavailable
        (1, {"maxSurge": "0%", "maxUnavailable": "25%"}, True),
        (1, {"maxSurge": 1, "maxUnavailable": 0}, False),
        (3, {"maxUnavailable": 2}, False),
        (3, {"maxUnavailable": "99%"}, False),
        (3, {"maxUnavailable": 3}, True),
        (4, {"maxUnavailable": "100%"}, True),
    ],
)
def test_all_unavailable_at_once(good: Objects, replicas: int, rolling: object, reported: bool) -> None:
    good.deployment["spec"].update(replicas=replicas, strategy={"type": "RollingUpdate", "rollingUpdate": rolling})
    good.budget = {"kind": "ConfigMap"}
    assert (Rule.ALL_AT_ONCE in good.rules()) is reported


def test_a_stateful_set_with_a_single_replica(good: Objects) -> None:
    good.deployment.update(kind="StatefulSet")
    assert good.rules() == []
    del good.deployment["spec"]["replicas"]
    good.budget = {"kind": "ConfigMap"}
    assert good.rules() == [Rule.ALL_AT_ONCE]


def test_the_minimum_of_an_autoscaler_counts_as_the_number_of_replicas(good: Objects) -> None:
    del good.deployment["spec"]["replicas"]
    good.deployment["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 1}}
    scaler = {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 3}
    good.more = [{"kind": "HorizontalPodAutoscaler", "metadata": {"name": "web", "namespace": "n"}, "spec": scaler}]
    assert good.rules() == []
    scaler["minReplicas"] = 1
    assert Rule.ALL_AT_ONCE in good.rules()


@pytest.mark.parametrize(
    ("replicas", "spec", "rules"),
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
def test_a_budget_that_allows_no_eviction(
    good: Objects, replicas: int, spec: dict[str, Any], rules: list[Rule]
) -> None:
    good.deployment["spec"]["replicas"] = replicas
    good.budget["spec"] = {"selector": good.budget["spec"]["selector"], **spec}
    assert good.rules() == rules


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
def test_no_budget_for_these_pods(good: Objects, selector: object, namespace: str, missing: bool) -> None:
    good.budget["spec"]["selector"] = selector
    good.budget["metadata"]["namespace"] = namespace
    assert good.rules() == ([Rule.NO_BUDGET] if missing else [])


# --- services --------------------------------------------------------------------------------------------------------


def test_a_service_whose_selector_matches_no_pods(good: Objects) -> None:
    good.service["spec"]["selector"] = {"app": "wbe"}
    (finding,) = lint([good.deployment, good.service, good.budget])
    assert (finding.rule, finding.where) == (Rule.NO_PODS, "service/web")
    assert "selector app=wbe matches no pod template" in finding.summary


@pytest.mark.parametrize("selector", [None, {}])
def test_a_service_without_a_selector_has_no_findings(good: Objects, selector: object) -> None:
    good.service["spec"]["selector"] = selector
    assert good.rules() == []


def test_an_external_name_has_its_pods_elsewhere_whatever_its_selector(good: Objects) -> None:
    good.service["spec"] |= {"type": "ExternalName", "externalName": "db.example.com", "selector": {"app": "wbe"}}
    assert good.rules() == []


def test_pods_of_any_kind_of_workload_are_known(good: Objects) -> None:
    good.deployment.update(apiVersion="argoproj.io/v1alpha1", kind="Rollout")
    assert good.rules() == []
    bare = {"kind": "Pod", "metadata": {"name": "p", "namespace": "n", "labels": {"app": "p"}}}
    good.more = [
        {**bare, "spec": {"containers": [copy.deepcopy(good.container)]}},
        {"kind": "Service", "metadata": {"name": "p", "namespace": "n"}, "spec": {"selector": {"app": "p"}}},
    ]
    assert good.rules() == []


def test_a_target_port_that_no_container_declares(good: Objects) -> None:
    good.service["spec"]["ports"][0]["targetPort"] = "web"
    (finding,) = lint([good.deployment, good.service, good.budget])
    assert finding.rule is Rule.NO_PORT
    assert "use one of the existing: http" in finding.fix


def test_a_port_number_need_not_be_declared(good: Objects) -> None:
    good.service["spec"]["ports"][0]["targetPort"] = 8080
    del good.container["ports"]
    assert good.rules() == []


def test_pods_that_are_not_ready_are_published_only_for_headless_services(good: Objects) -> None:
    good.service["spec"]["publishNotReadyAddresses"] = True
    assert good.rules() == [Rule.NOT_READY]
    good.service["spec"]["clusterIP"] = "None"
    assert good.rules() == []


# --- all of them -----------------------------------------------------------------------------------------------------


def test_the_sample_application_loses_no_request_in_production() -> None:
    findings = lint([yaml.safe_load(path.read_text()) for path in (SHOP / "production").glob("*.yaml")])
    assert {finding.rule for finding in findings} <= {Rule.NO_BUDGET}


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(3)))
def test_the_order_of_objects_does_not_matter(order: list[int]) -> None:
    changed = Objects()
    del changed.container["readinessProbe"], changed.container["lifecycle"]
    items = [changed.deployment, changed.service, changed.budget]
    assert set(lint([items[n] for n in order])) == set(lint(items))


_PARSED = list(yaml.safe_load_all(GOOD))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "50%", "http", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["app", "name", "spec"]), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_malformed_objects_do_not_crash_the_linter(data: st.DataObject) -> None:
    """Any value in any field: the API server refuses it later, the linter must not crash."""
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
