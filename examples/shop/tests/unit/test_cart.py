"""The cart, its cookie and its bill."""

from __future__ import annotations

import pytest

from shop.cart import Cart, bill
from shop.money import CURRENCIES
from shop.orders import Customer, Order

USD = CURRENCIES["USD"]
CUSTOMER = Customer("Test Customer", "customer@example.com", "1 Example Street", "12345", "Example")


def test_a_cart_survives_its_cookie() -> None:
    cart = Cart().adding("enamel-mug", 2).adding("house-blend", 1)
    assert Cart.from_cookie(cart.to_cookie()) == cart


@pytest.mark.parametrize(
    ("cookie", "pieces"),
    [
        ("", 0),
        ("nonsense", 0),
        ("no-such-product:2", 0),
        ("enamel-mug:-1", 0),
        ("enamel-mug:²", 0),
        ("enamel-mug:999999999999", 9),
        ("no-such-product:2|enamel-mug:1", 1),
    ],
)
def test_a_cookie_that_makes_no_sense_does_no_harm(cookie: str, pieces: int) -> None:
    assert Cart.from_cookie(cookie).pieces == pieces


def test_a_product_is_limited_to_nine_pieces() -> None:
    assert Cart().adding("enamel-mug", 7).adding("enamel-mug", 7).quantity("enamel-mug") == 9


def test_quantity_zero_takes_a_product_out() -> None:
    assert Cart().adding("enamel-mug", 2).with_quantity("enamel-mug", 0) == Cart()


def test_a_bill_adds_up() -> None:
    priced = bill(Cart().adding("enamel-mug", 2).adding("house-blend", 1), USD)
    assert [str(line.total) for line in priced.lines] == ["$36.00", "$14.50"]
    assert priced.total.amount == priced.subtotal.amount + priced.delivery.amount
    assert str(priced.subtotal) == "$50.50"


def test_an_empty_cart_costs_nothing() -> None:
    assert bill(Cart(), USD).total.amount == 0


def test_the_same_order_has_the_same_number_everywhere() -> None:
    cart = Cart().adding("enamel-mug", 1)
    assert Order.place(cart, CUSTOMER) == Order.place(cart, CUSTOMER)
    assert Order.place(cart, CUSTOMER).number != Order.place(cart.adding("enamel-mug", 1), CUSTOMER).number


def test_an_order_survives_its_cookie() -> None:
    order = Order.place(Cart().adding("house-blend", 3), CUSTOMER)
    assert Order.from_cookie(order.to_cookie()) == order


@pytest.mark.parametrize(
    "cookie", ["", "SH-1", "SH-00000000", "<b>|enamel-mug:1", "SH-0000000U|enamel-mug:1"]
)
def test_no_order_is_read_from_a_cookie_that_makes_no_sense(cookie: str) -> None:
    assert Order.from_cookie(cookie) is None
