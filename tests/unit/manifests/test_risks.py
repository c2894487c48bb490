"""What in a change may give more rights than an application needs."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.risks import RiskKind, risks

PINNED = f"shop@sha256:{'1' * 64}"


def pod(spec: str = "{}", container: str = "{}", kind: str = "Deployment") -> Object:
    containers = [{"name": "main", "image": PINNED, **yaml.safe_load(container)}]
    inner = {"containers": containers, **yaml.safe_load(spec)}
    template = {"metadata": {"labels": {"app": "shop"}}, "spec": inner}
    outer = {
        "Pod": inner,
        "CronJob": {"jobTemplate": {"spec": {"template": template}}},
        "Rollout": {"strategy": {"steps": [template]}},
    }.get(kind, {"template": template})
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "shop"}, "spec": outer}


def rbac(text: str) -> Object:
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "r"}, **yaml.safe_load(text)}


def item(kind: str, text: str = "{}", api_version: str = "v1") -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}, **yaml.safe_load(text)}


CASES = [
    (pod("{hostNetwork: true}"), "its pods share the network of their node (hostNetwork)"),
    (pod("{hostPID: true}"), "its pods share the processes of their node (hostPID)"),
    (pod("{hostIPC: true}"), "its pods share the shared memory of their node (hostIPC)"),
    (pod("{volumes: [{name: v, hostPath: {path: /etc}}]}"), "its pods reach '/etc' of their node"),
    (
        pod("{volumes: [{name: v, image: {reference: 'tools:1'}}]}"),
        "volume 'v' runs 'tools:1', which a tag names: it may become another image",
    ),
    (
        pod("{volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t, audience: vault}}]}}]}"),
        "its pods get a token of their service account for 'vault'",
    ),
    (pod("{automountServiceAccountToken: true}"), "its pods get a token of the service account 'default'"),
    (pod("{serviceAccountName: admin}"), "its pods get a token of the service account 'admin'"),
    (pod("{securityContext: {runAsUser: 0}}"), "its pods may run as root"),
    (
        pod("{securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}}"),
        "its pods may set 'kernel.msgmax' of the kernel",
    ),
    (pod("{securityContext: {windowsOptions: {hostProcess: true}}}"), "its pods may do all that the node may"),
    (pod("{securityContext: {seLinuxOptions: {type: spc_t}}}"), "its pods may act as spc_t (seLinuxOptions)"),
    (
        pod(container="{securityContext: {privileged: true}}"),
        "container 'main' is privileged: it may do all that its node may",
    ),
    (pod(container="{securityContext: {capabilities: {add: [SYS_ADMIN]}}}"), "gets the capability SYS_ADMIN"),
    (pod(container="{securityContext: {allowPrivilegeEscalation: true}}"), "(allowPrivilegeEscalation)"),
    (pod(container="{securityContext: {procMount: Unmasked}}"), "container 'main' sees all of /proc"),
    (pod(container="{securityContext: {seccompProfile: {type: Unconfined}}}"), "(seccompProfile Unconfined)"),
    (pod(container="{securityContext: {appArmorProfile: {type: Unconfined}}}"), "(appArmorProfile Unconfined)"),
    (pod(container="{securityContext: {runAsNonRoot: false}}"), "container 'main' may run as root"),
    (pod(container="{ports: [{hostPort: 22}]}"), "container 'main' listens at port 22 of its node"),
    (
        pod(container="{image: 'shop:latest'}"),
        "container 'main' runs 'shop:latest', which a tag names: it may become another image",
    ),
    (
        pod("{initContainers: [{name: i, image: x@y, securityContext: {privileged: true}}]}"),
        "container 'i' is privileged",
    ),
    *(
        (pod(container="{securityContext: {privileged: true}}", kind=kind), "container 'main' is privileged")
        for kind in ("Pod", "CronJob", "Rollout")
    ),
    (rbac("{kind: Role, rules: []}"), "has no rules yet"),
    (
        rbac("{kind: Role, rules: [{apiGroups: [''], resources: [pods, secrets], verbs: [get, '*']}]}"),
        "permits *, get on secrets, pods",
    ),
    (
        rbac("{kind: Role, rules: [{apiGroups: [apps], resources: [deployments], verbs: [get], resourceNames: [a]}]}"),
        "permits get on deployments of apps, only a",
    ),
    (rbac("{kind: ClusterRole, rules: [{nonResourceURLs: [/metrics], verbs: [get]}]}"), "permits get on /metrics"),
    (rbac("{kind: ClusterRole, aggregationRule: {clusterRoleSelectors: []}}"), "takes over the rules of other"),
    (
        rbac("{kind: ClusterRole, metadata: {labels: {rbac.authorization.k8s.io/aggregate-to-edit: 'true'}}}"),
        "adds its rules to the ClusterRole 'edit'",
    ),
    (
        rbac(
            "{kind: RoleBinding, roleRef: {kind: ClusterRole, name: admin},"
            " subjects: [{kind: ServiceAccount, namespace: ci, name: robot}]}"
        ),
        "gives ClusterRole 'admin' to ServiceAccount 'ci/robot'",
    ),
    (
        rbac("{kind: RoleBinding, roleRef: {kind: Role, name: a}, subjects: [{kind: Group, name: 'system:masters'}]}"),
        "gives Role 'a' to Group 'system:masters'",
    ),
    (rbac("{kind: RoleBinding, roleRef: {kind: Role, name: a}}"), "gives Role 'a' to nobody yet"),
    (
        item("MutatingWebhookConfiguration", api_version="admissionregistration.k8s.io/v1"),
        "decides about requests to the API server",
    ),
    (item("APIService", api_version="apiregistration.k8s.io/v1"), "decides about requests to the API server"),
    (
        item("CustomResourceDefinition", "{spec: {group: example.org, names: {kind: Widget}}}"),
        "defines the kind 'Widget' of 'example.org' for the whole cluster",
    ),
    (item("NetworkPolicy", api_version="networking.k8s.io/v1"), "decides which traffic of pods is allowed"),
    (item("Service", "{spec: {externalIPs: [192.0.2.1]}}"), "takes the cluster's traffic to the addresses 192.0.2.1"),
    (item("PersistentVolume", "{spec: {hostPath: {path: /}}}"), "offers a folder of a node: '/'"),
    (item("PersistentVolume", "{spec: {local: {path: /data}}}"), "offers a folder of a node: '/data'"),
    (
        item("Secret", "{type: kubernetes.io/service-account-token}"),
        "gets a token of a service account that does not expire",
    ),
]


@pytest.mark.parametrize(("planned", "summary"), CASES, ids=[summary for _, summary in CASES])
def test_a_risk_is_named_when_it_comes(planned: Object, summary: str) -> None:
    (risk,) = risks(None, planned)
    assert summary in risk.summary
    assert risk.new


@pytest.mark.parametrize(
    "planned",
    [
        pod(),
        pod("{hostNetwork: false, automountServiceAccountToken: false, serviceAccountName: shop}"),
        pod("{serviceAccountName: default, securityContext: {runAsUser: 1000, runAsNonRoot: true}}"),
        pod(container="{securityContext: {privileged: false, procMount: Default, capabilities: {drop: [ALL]}}}"),
        pod(container="{ports: [{containerPort: 80}], securityContext: {seccompProfile: {type: RuntimeDefault}}}"),
        item("ConfigMap", "{data: {spec: 'containers: [{securityContext: {privileged: true}}]'}}"),
        item("Service", "{spec: {ports: [{port: 80}]}}"),
        item("Secret", "{type: Opaque}"),
    ],
)
def test_what_is_usual_is_no_risk(planned: Object) -> None:
    assert risks(None, planned) == ()


def test_what_the_live_object_has_already_is_told_apart_and_comes_last() -> None:
    live = pod("{hostIPC: true}", "{securityContext: {privileged: true}}")
    planned = pod("{hostIPC: true, hostPID: true}", "{securityContext: {privileged: true}}")
    found = [(risk.kind, risk.new) for risk in risks(live, planned)]
    assert found == [(RiskKind.PRIVILEGED, False), (RiskKind.HOST_NAMESPACE, True), (RiskKind.HOST_NAMESPACE, False)]


def test_what_is_common_is_named_only_when_it_is_new() -> None:
    common = pod("{serviceAccountName: shop, securityContext: {runAsUser: 0}}", "{image: 'shop:1'}")
    assert {risk.kind for risk in risks(pod(), common)} == {RiskKind.TOKEN, RiskKind.ROOT, RiskKind.IMAGE}
    assert risks(common, common) == ()
    changed = pod("{serviceAccountName: shop, securityContext: {runAsUser: 0}}", "{image: 'shop:2'}")
    assert [risk.kind for risk in risks(common, changed)] == [RiskKind.IMAGE]


def test_a_rule_that_is_new_is_told_apart_from_those_that_a_role_had() -> None:
    rule = "{apiGroups: [''], resources: [pods], verbs: [get]}"
    live = rbac(f"{{kind: Role, rules: [{rule}]}}")
    planned = rbac(f"{{kind: Role, rules: [{rule}, {{apiGroups: ['*'], resources: ['*'], verbs: ['*']}}]}}")
    assert [(risk.summary, risk.new) for risk in risks(live, planned)] == [
        ("permits * on * of *", True),
        ("permits get on pods", False),
    ]


def test_long_lists_do_not_hide_what_is_powerful() -> None:
    many = [f"resource-{number}" for number in range(100)]
    role = rbac("{kind: Role}") | {"rules": [{"resources": [*many, "secrets"], "verbs": [*many, "*"]}]}
    (risk,) = risks(None, role)
    assert risk.summary.startswith("permits *, resource-0, ")
    assert " on secrets, resource-0, " in risk.summary
    assert risk.summary.endswith("and 93 more")


@pytest.mark.parametrize(
    ("live", "summary"),
    [
        (item("NetworkPolicy", api_version="networking.k8s.io/v1"), "no longer limits the traffic of pods"),
        (
            item("ValidatingAdmissionPolicy", api_version="admissionregistration.k8s.io/v1"),
            "no longer decides about requests to the API server",
        ),
    ],
)
def test_what_limits_others_is_missed_when_it_is_pruned(live: Object, summary: str) -> None:
    assert [risk.summary for risk in risks(live, None)] == [summary]
    assert risks(pod("{hostPID: true}"), None) == ()


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
KEYS = (
    "containers", "securityContext", "volumes", "ports", "image", "capabilities", "add", "hostPath", "path",
    "projected", "sources", "rules", "verbs", "resources", "subjects", "roleRef", "seccompProfile", "seLinuxOptions",
    "sysctls", "serviceAccountName", "spec", "template", "metadata", "labels", "externalIPs",
)  # fmt: skip
SHAPES: Any = st.recursive(
    JSON,
    lambda children: st.dictionaries(st.sampled_from(KEYS), children, max_size=4) | st.lists(children, max_size=2),
    max_leaves=20,
)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from([case for case, _ in CASES]), st.dictionaries(st.sampled_from(KEYS), SHAPES, max_size=4))
def test_objects_of_any_shape_are_read(case: Object, parts: dict[str, Any]) -> None:
    planned = {**case, "metadata": {"name": "x"}, **parts, "spec": {**case.get("spec", {}), **parts}}
    assert isinstance(risks(case, planned), tuple)
