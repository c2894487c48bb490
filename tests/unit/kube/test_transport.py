"""An expired token is renewed once per request, and requests that are sent at the same time renew it together."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration

from prefect_cd.errors import Forbidden
from prefect_cd.kube.transport import Request, Transport

Reader = Callable[[Transport], Awaitable[list[bytes]]]
VALID, EXPIRED = "Bearer valid", "Bearer expired"


class Api:
    """A server that accepts one token, and a kubeconfig whose plugin returns `next_token`."""

    def __init__(self, next_token: str) -> None:
        self.next_token = next_token
        self.tokens: list[str] = []
        self.renewals = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"])
        if request.headers["Authorization"] != VALID:
            return web.json_response({"message": "Unauthorized"}, status=401)
        return web.Response(text='{"line": 1}\n{"line": 2}\n')

    async def renew(self) -> Configuration:
        self.renewals += 1
        return configuration(self.next_token)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Transport]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with ApiClient(configuration(EXPIRED, f"http://127.0.0.1:{runner.addresses[0][1]}")) as client:
                yield Transport(client, timedelta(seconds=1), renew=self.renew)
        finally:
            await runner.cleanup()


def configuration(token: str, server: str = "http://unused") -> Configuration:
    made = Configuration(host=server)
    made.api_key = {"BearerToken": token}
    return made


async def read_all(transport: Transport) -> list[bytes]:
    return (await transport.request_body(Request("GET", "/version"))).splitlines()


async def stream_all(transport: Transport) -> list[bytes]:
    async with transport.stream(Request("GET", "/api/v1/pods")) as lines:
        return [line async for line in lines]


@pytest.mark.parametrize("read", [read_all, stream_all])
def test_an_expired_token_is_renewed_and_the_request_sent_again(read: Reader) -> None:
    async def run() -> None:
        api = Api(VALID)
        async with api.connected() as transport:
            answers = await asyncio.gather(*(read(transport) for _ in range(3)))
        assert answers == [[b'{"line": 1}', b'{"line": 2}']] * 3
        assert (api.renewals, api.tokens.count(VALID)) == (1, 3)

    asyncio.run(run())


@pytest.mark.parametrize("read", [read_all, stream_all])
@pytest.mark.parametrize(("token", "attempts"), [(EXPIRED, 1), ("Bearer wrong", 2)])
def test_a_token_that_stays_rejected_is_forbidden(read: Reader, token: str, attempts: int) -> None:
    async def run() -> None:
        api = Api(token)
        async with api.connected() as transport:
            with pytest.raises(Forbidden, match="does not accept our credentials"):
                await read(transport)
        assert (api.renewals, len(api.tokens)) == (1, attempts)

    asyncio.run(run())
