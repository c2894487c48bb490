import pytest

from prefect_cd.environment.apply import _prunable
from prefect_cd.kube.objects import Object


def live(kind: str, **metadata: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "labels": {}, **metadata}}


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "PersistentVolume", "CustomResourceDefinition", "Namespace"])
def test_what_holds_data_is_never_pruned(kind: str) -> None:
    assert not _prunable(live(kind))


def test_what_a_controller_made_is_never_pruned_and_what_leaves_already_is_left() -> None:
    assert _prunable(live("ConfigMap"))
    assert not _prunable(live("ConfigMap", ownerReferences=[{"uid": "1"}]))
    assert not _prunable(live("ConfigMap", deletionTimestamp="2026-01-01T00:00:00Z"))
