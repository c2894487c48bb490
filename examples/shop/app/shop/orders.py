"""Orders. An order's number follows from its content, so each replica gives the same order the same number.

That also makes a checkout that was sent twice one order.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from shop.cart import Cart

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE: Final = "order"
LONGEST_FIELD: Final = 120
_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U to misread
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_NUMBER: Final = re.compile(rf"SH-[{_DIGITS}]{{8}}")
_ASK: Final = {
    "name": "Enter your full name",
    "email": "Enter an email address like name@example.com",
    "street": "Enter your street and house number",
    "postcode": "Enter your postal code",
    "city": "Enter your town or city",
}


@dataclass(frozen=True)
class Customer:
    """Who an order is for, as typed in the checkout form."""

    name: str
    email: str
    street: str
    postcode: str
    city: str

    @classmethod
    def from_form(cls, form: Mapping[str, object]) -> Customer:
        """Take the fields out of a form or a JSON object; what is missing is empty."""
        return cls(**{field.name: _clean(form.get(field.name)) for field in fields(cls)})

    def complaints(self) -> dict[str, str]:
        """Return what to ask the customer for, by field; empty if all is well."""
        wrong = {field.name for field in fields(self) if not getattr(self, field.name)}
        if not _EMAIL.fullmatch(self.email):
            wrong.add("email")
        return {name: question for name, question in _ASK.items() if name in wrong}


@dataclass(frozen=True)
class Order:
    """A confirmed cart with its number."""

    number: str
    cart: Cart

    @classmethod
    def place(cls, cart: Cart, customer: Customer) -> Order:
        """Confirm a cart for a customer."""
        content = "\n".join(
            [cart.to_cookie(), *(getattr(customer, field.name) for field in fields(customer))]
        )
        digest = hashlib.sha256(content.encode()).digest()
        return cls("SH-" + "".join(_DIGITS[byte % 32] for byte in digest[:8]), cart)

    @classmethod
    def from_cookie(cls, text: str) -> Order | None:
        """Read the customer's last order from a cookie; None if there is none."""
        number, _, cart = text.partition("|")
        order = cls(number, Cart.from_cookie(cart))
        return order if _NUMBER.fullmatch(number) and order.cart.pieces else None

    def to_cookie(self) -> str:
        """Return the text that `from_cookie` reads."""
        return f"{self.number}|{self.cart.to_cookie()}"


def _clean(value: object) -> str:
    return " ".join(value.split())[:LONGEST_FIELD] if isinstance(value, str) else ""
