"""What a release needs and does not find, from the objects alone."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_cd.environment.admission_requirements import refusal, unmet_quotas
from prefect_cd.environment.requirements import (
    Unmet,
    incomplete,
    needs,
    outside,
    starting,
    storage_classes,
    unmet_node_selectors,
    unmet_references,
    unmet_storage_classes,
)
from prefect_cd.environment.service_requirements import as_admitted, services_to_check, unmet_services
from prefect_cd.kube.objects import Object
from prefect_cd.kube.resources import Ref
from prefect_cd.manifests.pod_templates import dry_run_pod

NAMESPACE = "shop"


def item(kind: str, name: str, api_version: str = "v1", **content: Any) -> Object:  # noqa: ANN401
    metadata = {"name": name, "namespace": NAMESPACE, **content.pop("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def workload(kind: str = "Deployment", container: Object | None = None, **pod: Any) -> Object:  # noqa: ANN401
    labels = pod.pop("labels", {"app": "web"})
    spec = {key: pod.pop(key) for key in ("replicas", "paused", "suspend", "volumeClaimTemplates") if key in pod}
    containers = [{"name": "app", "image": "example.org/web:1", **(container or {})}]
    spec["template"] = {"metadata": {"labels": labels}, "spec": {"containers": containers, **pod}}
    return item(kind, "web", "batch/v1" if kind == "Job" else "apps/v1", spec=spec)


def custom(kind: str, name: str, api_version: str = "example.com/v1", **spec: Any) -> Object:  # noqa: ANN401
    return item(kind, name, api_version, spec=spec)


def unmet(*objects: Object, live: dict[tuple[str, str], Object] | None = None, **settings: Any) -> list[Unmet]:  # noqa: ANN401
    """What a first release of these objects lacks, where only `live` exists beside them, by kind and name."""
    wanted = needs(starting(objects, ()), NAMESPACE)
    known: dict[Ref, Object | None] = {
        need.ref: (live or {}).get((need.ref.kind, need.ref.name)) for need in outside(wanted, objects)
    }
    known |= {need.ref: lacking for need, lacking in incomplete(wanted, objects)}
    return unmet_references(wanted, known, objects, **settings)


def refers(**env: Object) -> Object:
    return {"env": [{"name": name, "valueFrom": source} for name, source in env.items()]}


def volume(**source: Any) -> list[Object]:  # noqa: ANN401
    return [{"name": "data", **source}]


# --- each kind of reference ------------------------------------------------------------------------------------------

REFERENCES: dict[str, tuple[Object, str, str]] = {
    "a key of a Secret": (
        workload(container=refers(DB_URL={"secretKeyRef": {"name": "db", "key": "url"}})),
        "deployment/web: container app, env DB_URL",
        "secret/db",
    ),
    "a key of a ConfigMap": (
        workload(container=refers(MODE={"configMapKeyRef": {"name": "settings", "key": "mode"}})),
        "deployment/web: container app, env MODE",
        "configmap/settings",
    ),
    "all of a Secret": (
        workload(container={"envFrom": [{"secretRef": {"name": "db"}}]}),
        "deployment/web: container app, envFrom",
        "secret/db",
    ),
    "all of a ConfigMap": (
        workload("StatefulSet", container={"envFrom": [{"configMapRef": {"name": "settings"}}]}),
        "statefulset/web: container app, envFrom",
        "configmap/settings",
    ),
    "an init container": (
        workload(initContainers=[{"name": "init", "envFrom": [{"secretRef": {"name": "db"}}]}]),
        "deployment/web: init container init, envFrom",
        "secret/db",
    ),
    "a volume of a Secret": (
        workload("DaemonSet", volumes=volume(secret={"secretName": "tls"})),
        "daemonset/web: volume data",
        "secret/tls",
    ),
    "a volume of a ConfigMap": (
        workload("Job", volumes=volume(configMap={"name": "settings"})),
        "job/web: volume data",
        "configmap/settings",
    ),
    "a projected volume": (
        workload(volumes=volume(projected={"sources": [{"secret": {"name": "tls"}}]})),
        "deployment/web: volume data",
        "secret/tls",
    ),
    "a claim": (
        workload(volumes=volume(persistentVolumeClaim={"claimName": "data"})),
        "deployment/web: volume data",
        "persistentvolumeclaim/data",
    ),
    "an account": (workload(serviceAccountName="robot"), "deployment/web: serviceAccountName", "serviceaccount/robot"),
    "a priority": (workload(priorityClassName="high"), "deployment/web: priorityClassName", "priorityclass/high"),
    "a runtime": (workload(runtimeClassName="gvisor"), "deployment/web: runtimeClassName", "runtimeclass/gvisor"),
}


@pytest.mark.parametrize(("release", "where", "missing"), REFERENCES.values(), ids=REFERENCES)
def test_i9_what_does_not_exist_is_named_with_who_refers_to_it(release: Object, where: str, missing: str) -> None:
    (found,) = unmet(release)
    assert (found.where, found.summary, found.certain) == (where, f"{missing} does not exist", True)
    kind, name = missing.split("/")
    assert kind in found.fix.lower()
    there = {(Kind, name): item(Kind, name, data={"url": "", "mode": ""}) for Kind in KINDS if Kind.lower() == kind}
    assert unmet(release, live=there) == []


KINDS = ("Secret", "ConfigMap", "ServiceAccount", "PersistentVolumeClaim", "PriorityClass", "RuntimeClass")
TABLE = [release for release, *_ in REFERENCES.values()]


@pytest.mark.parametrize(("release", "missing"), [(r, m) for r, _, m in REFERENCES.values()], ids=REFERENCES)
def test_what_the_release_brings_is_not_missing(release: Object, missing: str) -> None:
    kind, name = missing.split("/")
    versions = {"PriorityClass": "scheduling.k8s.io/v1", "RuntimeClass": "node.k8s.io/v1"}
    (brought,) = (
        item(Kind, name, versions.get(Kind, "v1"), data={"url": "", "mode": ""})
        for Kind in KINDS
        if Kind.lower() == kind
    )
    if kind in {"priorityclass", "runtimeclass"}:
        del brought["metadata"]["namespace"]
    assert unmet(release, brought) == []


@given(release=st.sampled_from(TABLE), data=st.data())
def test_an_optional_reference_is_never_missing(release: Object, data: st.DataObject) -> None:
    """Whatever reference to contents is made optional, and whatever else does not exist."""

    def optional(value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list):
            return [optional(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        sources = ("secretRef", "configMapRef", "secretKeyRef", "configMapKeyRef", "secret", "configMap")
        return {key: {**inner, "optional": True} if key in sources else optional(inner) for key, inner in value.items()}

    names = {(need.ref.kind, need.ref.name) for need in needs([release], NAMESPACE)}
    exists = {(kind, name): item(kind, name) for kind, name in names if data.draw(st.booleans())}
    missing = [found.summary for found in unmet(optional(release), live=exists)]
    assert not [summary for summary in missing if summary.startswith(("secret/", "configmap/"))]


def test_everything_is_said_at_once_and_each_object_once() -> None:
    two = workload(container=refers(A={"secretKeyRef": {"name": "db", "key": "url"}}))
    other = workload("StatefulSet", container=refers(B={"secretKeyRef": {"name": "db", "key": "user"}}))
    secret, account = unmet(
        two, {**other, "metadata": {**other["metadata"], "name": "queue"}}, workload("Job", serviceAccountName="robot")
    )
    assert secret.where == "deployment/web: container app, env A; statefulset/queue: container app, env B"
    assert secret.fix.startswith("kubectl -n shop create secret generic db --from-literal=url=… --from-literal=user=…")
    assert account.summary == "serviceaccount/robot does not exist"


# --- Secrets and keys ------------------------------------------------------------------------------------------------

URL = workload(container=refers(DB_URL={"secretKeyRef": {"name": "db", "key": "url"}}))


def test_the_fix_for_a_secret_is_a_command_and_never_the_repository() -> None:
    (found,) = unmet(URL)
    assert "kubectl -n shop create secret generic db --from-literal=url=" in found.fix
    assert "manifest" not in found.fix


def test_without_its_namespace_the_fix_creates_that_first() -> None:
    (found,) = unmet(URL, has_namespace=False)
    assert found.certain
    assert "neither does the namespace shop" in found.summary
    assert found.fix.startswith("kubectl create namespace shop && kubectl -n shop create secret generic db")


def test_a_key_that_a_live_object_lacks_is_named() -> None:
    (found,) = unmet(URL, live={("Secret", "db"): item("Secret", "db", data={"user": "x"})})
    assert (found.summary, found.certain) == ("secret/db has no key url", True)
    assert 'kubectl -n shop patch secret db -p \'{"stringData":{"url":"…"}}\'' in found.fix


def test_a_key_that_an_object_of_the_release_lacks_is_named_unless_a_controller_may_write_it() -> None:
    (found,) = unmet(URL, item("Secret", "db", stringData={"user": "x"}))
    assert found.summary == "secret/db has no key url"
    assert unmet(URL, item("Secret", "db", stringData={"url": "x"})) == []
    filled = item("Secret", "db", metadata={"annotations": {"example.com/fill": "yes"}})
    assert unmet(URL, filled) == []
    assert unmet(URL, item("Secret", "db", type="kubernetes.io/service-account-token")) == []


def test_a_missing_secret_for_pulling_images_is_only_likely_to_matter() -> None:
    (found,) = unmet(workload(imagePullSecrets=[{"name": "registry"}]))
    assert not found.certain
    assert "create secret docker-registry registry" in found.fix


# --- what somebody else creates --------------------------------------------------------------------------------------

PROGRAM = {"name": "make", "args": ["--secret-name=db"]}
CREATORS = {
    "a SealedSecret of its name": custom("SealedSecret", "db", "bitnami.com/v1alpha1"),
    "an ExternalSecret with it as target": custom("ExternalSecret", "any", target={"name": "db"}),
    "a Certificate": custom("Certificate", "site", "cert-manager.io/v1", secretName="db"),
    "a resource that names it in a text": custom("Thing", "any", script="kubectl create secret generic db"),
    "an operator's resource whose name is part of it": custom("Cluster", "db"),
    "an annotation": item("Service", "web", metadata={"annotations": {"example.com/secret": "db"}}, spec={}),
    "an Ingress with a certificate": item(
        "Ingress", "web", "networking.k8s.io/v1", spec={"tls": [{"secretName": "db"}]}
    ),
    "a Job with an account of its own": {
        **workload("Job", serviceAccountName="default-maker", container=PROGRAM),
        "metadata": {"name": "make", "namespace": NAMESPACE},
    },
}


@pytest.mark.parametrize("creator", CREATORS.values(), ids=CREATORS)
def test_what_something_may_create_stops_nothing(creator: Object) -> None:
    (found,) = [found for found in unmet(URL, creator) if "secret/db" in found.summary]
    assert not found.certain
    assert "unless" in found.summary


def test_what_only_refers_to_a_secret_creates_none() -> None:
    job = {**workload("Job", container=PROGRAM), "metadata": {"name": "make", "namespace": NAMESPACE}}
    reloader = item("Service", "web", metadata={"annotations": {"secret.reloader.stakater.com/reload": "db"}}, spec={})
    monitor = custom("ServiceMonitor", "db", "monitoring.coreos.com/v1")
    unrelated = custom("Thing", "other", text="database")
    (found,) = unmet(URL, job, reloader, monitor, unrelated)
    assert found.certain


@pytest.mark.parametrize(("kind", "name"), [("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")])
def test_what_comes_with_every_namespace_is_not_missing(kind: str, name: str) -> None:
    pod = {"serviceAccountName": name} if kind == "ServiceAccount" else {"volumes": volume(configMap={"name": name})}
    assert unmet(workload(**pod)) == []


def test_what_is_not_known_is_not_missing() -> None:
    wanted = needs([URL], NAMESPACE)
    assert unmet_references(wanted, {}, [URL]) == []


def test_a_claim_of_a_stateful_set_is_made_for_it() -> None:
    claims = [{"metadata": {"name": "data"}}]
    own = workload("StatefulSet", volumeClaimTemplates=claims, volumes=volume(persistentVolumeClaim={"claimName": "x"}))
    assert unmet(own) == []
    assert dry_run_pod(own)["spec"]["volumes"] == volume(persistentVolumeClaim={"claimName": "data"})  # type: ignore[index]


# --- what starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [{"replicas": 0}, {"paused": True}, {"suspend": True}])
def test_what_starts_no_pod_needs_nothing(idle: Object) -> None:
    assert starting([workload(**idle)], ()) == []


def test_what_runs_as_it_is_needs_nothing() -> None:
    assert starting([URL], [URL]) == []
    assert starting([URL], [workload()]) == [URL]


# --- Services --------------------------------------------------------------------------------------------------------


def service(selector: Object, target: object = 8080) -> Object:
    return item("Service", "web", spec={"selector": selector, "ports": [{"port": 80, "targetPort": target}]})


def unreachable(*objects: Object, runs: tuple[Object, ...] = (), pods: tuple[Object, ...] = ()) -> list[str]:
    found = unmet_services(services_to_check(objects, runs), objects, pods)
    assert all(one.certain for one in found)
    return [one.summary for one in found]


def test_a_selector_that_contradicts_all_pods_is_named() -> None:
    (summary,) = unreachable(workload(), service({"app": "shop"}))
    assert "app=shop" in summary
    assert unreachable(workload(), service({"app": "web"})) == []


def test_a_selector_whose_label_may_be_set_later_is_not_certain() -> None:
    assert unreachable(workload(), service({"app": "web", "role": "leader"})) == []


def test_pods_of_somebody_else_and_of_custom_resources_may_answer() -> None:
    theirs = item("Pod", "p", metadata={"labels": {"app": "shop"}})
    assert unreachable(workload(), service({"app": "shop"}), pods=(theirs,)) == []
    assert unreachable(workload(), service({"app": "shop"}), custom("Cluster", "c")) == []


def test_a_port_name_that_no_container_has_is_named() -> None:
    named = workload(container={"ports": [{"name": "http", "containerPort": 8080}]})
    (summary,) = unreachable(named, service({"app": "web"}, "web"))
    assert "'web'" in summary
    assert unreachable(named, service({"app": "web"}, "http")) == []


def test_a_port_or_a_label_that_the_cluster_adds_to_the_pods_is_there() -> None:
    web, by_port, by_label = workload(), service({"app": "web"}, "proxy"), service({"app": "meshed"})
    pod = copy.deepcopy(dry_run_pod(web))
    assert pod is not None
    pod["spec"]["containers"].append({"name": "proxy", "ports": [{"name": "proxy", "containerPort": 1}]})
    meshed = {**pod, "metadata": {**pod["metadata"], "labels": {"app": "meshed"}}}
    for answered, admitted in ((by_port, pod), (by_label, meshed)):
        assert unmet_services([answered], as_admitted([web, answered], {}), ()) != []
        assert unmet_services([answered], as_admitted([web, answered], {Ref.of(web).identity: admitted}), ()) == []


def test_a_service_that_reaches_no_pod_in_what_runs_is_left_as_it_is() -> None:
    wrong = service({"app": "shop"})
    assert unreachable(URL, wrong, runs=(workload(), wrong)) == []
    assert unreachable(URL, wrong, runs=(workload(), service({"app": "web"}))) != []


# --- quotas ----------------------------------------------------------------------------------------------------------


def quota(**hard: str) -> Object:
    return item("ResourceQuota", "small", spec={"hard": hard})


def test_a_quota_that_is_too_small_for_one_workload_alone_is_named() -> None:
    two = workload(replicas=2)
    (found,) = unmet_quotas([quota(pods="1")], [two], [two])
    assert (found.certain, found.summary) == (True, "its pods need 2 of pods, and resourcequota/small allows 1")
    assert unmet_quotas([quota(pods="2")], [two], [two]) == []
    assert unmet_quotas([quota(pods="1")], [two], [two, quota(pods="5")]) == []


def test_a_quota_without_replica_sets_is_named() -> None:
    none = quota(**{"count/replicasets.apps": "0"})
    (found,) = unmet_quotas([none], [workload()], [workload()])
    assert "no ReplicaSet" in found.summary
    assert unmet_quotas([none], [workload("StatefulSet")], [workload("StatefulSet")]) == []


# --- what the server says to a pod (messages of Kubernetes 1.36) -----------------------------------------------------

FORBIDDEN = 'pods "web-prefect-cd-dry-run" is forbidden: '
SMALL = "exceeded quota: q, requested: pods=1,requests.cpu=2, used: pods=0,requests.cpu=0, limited: "
ANSWERS = {
    'violates PodSecurity "restricted:latest": runAsNonRoot != true': True,
    "failed quota: q: must specify limits.memory for: app": True,
    "maximum memory usage per Container is 32Mi, but limit is 64Mi": True,
    f"{SMALL}pods=0,requests.cpu=9": True,
    f"{SMALL}pods=9,requests.cpu=1500m": True,
    f"{SMALL}pods=9,requests.cpu=2": False,
    "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: violates PodSecurity of ours": False,
    'admission webhook "guard" denied the request: no': False,
    'Internal error occurred: failed calling webhook "guard": no endpoints': False,
    "admission webhook does not support dry run: guard": None,
    "something new": False,
}


@pytest.mark.parametrize(("message", "certain"), ANSWERS.items())
def test_an_answer_to_a_dry_run_is_certain_where_it_is_about_the_pod_itself(message: str, certain: bool | None) -> None:  # noqa: FBT001
    found = refusal(FORBIDDEN + message, workload(), [workload()]).unmet
    assert (found.certain if found else None) == certain
    assert found is None or FORBIDDEN not in found.summary
    itself = refusal(FORBIDDEN + message, workload(), [workload(), quota(pods="1")]).unmet
    assert itself is None or not itself.certain


@pytest.mark.parametrize(("kind", "warns"), [("Deployment", True), ("Job", True), ("StatefulSet", False)])
def test_a_full_quota_is_a_warning_where_a_pod_starts_before_others_end(kind: str, warns: bool) -> None:  # noqa: FBT001
    answer = refusal(f"{FORBIDDEN}{SMALL}pods=9,requests.cpu=2", workload(kind), [workload(kind)])
    assert (answer.unmet is not None) is warns
    four = workload(replicas=4)  # one of them may end first
    assert refusal(f"{FORBIDDEN}{SMALL}pods=9,requests.cpu=2", four, [four]).unmet is None


_ACCOUNT = 'error looking up service account shop/{0}: serviceaccount "{0}" not found'


@pytest.mark.parametrize(
    ("message", "missing", "field"),
    [
        (_ACCOUNT.format("robot"), "serviceaccount/robot", "serviceAccountName"),
        ("no PriorityClass with name high was found", "priorityclass/high", "priorityClassName"),
        ('pod rejected: RuntimeClass "gvisor" not found', "runtimeclass/gvisor", "runtimeClassName"),
        (_ACCOUNT.format("default"), "", "serviceAccountName"),
    ],
)
def test_what_admission_misses_is_named_and_left_out_of_the_next_dry_run(
    message: str, missing: str, field: str
) -> None:
    answer = refusal(FORBIDDEN + message, workload(), [workload()])
    assert answer.field == field
    assert (answer.unmet.summary if answer.unmet else "") == (f"{missing} does not exist" if missing else "")


# --- nodes and storage -----------------------------------------------------------------------------------------------


def test_a_node_selector_that_no_node_has_is_only_likely_to_matter() -> None:
    nodes = [item("Node", "n", metadata={"labels": {"disk": "slow"}})]
    (found,) = unmet_node_selectors([workload(nodeSelector={"disk": "fast"})], nodes)
    assert (found.certain, "disk=fast" in found.summary) == (False, True)
    assert unmet_node_selectors([workload(nodeSelector={"disk": "slow"})], nodes) == []
    assert unmet_node_selectors([workload(nodeSelector={"disk": "fast"})], []) == []


def test_a_storage_class_that_does_not_exist_is_only_likely_to_matter() -> None:
    claim = item("PersistentVolumeClaim", "data", spec={"storageClassName": "fast"})
    sets = workload("StatefulSet", volumeClaimTemplates=[claim])
    classes = storage_classes([claim, sets, item("PersistentVolumeClaim", "other", spec={"storageClassName": ""})])
    assert classes == {"fast": ["persistentvolumeclaim/data", "statefulset/web"]}
    (found,) = unmet_storage_classes(classes, {"fast"})
    assert not found.certain
    assert unmet_storage_classes(classes, set()) == []
