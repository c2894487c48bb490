"""What the shop sells, and how prices are written."""

from __future__ import annotations

from pathlib import Path

import pytest

import shop
from shop import catalogue, delivery
from shop.money import CURRENCIES, Money

DRAWINGS = Path(shop.__file__).parent / "templates" / "drawings"
USD, EUR = CURRENCIES["USD"], CURRENCIES["EUR"]


@pytest.mark.parametrize("product", catalogue.PRODUCTS, ids=lambda product: product.slug)
def test_a_product_has_a_price_in_each_currency_a_category_and_a_drawing(product: catalogue.Product) -> None:
    assert all(product.price(currency).amount > 0 for currency in CURRENCIES.values())
    assert product.category in catalogue.CATEGORIES
    assert 'role="img" aria-label="' in (DRAWINGS / f"{product.slug}.svg").read_text(encoding="utf-8")


def test_names_of_products_are_unique() -> None:
    assert len({product.slug for product in catalogue.PRODUCTS}) == len(catalogue.PRODUCTS)


def test_each_category_has_products() -> None:
    assert all(catalogue.in_category(category) for category in catalogue.CATEGORIES)


def test_each_currency_has_a_delivery_fee() -> None:
    assert set(delivery.FEES) == set(CURRENCIES)


@pytest.mark.parametrize(
    ("money", "text"),
    [(Money(1850, USD), "$18.50"), (Money(5, EUR), "€0.05"), (Money(123_456_00, USD), "$123,456.00")],
)
def test_money_is_written_with_symbol_and_two_digits(money: Money, text: str) -> None:
    assert str(money) == text


def test_different_currencies_are_never_added() -> None:
    with pytest.raises(ValueError, match="cannot add EUR to USD"):
        Money(1, USD) + Money(1, EUR)
