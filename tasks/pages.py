"""How pages reach Prefect's server: what all of them have in common.

A page informs people and decides nothing: one that cannot be made or stored is a warning in the log.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL
from typing_extensions import ParamSpec

from prefect_cd.tasks.stage import log

_P = ParamSpec("_P")
_R = TypeVar("_R")


def deciding_nothing(show: Callable[_P, _R]) -> Callable[_P, _R | None]:
    """The function, with its errors in the log: Prefect's server may be away while an environment is rolled back."""

    @wraps(show)
    def shown(*args: _P.args, **kwargs: _P.kwargs) -> _R | None:
        if time.monotonic() < _unavailable.until:
            return None
        try:
            return show(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever the server's client may raise
            if isinstance(error, httpx.TransportError):
                _unavailable.until = time.monotonic() + _UNAVAILABLE_SECONDS
            log().warning("a page of this run is missing: %s", error)
            return None

    return shown


def prefect_client() -> SyncPrefectClient:
    """The client of Prefect's server that all pages of this process use: to open one takes longer than a request."""
    url = PREFECT_API_URL.value() or ""
    if url not in _clients:
        _clients[url] = get_client(sync_client=True).__enter__()
    return _clients[url]


_clients: dict[str, SyncPrefectClient] = {}
"""By the address of the server; each is open until the process ends."""


@dataclass
class _Unavailable:
    """Until when no page is made, by the monotonic clock."""

    until: float = 0.0


_unavailable = _Unavailable()
_UNAVAILABLE_SECONDS = 120.0
"""Prefect's client tries each page for a minute before it fails, and so long a rollout would not be watched."""


def key_of(words: list[str]) -> str:
    """A key for an artifact: Prefect wants lower-case words with dashes."""
    return re.sub("[^a-z0-9]+", "-", "-".join(filter(None, words)).lower()).strip("-")


_PIECE = 500
"""Characters: Prefect's server cuts longer values off."""


def metadata_of(data: str) -> dict[str, str]:
    """A text as the metadata of an artifact, where other programs do not show it."""
    return {f"{at // _PIECE:04}": data[at : at + _PIECE] for at in range(0, len(data), _PIECE)}


def data_of(metadata: Mapping[str, str] | None) -> str:
    """The text of `metadata_of`; empty where an artifact has none."""
    return "".join(piece for _, piece in sorted((metadata or {}).items()))
