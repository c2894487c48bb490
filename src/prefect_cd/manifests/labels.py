"""The labels and annotations that mark an object as ours."""

from prefect_cd.kube.objects import Object

PREFIX = "prefect-cd.dev/"
APPLICATION = PREFIX + "application"
ENVIRONMENT = PREFIX + "environment"
RELEASE = PREFIX + "release"
RECORD = PREFIX + "record"
EPOCH = PREFIX + "epoch"
"""An annotation: the epoch of the lock under which an object was created, or was last fenced."""
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "prefect-cd"
WORKLOADS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"})


def ownership_labels(application: str, environment: str) -> dict[str, str]:
    """The labels that mark an object as applied by us in an application's environment.

    The environment is a label because cluster-scoped objects of two environments may live in one cluster.
    """
    return {APPLICATION: application, ENVIRONMENT: environment}


def label(item: Object, application: str, environment: str, release: str = "") -> Object:
    """The object with our labels, and on a workload an annotation with the release's id.

    `app.kubernetes.io/managed-by` is set only where the manifest has none: a selector may use its value. The pod
    template stays as it is, so that unchanged pods are not restarted.
    """
    metadata = dict(item["metadata"])
    own = metadata.get("labels") or {}
    metadata["labels"] = {MANAGED_BY: MANAGER, **own, **ownership_labels(application, environment)}
    if release and item["kind"] in WORKLOADS:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), RELEASE: release}
    return {**item, "metadata": metadata}
