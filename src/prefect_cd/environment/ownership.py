"""Which objects are ours: the environment's namespace and the labels that mark what we applied there. Pure."""

from dataclasses import dataclass

from prefect_cd.kube.objects import Object
from prefect_cd.manifests.labels import label, ownership_labels


@dataclass(frozen=True)
class Ownership:
    """The namespace of an application's environment, and the labels that mark its objects as ours."""

    application: str
    environment: str
    namespace: str

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
