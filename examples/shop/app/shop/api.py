"""The JSON API: the same shop for programs. Amounts are whole minor units (cents)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shop import cart, catalogue
from shop.bodies import read_object
from shop.cart import Cart
from shop.orders import Customer, Order
from shop.pages import keep_cart, keep_order

if TYPE_CHECKING:
    from starlette.requests import Request

    from shop.catalogue import Product
    from shop.money import Money
    from shop.settings import Settings


class Api:
    """The JSON side of the shop."""

    def __init__(self, settings: Settings) -> None:
        """Answer in the currency of `settings`."""
        self._settings = settings
        self._currency = settings.currency

    def routes(self) -> list[Route]:
        """Return the addresses of all resources."""
        return [
            Route("/api/version", self.version),
            Route("/api/products", self.products),
            Route("/api/cart", self.cart),
            Route("/api/cart", self.set_quantity, methods=["POST"]),
            Route("/api/checkout", self.checkout, methods=["POST"]),
        ]

    async def version(self, _: Request) -> Response:
        """Tell which version answers, and how it is set up."""
        settings = self._settings
        return JSONResponse(
            {"version": settings.version, "title": settings.title, "currency": settings.currency.code}
        )

    async def products(self, _: Request) -> Response:
        """List all products with their prices."""
        return JSONResponse({"products": [self._product(product) for product in catalogue.PRODUCTS]})

    async def cart(self, request: Request) -> Response:
        """Tell what is in the cart."""
        return JSONResponse(self._bill(_cart_of(request)))

    async def set_quantity(self, request: Request) -> Response:
        """Set the quantity of one product, given as ``{"product": "enamel-mug", "quantity": 2}``."""
        body = await read_object(request)
        slug, quantity = body.get("product"), body.get("quantity")
        if not isinstance(slug, str) or catalogue.find(slug) is None:
            return error(404, "unknown-product", f"There is no product {slug!r}.")
        if type(quantity) is not int or not 0 <= quantity <= cart.MOST_PER_PRODUCT:
            return error(422, "bad-quantity", f"quantity must be 0 to {cart.MOST_PER_PRODUCT}.")
        changed = _cart_of(request).with_quantity(slug, quantity)
        return keep_cart(JSONResponse(self._bill(changed)), changed)

    async def checkout(self, request: Request) -> Response:
        """Place an order for the cart; the body has name, email, street, postcode and city."""
        chosen = _cart_of(request)
        if not chosen.pieces:
            return error(409, "empty-cart", "The cart is empty.")
        customer = Customer.from_form(await read_object(request))
        if complaints := customer.complaints():
            return error(422, "incomplete", "Some fields are missing or wrong.", fields=complaints)
        order = Order.place(chosen, customer)
        return keep_order(
            JSONResponse({"number": order.number, **self._bill(chosen)}, status_code=201), order
        )

    def _product(self, product: Product) -> dict[str, Any]:
        return {
            "slug": product.slug,
            "name": product.name,
            "category": product.category,
            "price": _money(product.price(self._currency)),
        }

    def _bill(self, chosen: Cart) -> dict[str, Any]:
        bill = cart.bill(chosen, self._currency)
        return {
            "items": [
                {"product": line.product.slug, "quantity": line.quantity, "total": _money(line.total)}
                for line in bill.lines
            ],
            "subtotal": _money(bill.subtotal),
            "delivery": _money(bill.delivery),
            "total": _money(bill.total),
        }


def error(status: int, code: str, message: str, **more: object) -> JSONResponse:
    """An error response in JSON, with a code for programs and a message for people."""
    return JSONResponse({"error": {"code": code, "message": message, **more}}, status_code=status)


def _money(money: Money) -> dict[str, Any]:
    return {"amount": money.amount, "currency": money.currency.code, "text": str(money)}


def _cart_of(request: Request) -> Cart:
    return Cart.from_cookie(request.cookies.get(cart.COOKIE, ""))
