"""The labels and annotations that mark an object as ours."""

from prefect_cd.kube.objects import Object

PREFIX = "prefect-cd.dev/"
APPLICATION = PREFIX + "application"
ENVIRONMENT = PREFIX + "environment"
RELEASE = PREFIX + "release"
RECORD = PREFIX + "record"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "prefect-cd"
WORKLOADS = frozenset({"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"})


def label(item: Object, application: str, environment: str, release: str = "") -> Object:
    """The object as ours: labels on every object, the release's id on workloads' own metadata only.

    The environment is a label because cluster-scoped objects of two environments may live in one cluster. The pod
    template stays as it is, so that pods which did not change are not restarted.
    """
    metadata = dict(item["metadata"])
    ours = {MANAGED_BY: MANAGER, APPLICATION: application, ENVIRONMENT: environment}
    metadata["labels"] = {**(metadata.get("labels") or {}), **ours}
    if release and item["kind"] in WORKLOADS:
        metadata["annotations"] = {**(metadata.get("annotations") or {}), RELEASE: release}
    return {**item, "metadata": metadata}
