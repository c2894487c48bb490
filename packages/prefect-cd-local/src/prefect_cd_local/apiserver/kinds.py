"""The kinds that are served: a closed list; everything else is 404.

Names, short names, categories and verbs are those of the discovery documents of Kubernetes 1.36. `deletecollection` is
not supported.
"""

from dataclasses import dataclass
from functools import cached_property

VERBS = ("create", "delete", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Subresource:
    """A path below an object; `kind` is set where the body has another kind than the object."""

    name: str
    verbs: tuple[str, ...] = ("get", "patch", "update")
    kind: str = ""
    api_version: str = ""


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind as discovery describes it; each exists once, so kinds are compared by identity."""

    api_version: str
    kind: str
    plural: str
    short: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool = True
    verbs: tuple[str, ...] = VERBS
    created_by_put: bool = False
    """Whether a PUT creates the object where there is none (AllowCreateOnUpdate in the real server)."""

    @cached_property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @cached_property
    def version(self) -> str:
        """The version without its group."""
        return self.api_version.rpartition("/")[2]

    @cached_property
    def root(self) -> str:
        """The URL path of the group and version."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"

    @cached_property
    def resource(self) -> str:
        """The plural with its group, as error messages have it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def schema(self) -> str:
        """The name of the kind's schema in the published OpenAPI document."""
        return f"io.k8s.api.{self.group.split('.')[0] or 'core'}.{self.version}.{self.kind}"

    def subresource(self, name: str) -> Subresource | None:
        """Return the subresource of that name."""
        return next((subresource for subresource in self.subresources if subresource.name == name), None)


_STATUS = Subresource("status")
_SCALE = Subresource("scale", kind="Scale", api_version="autoscaling/v1")
_FINALIZE = Subresource("finalize", ("update",))
_POD = (
    Subresource("binding", ("create",), "Binding"),
    Subresource("log", ("get",)),
    Subresource("portforward", ("create", "get"), "PodPortForwardOptions"),
    _STATUS,
)
_ALL = ("all",)
KINDS = (
    Kind("v1", "ConfigMap", "configmaps", ("cm",)),
    Kind("v1", "Event", "events", ("ev",), created_by_put=True),
    Kind("v1", "Namespace", "namespaces", ("ns",), (_FINALIZE, _STATUS), namespaced=False),
    Kind("v1", "Node", "nodes", ("no",), (_STATUS,), namespaced=False),
    Kind("v1", "Pod", "pods", ("po",), _POD, _ALL),
    Kind("v1", "Secret", "secrets"),
    Kind("v1", "Service", "services", ("svc",), (_STATUS,), _ALL, created_by_put=True),
    Kind("v1", "ServiceAccount", "serviceaccounts", ("sa",)),
    Kind("apps/v1", "Deployment", "deployments", ("deploy",), (_SCALE, _STATUS), _ALL),
    Kind("apps/v1", "ReplicaSet", "replicasets", ("rs",), (_SCALE, _STATUS), _ALL),
    Kind("coordination.k8s.io/v1", "Lease", "leases", created_by_put=True),
    Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices"),
)
ACCESS_REVIEW = Kind(
    "authorization.k8s.io/v1",
    "SelfSubjectAccessReview",
    "selfsubjectaccessreviews",
    namespaced=False,
    verbs=("create",),
)
SERVED = (*KINDS, ACCESS_REVIEW)
BY_NAME = {(kind.api_version, kind.kind): kind for kind in SERVED}
BY_PLURAL = {(kind.api_version, kind.plural): kind for kind in SERVED}
GROUP_VERSIONS = tuple(sorted({kind.api_version for kind in SERVED}, key=lambda version: ("/" in version, version)))
