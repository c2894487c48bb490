import pytest

from prefect_cd.environment.apply import _prunable
from prefect_cd.kube.objects import Object


def live(kind: str, **metadata: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "x", "labels": {}, **metadata}}


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "PersistentVolume", "CustomResourceDefinition", "Namespace"])
def test_an_object_that_holds_data_is_never_pruned(kind: str) -> None:
    assert not _prunable(live(kind))


def test_an_object_of_a_controller_and_one_that_is_being_deleted_are_not_pruned() -> None:
    assert _prunable(live("ConfigMap"))
    assert not _prunable(live("ConfigMap", ownerReferences=[{"uid": "1"}]))
    assert not _prunable(live("ConfigMap", deletionTimestamp="2026-01-01T00:00:00Z"))
