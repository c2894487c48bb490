"""From `service/NAME` to a URL: which addresses of a Service are accepted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from prefect_cd.errors import GateErrored
from prefect_cd.kube import service_url
from prefect_cd.kube.service_url import open_url
from tests.unit.fake_api import FakeApi

NAMESPACE = "shop"


@asynccontextmanager
async def another_program() -> AsyncIterator[int]:
    """A server on this machine that accepts connections; its port."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def put_service(api: FakeApi, port: int, **spec: Any) -> None:  # noqa: ANN401
    status = {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}]}}
    api.put("services", "shop", spec={"ports": [{"port": port}], **spec}, status=status)


def put_slice(api: FakeApi, port: int, *, ready: bool) -> None:
    labels = {"kubernetes.io/service-name": "shop"}
    target = {"kind": "Pod", "name": "shop-1"}
    endpoints = [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}, "targetRef": target}]
    api.put("endpointslices", "shop-a", metadata={"labels": labels}, ports=[{"port": port}], endpoints=endpoints)


async def reached(api: FakeApi) -> str:
    async with api.running() as cluster, open_url(cluster, NAMESPACE, "service/shop") as url:
        return url


@pytest.mark.parametrize("ready", [True, False])
def test_an_address_is_accepted_only_while_a_pod_behind_the_service_is_ready(
    ready: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_url, "_ENDPOINT_LAG_SECONDS", 0.1)

    async def scenario() -> None:
        api = FakeApi()
        async with another_program() as port:
            put_service(api, port, selector={"app": "shop"})
            put_slice(api, port, ready=ready)
            if ready:
                assert await reached(api) == f"http://127.0.0.1:{port}"
            else:
                with pytest.raises(GateErrored, match="no pod behind Service 'shop' is ready"):
                    await reached(api)

    asyncio.run(scenario())


def test_a_service_without_selector_is_accepted_without_endpoints_of_ours() -> None:
    async def scenario() -> None:
        api = FakeApi()
        async with another_program() as port:
            put_service(api, port)
            assert await reached(api) == f"http://127.0.0.1:{port}"

    asyncio.run(scenario())
