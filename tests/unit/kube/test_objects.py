"""Objects that may lack anything are read without errors, and as Kubernetes means what they lack."""

import pytest

from prefect_cd.kube.objects import Object, endpoint_is_ready


@pytest.mark.parametrize(
    ("endpoint", "ready"),
    [
        ({"conditions": {"ready": True}}, True),
        ({"conditions": {"ready": False}}, False),
        ({"conditions": {"ready": False, "serving": True, "terminating": True}}, False),
        ({"conditions": {"ready": None}}, True),
        ({"conditions": {}}, True),
        ({"conditions": None}, True),
        ({}, True),
    ],
)
def test_an_endpoint_that_does_not_say_otherwise_is_ready(endpoint: Object, *, ready: bool) -> None:
    assert endpoint_is_ready(endpoint) == ready
