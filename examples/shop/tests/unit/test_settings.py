"""What the shop accepts from its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shop.settings import Settings, SettingsError

APP = Path(__file__).parents[2] / "app"


def test_an_empty_environment_is_a_working_shop() -> None:
    settings = Settings.from_environ({})
    assert (settings.title, settings.currency.code, settings.version) == ("Shop", "USD", "dev")
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


def test_the_environment_decides(environ: dict[str, str]) -> None:
    settings = Settings.from_environ({**environ, "SHOP_CURRENCY": "EUR", "LISTEN_PORT": "8000"})
    assert (settings.title, settings.currency.symbol, settings.port) == ("Test shop", "€", 8000)
    assert settings.announcement == "Tea & cake today"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("SHOP_CURRENCY", "GBP", "SHOP_CURRENCY is 'GBP': use one of EUR, USD"),
        ("SHOP_CURRENCY", "", "SHOP_CURRENCY is '': use one of EUR, USD"),
        ("SHOP_TITLE", "x" * 41, "SHOP_TITLE has 41 characters: use at most 40"),
        ("SHOP_ANNOUNCEMENT", "two\nlines", "SHOP_ANNOUNCEMENT contains a line break"),
        ("SHOP_VERSION", "1\r\nSet-Cookie: a=b", "SHOP_VERSION contains a line break"),
        ("SHOP_VERSION", "vé", "SHOP_VERSION is 'vé': use ASCII characters only"),
        ("LISTEN_PORT", "tcp://10.0.0.1:80", "LISTEN_PORT is 'tcp://10.0.0.1:80'"),
        ("LISTEN_PORT", "0", "LISTEN_PORT is '0': use a number from 1 to 65535"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_use_instead(
    environ: dict[str, str], name: str, value: str, complaint: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({**environ, name: value})
    assert str(caught.value).startswith(complaint)


def test_a_wrong_setting_ends_the_start_with_one_line_and_exit_code_1() -> None:
    environ = {**os.environ, "SHOP_CURRENCY": "GBP", "PYTHONPATH": str(APP)}
    run = subprocess.run(
        [sys.executable, "-m", "shop"], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 1
    assert run.stderr == "shop: SHOP_CURRENCY is 'GBP': use one of EUR, USD\n"
