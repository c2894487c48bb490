"""The cart: a value that fits into a cookie and survives anything a browser may send back.

A cart holds names and quantities only. Prices come from the catalogue each time, so there is nothing in the
cookie that would need a signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Final

from shop import catalogue, delivery
from shop.money import Currency, Money

if TYPE_CHECKING:
    from shop.catalogue import Product

COOKIE: Final = "cart"
MOST_PER_PRODUCT: Final = 9


@dataclass(frozen=True)
class Cart:
    """How many pieces of which product, in the order they were chosen."""

    quantities: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_cookie(cls, text: str) -> Cart:
        """Read a cookie such as ``enamel-mug:2|house-blend:1``; drop what makes no sense."""
        cart = cls()
        for item in text.split("|"):
            slug, _, quantity = item.partition(":")
            if catalogue.find(slug) and quantity.isascii() and quantity.isdigit():
                cart = cart.with_quantity(slug, min(int(quantity[:4]), MOST_PER_PRODUCT))
        return cart

    def to_cookie(self) -> str:
        """Return the text that `from_cookie` reads; all its characters are legal in a cookie."""
        return "|".join(f"{slug}:{quantity}" for slug, quantity in self.quantities)

    def quantity(self, slug: str) -> int:
        """Return how many pieces of a product are in the cart."""
        return dict(self.quantities).get(slug, 0)

    def with_quantity(self, slug: str, quantity: int) -> Cart:
        """Return a cart with exactly `quantity` pieces of a product; zero takes it out."""
        quantities = dict(self.quantities)
        quantities[slug] = max(0, min(quantity, MOST_PER_PRODUCT))
        return Cart(tuple((name, pieces) for name, pieces in quantities.items() if pieces))

    def adding(self, slug: str, quantity: int) -> Cart:
        """Return a cart with `quantity` more pieces of a product."""
        return self.with_quantity(slug, self.quantity(slug) + quantity)

    @property
    def pieces(self) -> int:
        """The number on the cart button."""
        return sum(quantity for _, quantity in self.quantities)


@dataclass(frozen=True)
class Line:
    """One row of a bill."""

    product: Product
    quantity: int
    price: Money

    @property
    def total(self) -> Money:
        """What the row costs."""
        return self.price * self.quantity


@dataclass(frozen=True)
class Bill:
    """A cart with its prices."""

    lines: tuple[Line, ...]
    subtotal: Money
    delivery: Money

    @property
    def total(self) -> Money:
        """What the customer pays."""
        return self.subtotal + self.delivery


def bill(cart: Cart, currency: Currency) -> Bill:
    """Price a cart in `currency`."""
    products = ((catalogue.find(slug), quantity) for slug, quantity in cart.quantities)
    lines = tuple(
        Line(product, quantity, product.price(currency)) for product, quantity in products if product
    )
    subtotal = reduce(Money.__add__, (line.total for line in lines), Money(0, currency))
    return Bill(lines, subtotal, delivery.fee(subtotal))
