"""Default values of fields that a manifest does not set. Field ownership and diffs depend on them.

Source: the API reference of Kubernetes 1.36, field by field ("Defaults to …"), compared with objects of a real server.
"""

from collections.abc import Callable
from typing import Any

from prefect_cd_local.apiserver import schema
from prefect_cd_local.apiserver.kinds import Kind

Object = dict[str, Any]
_FILE_MODE = 0o644
_BY_STRUCT: dict[str, Object] = {
    "DeploymentSpec": {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600},
    "DeploymentStrategy": {"type": "RollingUpdate"},
    "RollingUpdateDeployment": {"maxUnavailable": "25%", "maxSurge": "25%"},
    "ReplicaSetSpec": {"replicas": 1},
    "PodSpec": {
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {},
        "schedulerName": "default-scheduler",
    },
    "Container": {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"},
    "ContainerPort": {"protocol": "TCP"},
    "Probe": {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
    "HTTPGetAction": {"path": "/", "scheme": "HTTP"},
    "GRPCAction": {"service": ""},
    "ObjectFieldSelector": {"apiVersion": "v1"},
    "SecretVolumeSource": {"defaultMode": _FILE_MODE},
    "ConfigMapVolumeSource": {"defaultMode": _FILE_MODE},
    "DownwardAPIVolumeSource": {"defaultMode": _FILE_MODE},
    "ProjectedVolumeSource": {"defaultMode": _FILE_MODE},
    "ServiceAccountTokenProjection": {"expirationSeconds": 3600},
    "HostPathVolumeSource": {"type": ""},
    "ServiceSpec": {"sessionAffinity": "None", "type": "ClusterIP"},
    "ServicePort": {"protocol": "TCP"},
    "ClientIPConfig": {"timeoutSeconds": 10800},
    "EndpointPort": {"name": "", "protocol": "TCP"},
    "Secret": {"type": "Opaque"},
}


def fill(kind: Kind, item: Object) -> None:
    """Set the defaults of a kind, in place; `item` was read by its schema and belongs to the caller."""
    if kind.kind == "Pod":
        _pod(item["spec"])
    for type_, struct, _ in schema.walk(schema.of(kind), item):
        for key, value in _BY_STRUCT.get(type_.name, {}).items():
            if struct.get(key) in (None, ""):
                struct[key] = {} if value == {} else value
        if type_.name in _RULES:
            _RULES[type_.name](struct)


def _pod(spec: Object) -> None:
    """Set the defaults that apply to pods and not to pod templates."""
    spec.setdefault("enableServiceLinks", True)
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        resources = container["resources"]
        if requests := {**(resources.get("limits") or {}), **(resources.get("requests") or {})}:
            resources["requests"] = requests


def _strategy(strategy: Object) -> None:
    if strategy["type"] == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {})


def _pod_spec(spec: Object) -> None:
    if name := spec.get("serviceAccountName") or spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"] = name


def _container(container: Object) -> None:
    image = container.get("image", "").rpartition("/")[2]
    fixed = "@" in image or (":" in image and not image.endswith(":latest"))
    container.setdefault("imagePullPolicy", "IfNotPresent" if fixed else "Always")


def _volume(volume: Object) -> None:
    if set(volume) == {"name"}:
        volume["emptyDir"] = {}


def _service(spec: Object) -> None:
    if spec["sessionAffinity"] == "ClientIP":
        spec.setdefault("sessionAffinityConfig", {"clientIP": {}})
    if spec["type"] in {"NodePort", "LoadBalancer"}:
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")


def _service_port(port: Object) -> None:
    port["targetPort"] = port.get("targetPort") or port["port"]


def _namespace(item: Object) -> None:
    if name := item["metadata"].get("name"):
        labels = item["metadata"].get("labels") or {}
        item["metadata"]["labels"] = {**labels, "kubernetes.io/metadata.name": name}


_RULES: dict[str, Callable[[Object], None]] = {
    "DeploymentStrategy": _strategy,
    "PodSpec": _pod_spec,
    "Container": _container,
    "Volume": _volume,
    "ServiceSpec": _service,
    "ServicePort": _service_port,
    "Namespace": _namespace,
}
