"""How every Kubernetes serves its own kinds, so that their names need no cluster. Pure.

Custom resources are known to their cluster only.
"""

import re

from prefect_cd.kube.resources import Kind, group_of

_GROUPS = frozenset(
    {
        "",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apiregistration.k8s.io",
        "apps",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "flowcontrol.apiserver.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    }
)
_CLUSTER_SCOPED = frozenset(
    {
        *("APIService", "CertificateSigningRequest", "ClusterRole", "ClusterRoleBinding", "ClusterTrustBundle"),
        *("ComponentStatus", "CSIDriver", "CSINode", "CustomResourceDefinition", "DeviceClass", "DeviceTaintRule"),
        *("FlowSchema", "IngressClass", "IPAddress", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"),
        *("MutatingWebhookConfiguration", "Namespace", "Node", "PersistentVolume", "PriorityClass"),
        *("PriorityLevelConfiguration", "ResourceSlice", "RuntimeClass", "ServiceCIDR", "StorageClass"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"),
        *("VolumeAttachment", "VolumeAttributesClass"),
    }
)


def builtin_kind(api_version: str, kind: str) -> Kind | None:
    """How Kubernetes serves one of its own kinds; None for other kinds."""
    if group_of(api_version) not in _GROUPS:
        return None
    return Kind(api_version, kind, _plural(kind.lower()), kind not in _CLUSTER_SCOPED)


def _plural(kind: str) -> str:
    """The plural by the rule of Kubernetes' own kinds: networkpolicies, ingresses, services."""
    if kind == "endpoints":
        return kind
    if kind.endswith("y"):
        return re.sub("y$", "ies", kind)
    return kind + ("es" if kind.endswith("s") else "s")


__all__ = ["builtin_kind"]
