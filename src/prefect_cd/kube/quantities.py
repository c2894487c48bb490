"""Amounts as Kubernetes writes them: `500m`, `1Gi`, `2`. Pure.

The suffixes: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

import re
from decimal import Decimal

_QUANTITY = re.compile(r"([+-]?\d*\.?\d+\.?)(?:([eE][+-]?\d+)|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?")
_POWERS = {
    **{suffix: Decimal(10) ** power for suffix, power in (("n", -9), ("u", -6), ("m", -3))},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}


def quantity(value: object) -> Decimal | None:
    """The number of an amount; None for anything that is no amount."""
    match = _QUANTITY.fullmatch(str(value))
    if not match or isinstance(value, bool):
        return None
    number, exponent, suffix = match.groups()
    return Decimal(number + (exponent or "")) * _POWERS.get(suffix, Decimal(1))


__all__ = ["quantity"]
