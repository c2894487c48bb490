"""Names of Kubernetes resources: which object, which kind, and what lists and watches return."""

from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from prefect_cd.kube.objects import Object

Identity = tuple[str, str, str, str]
"""Group, kind, namespace and name: the same for an object under all versions of its group."""


@dataclass(frozen=True, order=True)
class Ref:
    """Which object, under which version of its group: enough to build its URL once the kind's plural is known.

    Two references to one object differ where their versions do; compare their `identity`.
    """

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.name}"

    @property
    def identity(self) -> Identity:
        """Which object, under whatever version."""
        return group_of(self.api_version), self.kind, self.namespace, self.name

    @classmethod
    def of(cls, item: Object) -> "Ref":
        """The reference of an object; the namespace is empty when the object names none."""
        metadata = item["metadata"]
        return cls(item["apiVersion"], item["kind"], metadata.get("namespace", ""), metadata["name"])


@dataclass(frozen=True)
class Kind:
    """How the API server serves one kind of objects."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return group_of(self.api_version)

    def path(self, namespace: str = "", name: str = "") -> str:
        """The URL path of the collection or of one object."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        parts += ["namespaces", quote(namespace, safe="")] if self.namespaced and namespace else []
        parts += [self.plural, quote(name, safe="")] if name else [self.plural]
        return "/".join(parts)


def group_of(api_version: str) -> str:
    """The group of an apiVersion; empty for the core group."""
    return api_version.rpartition("/")[0]


@dataclass(frozen=True)
class ObjectList:
    """All objects of a query, and the resourceVersion of that list."""

    items: list[Object]
    version: str


@dataclass(frozen=True)
class WatchEvent:
    """One event of a watch: an object as it is now, or as it was before it was deleted, or only a newer version."""

    version: str
    item: Object | None = None
    deleted: bool = False


class Route(str, Enum):
    """The route that requests took. Only the users' own route loses exactly the requests that users lose."""

    URL = "the environment's URL"
    SERVICE = "the Service's name inside the cluster"
    ADDRESS = "the Service's load balancer or node port"
    PORT_FORWARD = "a port-forward through the API server"
