"""The pages, as a browser without JavaScript uses them."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from shop import catalogue

if TYPE_CHECKING:
    from starlette.testclient import TestClient

CUSTOMER = {
    "name": "Test Customer",
    "email": "customer@example.com",
    "street": "1 Example Street",
    "postcode": "12345",
    "city": "Example",
}


def put_into_cart(visitor: TestClient, product: str = "enamel-mug", quantity: str = "1") -> None:
    visitor.post("/cart/items", data={"product": product, "quantity": quantity}).raise_for_status()


def test_the_catalogue_shows_every_product(visitor: TestClient) -> None:
    page = visitor.get("/")
    assert page.status_code == 200
    assert all(product.name in page.text for product in catalogue.PRODUCTS)


def test_a_category_shows_its_products_only(visitor: TestClient) -> None:
    page = visitor.get("/?category=pantry")
    assert "House blend" in page.text
    assert "Enamel mug" not in page.text


def test_title_and_announcement_come_from_the_settings_and_are_escaped(visitor: TestClient) -> None:
    page = visitor.get("/")
    assert "<title>Catalogue | Test shop</title>" in page.text
    assert "Tea &amp; cake today" in page.text


@pytest.mark.parametrize(
    "path", ["/", "/products/enamel-mug", "/cart", "/nowhere", "/api/products", "/healthz"]
)
def test_every_answer_names_the_version(visitor: TestClient, path: str) -> None:
    assert visitor.get(path).headers["X-Shop-Version"] == "1.2.3"


@pytest.mark.parametrize("path", ["/", "/products/enamel-mug", "/cart", "/nowhere"])
def test_every_page_shows_the_version(visitor: TestClient, path: str) -> None:
    assert 'data-testid="version">1.2.3<' in visitor.get(path).text


def test_the_style_sheet_in_the_page_is_the_one_the_policy_allows(visitor: TestClient) -> None:
    page = visitor.get("/")
    found = re.search("<style>(.*?)</style>", page.text, re.DOTALL)
    assert found
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["Content-Security-Policy"]


def test_a_page_loads_nothing_from_elsewhere(visitor: TestClient) -> None:
    assert not re.search(r"(src|href)=\"(https?:)?//", visitor.get("/").text)


def test_a_product_goes_into_the_cart_and_out_again(visitor: TestClient) -> None:
    put_into_cart(visitor, quantity="2")
    assert "$36.00" in visitor.get("/cart").text
    visitor.post("/cart/items/enamel-mug", data={"quantity": "0"})
    assert "Your cart is empty." in visitor.get("/cart").text


def test_an_order_is_placed_and_the_cart_is_empty_after_it(visitor: TestClient) -> None:
    put_into_cart(visitor)
    page = visitor.post("/checkout", data=CUSTOMER)
    assert page.url.path.startswith("/orders/SH-")
    assert "Thank you for your order" in page.text
    assert 'aria-label="Cart, 0 items"' in page.text


def test_an_incomplete_checkout_asks_again_and_keeps_what_was_typed(visitor: TestClient) -> None:
    put_into_cart(visitor)
    page = visitor.post("/checkout", data={**CUSTOMER, "email": "not-an-address"})
    assert "Enter an email address like name@example.com" in page.text
    assert 'value="Test Customer"' in page.text
    assert page.text.count('aria-invalid="true"') == 1


def test_checkout_without_a_cart_leads_to_the_cart(visitor: TestClient) -> None:
    assert visitor.get("/checkout").url.path == "/cart"
    assert visitor.post("/checkout", data=CUSTOMER).url.path == "/cart"


@pytest.mark.parametrize(
    "path", ["/products/no-such", "/?category=no-such", "/orders/SH-00000000", "/nowhere"]
)
def test_what_does_not_exist_is_a_friendly_404(visitor: TestClient, path: str) -> None:
    page = visitor.get(path)
    assert page.status_code == 404
    assert "We could not find this page" in page.text


def test_a_quantity_that_is_no_number_is_refused(visitor: TestClient) -> None:
    answer = visitor.post("/cart/items", data={"product": "enamel-mug", "quantity": "many"})
    assert answer.status_code == 400


def test_a_form_without_end_is_refused(visitor: TestClient) -> None:
    assert visitor.post("/cart/items", data={"product": "x" * 20_000}).status_code == 413


def test_the_favicon_is_a_picture(visitor: TestClient) -> None:
    assert visitor.get("/favicon.svg").headers["Content-Type"] == "image/svg+xml"
