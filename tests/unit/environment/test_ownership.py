"""Which objects are ours, by their labels."""

import pytest

from prefect_cd.environment.ownership import Ownership
from prefect_cd.kube.objects import Object
from prefect_cd.manifests.labels import APPLICATION, ENVIRONMENT, MANAGED_BY

SHOP = Ownership("shop", "staging", "shop-staging")


def config_map(**labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop", "labels": labels}}


def test_what_we_labelled_is_ours_whatever_other_labels_it_has() -> None:
    assert SHOP.owns(SHOP.label(config_map(tier="front")))
    assert SHOP.owns(SHOP.label(config_map(**{MANAGED_BY: "team-a"})))


@pytest.mark.parametrize("key", [APPLICATION, ENVIRONMENT])
def test_an_object_with_another_value_or_without_one_of_our_labels_is_not_ours(key: str) -> None:
    labels = SHOP.labels
    assert not SHOP.owns(config_map(**{**labels, key: "other"}))
    del labels[key]
    assert not SHOP.owns(config_map(**labels))


@pytest.mark.parametrize("metadata", [{"name": "shop"}, {"name": "shop", "labels": None}])
def test_an_object_without_labels_is_not_ours(metadata: dict[str, object]) -> None:
    assert not SHOP.owns({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})


def test_the_selector_names_the_labels() -> None:
    assert SHOP.selector == "prefect-cd.dev/application=shop,prefect-cd.dev/environment=staging"
