"""Amounts of money: whole minor units (cents) of one currency, never floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Currency:
    """A currency the shop can sell in; each has a hundred minor units."""

    code: str
    symbol: str


CURRENCIES: Final = {currency.code: currency for currency in (Currency("USD", "$"), Currency("EUR", "€"))}


@dataclass(frozen=True)
class Money:
    """An amount in minor units, for example ``Money(1850, usd)`` for $18.50."""

    amount: int
    currency: Currency

    def __add__(self, other: Money) -> Money:
        """Add an amount of the same currency."""
        if other.currency != self.currency:
            raise ValueError(f"cannot add {other.currency.code} to {self.currency.code}")
        return Money(self.amount + other.amount, self.currency)

    def __mul__(self, quantity: int) -> Money:
        """Multiply by a number of pieces."""
        return Money(self.amount * quantity, self.currency)

    def __str__(self) -> str:
        """Return the amount as a customer reads it."""
        return f"{self.currency.symbol}{self.amount // 100:,}.{self.amount % 100:02}"
