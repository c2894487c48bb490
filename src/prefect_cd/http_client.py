"""Send one HTTP request to a server that is not trusted: an application under test, a registry, a token service.

Decides how much of an answer is taken: there is one deadline for all of it (name, connection, headers, body), headers
end after 100 KB and the body after a limit, compressed bodies are unpacked up to the same limit, and text is UTF-8
whatever the server calls it. No redirect is followed, no cookie kept. Knows nothing of what an answer means.

Why not `httpx.Client`: it limits the wait for each piece and not the whole, unpacks without a limit, decodes with any
codec of Python that the server names, and raises for a redirect that it does not follow. Its transport does none of it.
"""

import ipaddress
import zlib
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
import httpx
from anyio.from_thread import start_blocking_portal

_ANY_HEADER = 32 + zlib.MAX_WBITS  # zlib finds out whether it is gzip or zlib
_UNPACKED = ("gzip", "x-gzip", "deflate")


class Response(NamedTuple):
    """An answer.

    Attributes:
        status: its code.
        headers: as the server sent them.
        body: its beginning, unpacked where it is packed once by gzip or deflate.
        complete: whether `body` is all of it.
    """

    status: int
    headers: httpx.Headers
    body: bytes
    complete: bool

    @property
    def text(self) -> str:
        """The body as UTF-8, with a mark in place of what is not."""
        return self.body.decode("utf-8", "replace")


def send(
    method: str,
    url: httpx.URL | str,
    *,
    timeout: timedelta,
    largest_body: int,
    headers: Mapping[str, str] = {},
    form: Mapping[str, str] | None = None,
) -> Response:
    """Send one request and read the answer, by the proxy of the environment unless the host is a loopback address.

    It may be called from a thread that runs an event loop, which then waits.

    Args:
        method: GET, HEAD or POST.
        url: http or https.
        timeout: for everything.
        largest_body: in bytes; the rest is not read.
        headers: of the request.
        form: fields of the request's body.

    Raises:
        httpx.TransportError: no answer, or not in time, or not HTTP.
        httpx.InvalidURL, ValueError: `url` is not a URL.
    """
    fixed = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "prefect-cd", "Connection": "close"}
    request = httpx.Request(method, url, headers={**fixed, **headers}, data=form)
    with start_blocking_portal() as portal:
        return portal.call(partial(_send, request, timeout.total_seconds(), largest_body))


async def _send(request: httpx.Request, seconds: float, largest_body: int) -> Response:
    try:
        with anyio.fail_after(seconds):
            # loading the certificate authorities takes 30 ms, and plain HTTP has no certificate
            tls, proxy = request.url.scheme == "https", proxy_for(str(request.url))
            async with httpx.AsyncHTTPTransport(verify=tls, proxy=proxy) as transport:
                response = await transport.handle_async_request(request)
                try:
                    packed, complete = await _beginning(response, largest_body)
                finally:
                    await response.aclose()
    except TimeoutError:
        raise httpx.ReadTimeout(f"no whole answer within {seconds:.3g} s", request=request) from None
    body, unpacked = unpack(packed, response.headers.get("Content-Encoding", ""), largest_body)
    return Response(response.status_code, response.headers, body, complete and unpacked)


async def _beginning(response: httpx.Response, largest: int) -> tuple[bytes, bool]:
    """The first bytes of a body as they were sent, and whether they are all."""
    start = bytearray()
    async for chunk in response.aiter_raw():
        start += chunk
        if len(start) > largest:
            return bytes(start[:largest]), False
    return bytes(start), True


def unpack(content: bytes, encoding: str, largest: int) -> tuple[bytes, bool]:
    """A body without its compression, and whether that is all of it.

    Args:
        content: the body as it was sent, or its beginning.
        encoding: its Content-Encoding. A body that is packed in another way than once by gzip or deflate, which no
            request of ours asks for, stays as it is.
        largest: how many bytes are unpacked.
    """
    if encoding.strip().lower() not in _UNPACKED:
        return content, True
    decoder = zlib.decompressobj(_ANY_HEADER)
    try:
        return decoder.decompress(content, largest), not decoder.unconsumed_tail
    except zlib.error:
        return content, True


def proxy_for(url: str) -> str | None:
    """The HTTP proxy that the environment variables ($HTTPS_PROXY, $NO_PROXY …) name for a URL; none for the loopback.

    Nothing else is taken from the environment: the clients' own `trust_env` may send the passwords of ~/.netrc.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy and proxy.startswith("http") else None


def is_loopback(host: str) -> bool:
    """Whether a host, without its port, is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


__all__ = ["Response", "is_loopback", "proxy_for", "send", "unpack"]
