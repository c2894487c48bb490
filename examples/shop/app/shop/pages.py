"""The pages a person sees. Every form works without JavaScript: post, redirect, get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from shop import cart, catalogue, orders
from shop.bodies import read_form
from shop.cart import Cart
from shop.orders import Customer, Order
from shop.rendering import FAVICON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from shop.catalogue import Product
    from shop.rendering import Renderer
    from shop.settings import Settings

KEEP_CART_SECONDS: Final = 7 * 24 * 3600


class Pages:
    """The HTML side of the shop."""

    def __init__(self, settings: Settings, renderer: Renderer) -> None:
        """Serve pages in the currency of `settings`."""
        self._currency = settings.currency
        self._page = renderer.page

    def routes(self) -> list[Route]:
        """Return the addresses of all pages."""
        return [
            Route("/", self.catalogue),
            Route("/products/{slug}", self.product),
            Route("/cart", self.cart),
            Route("/cart/items", self.add, methods=["POST"]),
            Route("/cart/items/{slug}", self.change, methods=["POST"]),
            Route("/checkout", self.checkout),
            Route("/checkout", self.place_order, methods=["POST"]),
            Route("/orders/{number}", self.order),
            Route("/favicon.svg", favicon),
            Route("/favicon.ico", favicon),
        ]

    async def catalogue(self, request: Request) -> Response:
        """Show all products, or one category."""
        category = request.query_params.get("category", "")
        products = catalogue.in_category(category) if category else catalogue.PRODUCTS
        if not products:
            raise HTTPException(404)
        return self._page(
            request, "catalogue.html", products=products, category=category, currency=self._currency
        )

    async def product(self, request: Request) -> Response:
        """Show one product."""
        product = _known(request.path_params["slug"])
        others = [
            other for other in catalogue.PRODUCTS if other != product and other.category == product.category
        ]
        return self._page(
            request, "product.html", product=product, others=others[:3], currency=self._currency
        )

    async def cart(self, request: Request) -> Response:
        """Show the cart, and say what was just put into it."""
        added = catalogue.find(request.query_params.get("added", ""))
        bill = cart.bill(_cart_of(request), self._currency)
        return self._page(request, "cart.html", bill=bill, added=added)

    async def add(self, request: Request) -> Response:
        """Put a product into the cart."""
        form = await read_form(request)
        product = _known(form.get("product", ""))
        chosen = _cart_of(request).adding(product.slug, _quantity(form))
        return keep_cart(_see(f"/cart?added={product.slug}"), chosen)

    async def change(self, request: Request) -> Response:
        """Set the quantity of a product in the cart; zero takes it out."""
        product = _known(request.path_params["slug"])
        changed = _cart_of(request).with_quantity(product.slug, _quantity(await read_form(request)))
        return keep_cart(_see("/cart"), changed)

    async def checkout(self, request: Request) -> Response:
        """Ask where the order goes."""
        chosen = _cart_of(request)
        if not chosen.pieces:
            return _see("/cart")
        return self._checkout_form(request, chosen, Customer("", "", "", "", ""))

    async def place_order(self, request: Request) -> Response:
        """Confirm the order, or ask again for what is missing."""
        chosen = _cart_of(request)
        if not chosen.pieces:
            return _see("/cart")
        customer = Customer.from_form(await read_form(request))
        if complaints := customer.complaints():  # a page, not an HTTP error: the conversation goes on
            return self._checkout_form(request, chosen, customer, complaints)
        order = Order.place(chosen, customer)
        return keep_order(_see(f"/orders/{order.number}"), order)

    async def order(self, request: Request) -> Response:
        """Show the confirmation of the visitor's last order."""
        order = Order.from_cookie(request.cookies.get(orders.COOKIE, ""))
        if order is None or order.number != request.path_params["number"]:
            raise HTTPException(404)
        return self._page(request, "order.html", order=order, bill=cart.bill(order.cart, self._currency))

    def _checkout_form(
        self, request: Request, chosen: Cart, customer: Customer, complaints: dict[str, str] | None = None
    ) -> Response:
        return self._page(
            request,
            "checkout.html",
            bill=cart.bill(chosen, self._currency),
            customer=customer,
            complaints=complaints or {},
        )


async def favicon(_: Request) -> Response:
    """Send the little picture for the browser's tab."""
    return Response(FAVICON, headers={"Cache-Control": "public, max-age=3600"}, media_type="image/svg+xml")


def keep_cart(response: Response, chosen: Cart) -> Response:
    """Remember a cart in the visitor's browser."""
    response.set_cookie(
        cart.COOKIE, chosen.to_cookie(), max_age=KEEP_CART_SECONDS, httponly=True, samesite="lax"
    )
    return response


def keep_order(response: Response, order: Order) -> Response:
    """Remember an order in the visitor's browser, and empty the cart."""
    response.set_cookie(orders.COOKIE, order.to_cookie(), httponly=True, samesite="lax")
    response.delete_cookie(cart.COOKIE, httponly=True, samesite="lax")
    return response


def _cart_of(request: Request) -> Cart:
    return Cart.from_cookie(request.cookies.get(cart.COOKIE, ""))


def _known(slug: str) -> Product:
    product = catalogue.find(slug)
    if product is None:
        raise HTTPException(404)
    return product


def _see(path: str) -> Response:
    return RedirectResponse(path, status_code=303)


def _quantity(form: Mapping[str, str]) -> int:
    text = form.get("quantity", "")
    if not (text.isascii() and text.isdigit()):
        raise HTTPException(400)
    return min(int(text[:4]), cart.MOST_PER_PRODUCT)
