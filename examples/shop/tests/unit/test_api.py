"""The JSON API and the probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from shop import catalogue
from shop.application import create_app
from shop.settings import Settings

if TYPE_CHECKING:
    from shop.money import Currency, Money

CUSTOMER = {
    "name": "Test Customer",
    "email": "customer@example.com",
    "street": "1 Example Street",
    "postcode": "12345",
    "city": "Example",
}


def test_products_have_prices_in_minor_units(visitor: TestClient) -> None:
    products = visitor.get("/api/products").json()["products"]
    mug = next(product for product in products if product["slug"] == "enamel-mug")
    assert mug["price"] == {"amount": 1800, "currency": "USD", "text": "$18.00"}
    assert len(products) == len(catalogue.PRODUCTS)


def test_version_tells_what_runs(visitor: TestClient) -> None:
    assert visitor.get("/api/version").json() == {"version": "1.2.3", "title": "Test shop", "currency": "USD"}


def test_the_cart_is_kept_between_requests(visitor: TestClient) -> None:
    visitor.post("/api/cart", json={"product": "enamel-mug", "quantity": 2})
    cart = visitor.get("/api/cart").json()
    assert [(item["product"], item["quantity"]) for item in cart["items"]] == [("enamel-mug", 2)]
    assert cart["total"]["amount"] == cart["subtotal"]["amount"] + cart["delivery"]["amount"]


def test_checkout_gives_an_order_number_and_empties_the_cart(visitor: TestClient) -> None:
    visitor.post("/api/cart", json={"product": "enamel-mug", "quantity": 1})
    answer = visitor.post("/api/checkout", json=CUSTOMER)
    assert answer.status_code == 201
    assert answer.json()["number"].startswith("SH-")
    assert visitor.get("/api/cart").json()["items"] == []


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/cart", {"product": "no-such", "quantity": 1}, 404, "unknown-product"),
        ("/api/cart", {"product": "enamel-mug", "quantity": 10}, 422, "bad-quantity"),
        ("/api/cart", {"product": "enamel-mug", "quantity": True}, 422, "bad-quantity"),
        ("/api/cart", ["not an object"], 404, "unknown-product"),
        ("/api/checkout", CUSTOMER, 409, "empty-cart"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_code(
    visitor: TestClient,
    path: str,
    body: object,
    status: int,
    code: str,
) -> None:
    answer = visitor.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_an_incomplete_checkout_names_the_fields(visitor: TestClient) -> None:
    visitor.post("/api/cart", json={"product": "enamel-mug", "quantity": 1})
    answer = visitor.post("/api/checkout", content=b"\xff not json")
    assert answer.status_code == 422
    assert set(answer.json()["error"]["fields"]) == set(CUSTOMER)


def test_an_unknown_resource_is_a_404_in_json(visitor: TestClient) -> None:
    answer = visitor.get("/api/nowhere")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not-found")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_say_yes(visitor: TestClient, path: str) -> None:
    assert visitor.get(path).status_code == 200


@pytest.mark.parametrize(("path", "kind"), [("/", "text/html"), ("/api/products", "application/json")])
def test_a_mistake_of_ours_is_a_500_that_still_names_the_version(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    def broken(_: catalogue.Product, currency: Currency) -> Money:
        raise KeyError(currency.code)

    monkeypatch.setattr(catalogue.Product, "price", broken)
    visitor = TestClient(create_app(Settings.from_environ(environ)), raise_server_exceptions=False)
    answer = visitor.get(path)
    assert answer.status_code == 500
    assert answer.headers["Content-Type"].startswith(kind)
    assert answer.headers["X-Shop-Version"] == "1.2.3"
