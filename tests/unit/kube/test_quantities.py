"""Amounts as Kubernetes writes them."""

from decimal import Decimal

import pytest

from prefect_cd.kube.quantities import quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", "2"),
        (3, "3"),
        (0.5, "0.5"),
        ("500m", "0.5"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("1Ki", "1024"),
        ("1Gi", "1073741824"),
        ("1.5Mi", "1572864"),
        ("128M", "128000000"),
        ("2k", "2000"),
        ("1e3", "1000"),
        ("12E6", "12000000"),
        ("1E", "1000000000000000000"),
        ("100u", "0.0001"),
    ],
)
def test_an_amount_is_a_number(text: object, number: str) -> None:
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "much", "1 Gi", "1gi", None, True, {}])
def test_anything_else_is_none(text: object) -> None:
    assert quantity(text) is None
