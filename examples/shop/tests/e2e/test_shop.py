"""The shop as a user sees it: in a real browser, by the text on the page."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Page

CUSTOMER = {
    "Full name": "Test Customer",
    "Email address": "customer@example.com",
    "Street address": "1 Example Street",
    "Postal code": "12345",
    "Town or city": "Example",
}
PRICE = re.compile(r"[$€]\d+\.\d\d")


def put_into_cart(page: Page, product: str) -> None:
    page.goto("/")
    page.get_by_role("button", name=f"Add {product} to cart").click()
    expect(page.get_by_role("status")).to_have_text(f"{product} was added to your cart.")


def fill_in_checkout(page: Page) -> None:
    for label, text in CUSTOMER.items():
        page.get_by_label(label).fill(text)


def test_a_person_sees_the_catalogue(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Good coffee, made slowly")
    products = page.get_by_test_id("products").get_by_role("listitem")
    expect(products).not_to_have_count(0)
    for product in products.all():
        expect(product.get_by_role("img")).to_be_visible()
        expect(product).to_contain_text(PRICE)
    page.get_by_role("link", name="Enamel mug").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Enamel mug")


def test_a_person_puts_something_into_the_cart_and_takes_it_out(page: Page) -> None:
    page.goto("/products/enamel-mug")
    page.get_by_label("Quantity").fill("2")
    page.get_by_role("button", name="Add to cart", exact=True).click()
    expect(page.get_by_role("link", name="Cart, 2 items")).to_be_visible()
    expect(page.get_by_label("Quantity of Enamel mug", exact=True)).to_have_value("2")
    page.get_by_role("button", name="Remove Enamel mug").click()
    expect(page.get_by_text("Your cart is empty.")).to_be_visible()


def test_a_person_checks_out(page: Page) -> None:
    put_into_cart(page, "House blend")
    put_into_cart(page, "Enamel mug")
    total = page.get_by_test_id("total").inner_text()
    page.get_by_role("link", name="Go to checkout").click()
    fill_in_checkout(page)
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you for your order")
    expect(page.get_by_test_id("order-number")).to_have_text(re.compile(r"SH-\w{8}"))
    expect(page.get_by_test_id("total")).to_have_text(total)
    expect(page.get_by_role("link", name="Cart, 0 items")).to_be_visible()


def test_the_expected_version_is_shown(page: Page) -> None:
    response = page.goto("/")
    assert response
    version = os.environ.get("EXPECTED_VERSION") or response.headers["x-shop-version"]
    assert response.headers["x-shop-version"] == version
    expect(page.get_by_test_id("version")).to_have_text(version)


def test_the_browser_complains_about_no_page(page: Page, complaints: list[str]) -> None:
    put_into_cart(page, "House blend")
    for path in ("/", "/?category=cups", "/products/hand-grinder", "/cart", "/checkout"):
        response = page.goto(path)
        assert response
        assert response.ok, f"{path} answered {response.status}"
    fill_in_checkout(page)
    page.get_by_role("button", name="Place order").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you for your order")
    assert complaints == []


def test_the_checkout_can_be_used_with_the_keyboard_and_says_what_is_wrong(page: Page) -> None:
    put_into_cart(page, "Enamel mug")
    page.goto("/checkout")
    page.get_by_label("Full name").focus()
    for label, text in CUSTOMER.items():
        expect(page.get_by_label(label)).to_be_focused()
        page.keyboard.type("nobody" if label == "Email address" else text)
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Place order")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("Please check one field below.")
    email = page.get_by_label("Email address")
    expect(email).to_be_focused()
    expect(email).to_have_accessible_description("Enter an email address like name@example.com")
    email.fill(CUSTOMER["Email address"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Thank you for your order")
