"""Which objects are ours: the environment's namespace and the labels that mark what we applied there. Pure.

With what the pipeline file says about the environment's records, which are as old as its releases: what may come out of
them, and how to recognise that we wrote them.
"""

from dataclasses import dataclass

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.labels import label, ownership_labels
from prefect_cd.pipeline.models import Environment


@dataclass(frozen=True)
class Ownership:
    """The namespace of an application's environment, and the labels that mark its objects as ours.

    Attributes:
        application: its name.
        environment: its name.
        namespace: of the environment.
        cluster_scoped: kinds of cluster-scoped objects that releases may contain, by the pipeline file.
        record_key: path of the file with the key that signs the environment's records; empty where none does.
    """

    application: str
    environment: str
    namespace: str
    cluster_scoped: tuple[str, ...] = ()
    record_key: str = ""

    @classmethod
    def of(cls, application: str, environment: Environment) -> "Ownership":
        """The ownership of an environment of the pipeline file."""
        return cls(
            application,
            environment.name,
            environment.namespace,
            environment.cluster_scoped,
            environment.record_key or "",
        )

    @property
    def labels(self) -> dict[str, str]:
        """The labels that mark what we applied here."""
        return ownership_labels(self.application, self.environment)

    @property
    def selector(self) -> str:
        """The same labels as a label selector, for list requests."""
        return ",".join(f"{key}={value}" for key, value in self.labels.items())

    def label(self, item: Object, release: str = "") -> Object:
        """The object as ours; see `manifests.labels.label`."""
        return label(item, self.application, self.environment, release)

    def owns(self, live: Object) -> bool:
        """Whether a live object is one that we applied here."""
        live_labels = live["metadata"].get("labels") or {}
        return all(live_labels.get(key) == value for key, value in self.labels.items())
