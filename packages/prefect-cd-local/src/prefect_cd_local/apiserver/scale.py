"""The scale subresource: replicas of a Deployment or ReplicaSet as an autoscaling/v1 Scale."""

from typing import Any

from prefect_cd_local.apiserver import patch, schema, values
from prefect_cd_local.apiserver.errors import Refusal, bad_request, bad_value, invalid
from prefect_cd_local.apiserver.kinds import Kind
from prefect_cd_local.apiserver.options import APPLY, JSON, Options
from prefect_cd_local.apiserver.storage import Key
from prefect_cd_local.apiserver.verbs import Verbs

Object = dict[str, Any]
_TYPE = "io.k8s.api.autoscaling.v1.Scale"
_METADATA = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def view(item: Object) -> Object:
    """Return the Scale of an object."""
    labels = (item["spec"].get("selector") or {}).get("matchLabels") or {}
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    scale = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: item["metadata"][key] for key in _METADATA if key in item["metadata"]},
        "spec": {"replicas": item["spec"].get("replicas", 0)},
        "status": {"replicas": item["status"].get("replicas", 0), "selector": selector},
    }
    result: Object = values.read(schema.named(_TYPE), scale)
    return result


def write(verbs: Verbs, kind: Kind, key: Key, body: Any, how: str, options: Options) -> Object:  # noqa: ANN401  any JSON
    """Change the replicas by a whole Scale (`how` is empty) or a patch of one.

    Raises:
        Refusal: 415, a server-side apply; otherwise as for any update.
    """
    if how == APPLY:
        raise Refusal(
            415, "UnsupportedMediaType", "the embedded API server does not support apply of scales: use update or patch"
        )

    def change(item: Object) -> Object:
        sent = body
        if how:
            sent = patch.json_patch(view(item), body) if how == JSON else patch.merge_patch(view(item), body)
        try:
            wanted = values.read(schema.named(_TYPE), sent)
        except values.WrongType as error:
            raise bad_request(f'Scale in version "v1" cannot be handled as a Scale: {error}') from error
        replicas = (wanted.get("spec") or {}).get("replicas", 0)
        if replicas < 0:
            cause = bad_value("spec.replicas", str(replicas), "must be greater than or equal to 0")
            raise invalid("Scale", "autoscaling", key[1], [cause])
        version = wanted["metadata"].get("resourceVersion") or item["metadata"]["resourceVersion"]
        metadata = {**item["metadata"], "resourceVersion": version}
        return {**item, "metadata": metadata, "spec": {**item["spec"], "replicas": replicas}}

    return view(verbs.update(kind, key, change, options, "scale"))
