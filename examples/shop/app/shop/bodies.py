"""Bodies of requests: of limited size, and never trusted to be what they claim."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from starlette.requests import Request

LONGEST_BODY: Final = 16 * 1024  # bytes; the longest honest form has less than one


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of an HTML form without files; of a repeated field, the last."""
    text = (await _read(request)).decode(errors="replace")
    return dict(parse_qsl(text, keep_blank_values=True))


async def read_object(request: Request) -> dict[str, Any]:
    """Return a JSON object; anything else counts as an empty one."""
    try:
        body = json.loads(await _read(request))
    except (ValueError, RecursionError):  # not JSON, not text, or nested without end
        return {}
    return body if isinstance(body, dict) else {}


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_BODY:
            raise HTTPException(413)
    return bytes(body)
