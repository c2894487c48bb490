"""The shop's settings, read from environment variables and checked once at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shop.money import CURRENCIES, Currency

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_PORT = 65_535
TITLE_LENGTH = 40
ANNOUNCEMENT_LENGTH = 120
VERSION_LENGTH = 80


class SettingsError(Exception):
    """An environment variable has a value the shop cannot work with."""


@dataclass(frozen=True)
class Settings:
    """Everything that may differ between two installations of the same image."""

    title: str
    currency: Currency
    announcement: str
    version: str
    host: str
    port: int

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; raise `SettingsError` with one clear line for the first wrong one."""
        return cls(
            title=_text(environ, "SHOP_TITLE", default="Shop", longest=TITLE_LENGTH),
            currency=_currency(environ.get("SHOP_CURRENCY", "USD")),
            announcement=_text(environ, "SHOP_ANNOUNCEMENT", default="", longest=ANNOUNCEMENT_LENGTH),
            version=_version(environ),
            host=environ.get("LISTEN_HOST", "127.0.0.1"),
            port=_port(environ.get("LISTEN_PORT", "8080")),
        )


def _text(environ: Mapping[str, str], name: str, *, default: str, longest: int) -> str:
    text = environ.get(name, "").strip() or default
    if not text.isprintable():
        raise SettingsError(
            f"{name} contains a line break or a control character: use one line of plain text"
        )
    if len(text) > longest:
        raise SettingsError(f"{name} has {len(text)} characters: use at most {longest}")
    return text


def _version(environ: Mapping[str, str]) -> str:
    version = _text(environ, "SHOP_VERSION", default="dev", longest=VERSION_LENGTH)
    if not version.isascii():  # it is sent as an HTTP header
        raise SettingsError(f"SHOP_VERSION is {version!r}: use ASCII characters only")
    return version


def _currency(code: str) -> Currency:
    try:
        return CURRENCIES[code]
    except KeyError:
        raise SettingsError(
            f"SHOP_CURRENCY is {code!r}: use one of {', '.join(sorted(CURRENCIES))}"
        ) from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_PORT):
        raise SettingsError(f"LISTEN_PORT is {text!r}: use a number from 1 to {MAX_PORT}")
    return int(text)
