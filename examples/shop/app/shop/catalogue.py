"""What the shop sells. The assortment is part of the release: a new product is a new version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shop.money import Currency, Money

if TYPE_CHECKING:
    from collections.abc import Mapping

CATEGORIES: Final = {"brew": "Brewing", "cups": "Cups", "pantry": "Pantry"}


@dataclass(frozen=True)
class Product:
    """One product; its drawing is ``templates/drawings/<slug>.svg``."""

    slug: str
    name: str
    category: str
    tagline: str
    description: str
    facts: tuple[str, ...]
    prices: Mapping[str, int]  # minor units by currency code: prices are set, not converted

    def price(self, currency: Currency) -> Money:
        """Return what one piece costs in `currency`."""
        return Money(self.prices[currency.code], currency)


PRODUCTS: Final = (
    Product(
        slug="gooseneck-kettle",
        name="Gooseneck kettle",
        category="brew",
        tagline="A slow, steady pour",
        description="The narrow spout keeps the water where you want it, and the weighted handle keeps "
        "your wrist relaxed. Works on gas, electric and induction hobs.",
        facts=("Holds 0.9 litres", "Brushed steel, heat-proof handle", "Works on every kind of hob"),
        prices={"USD": 64_00, "EUR": 59_00},
    ),
    Product(
        slug="pour-over-dripper",
        name="Pour-over dripper",
        category="brew",
        tagline="One cup at a time",
        description="A glazed stoneware cone with spiral ribs that let the coffee breathe while it drips."
        " Stands on any cup up to ten centimetres wide.",
        facts=("Brews one to two cups", "Glazed stoneware", "Fits standard cone filters"),
        prices={"USD": 28_00, "EUR": 26_00},
    ),
    Product(
        slug="glass-carafe",
        name="Glass carafe",
        category="brew",
        tagline="Made for sharing",
        description="Thin, tough borosilicate glass with a wooden collar: you see how much is left, and "
        "nobody burns their fingers.",
        facts=("Holds 0.6 litres", "Borosilicate glass, beech collar", "Dishwasher safe without the collar"),
        prices={"USD": 36_00, "EUR": 33_00},
    ),
    Product(
        slug="hand-grinder",
        name="Hand grinder",
        category="brew",
        tagline="Thirty turns to fresh coffee",
        description="Conical steel burrs on two bearings grind evenly from espresso to French press. "
        "Small enough for a rucksack, quiet enough for an early morning.",
        facts=("Takes 25 grams of beans", "Steel burrs, walnut knob", "Twenty-four grind settings"),
        prices={"USD": 89_00, "EUR": 82_00},
    ),
    Product(
        slug="enamel-mug",
        name="Enamel mug",
        category="cups",
        tagline="Home, garden, campfire",
        description="Two coats of enamel on steel, with a blue rim. It chips before it breaks, and it "
        "looks the better for it.",
        facts=("Holds 350 millilitres", "Enamelled steel", "Safe on a stove and in a dishwasher"),
        prices={"USD": 18_00, "EUR": 16_50},
    ),
    Product(
        slug="stoneware-cup",
        name="Stoneware cup",
        category="cups",
        tagline="Turned by hand",
        description="Each cup is turned and glazed by hand, so no two are quite alike. The thick wall "
        "keeps an espresso warm to the last sip.",
        facts=("Holds 120 millilitres", "Hand-turned stoneware with saucer", "Dishwasher safe"),
        prices={"USD": 22_00, "EUR": 20_00},
    ),
    Product(
        slug="house-blend",
        name="House blend",
        category="pantry",
        tagline="Cocoa, plum, hazelnut",
        description="Two washed coffees, roasted in small batches the day before they are sent. Round and"
        " sweet as a filter coffee, and sturdy enough for milk.",
        facts=("250 grams, whole beans", "Medium roast", "Best within six weeks"),
        prices={"USD": 14_50, "EUR": 13_50},
    ),
    Product(
        slug="sencha-tea",
        name="Sencha green tea",
        category="pantry",
        tagline="For the afternoon",
        description="First-flush leaves, steamed and rolled the same day. Brew it at eighty degrees for "
        "one minute, then once more.",
        facts=("80 grams of loose leaf", "Tin with an inner lid", "Good for about forty cups"),
        prices={"USD": 16_00, "EUR": 15_00},
    ),
)

_BY_SLUG: Final = {product.slug: product for product in PRODUCTS}


def find(slug: str) -> Product | None:
    """Return the product called `slug`, or None if the shop does not sell it."""
    return _BY_SLUG.get(slug)


def in_category(category: str) -> tuple[Product, ...]:
    """Return the products of one category, in the order of the catalogue."""
    return tuple(product for product in PRODUCTS if product.category == category)
