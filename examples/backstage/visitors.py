"""Users of the shop in production: ten requests a second, whether or not it answers, counted by version.

An open loop: a slow answer delays no later request, so that a pause of the shop is felt by everybody who came in it.
"""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import aiohttp
from typing_extensions import Self

from prefect_cd.kube.client import Cluster, connect
from prefect_cd.kube.resources import Ref
from prefect_cd.kube.service_url import open_url
from prefect_cd.pipeline.models import ClusterAccess

PAGES = ("/", "/api/products")
_EVERY, _PATIENCE = 0.1, 5.0  # seconds
_SERVER_ERROR = 500


class Visitors:
    """Visits a Service from `with` to the end of the block.

    Attributes:
        url: where the shop is, for a browser on this machine, too.
        seen: (version, outcome) -> requests; the version is empty where nobody answered, the outcome where all is well.
    """

    def __init__(self, namespace: str, service: str) -> None:
        self.url = ""
        self.seen: Counter[tuple[str, str]] = Counter()
        self._namespace, self._service = namespace, service
        self._there, self._over = threading.Event(), threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._there.wait()
        if self._problem:
            raise self._problem
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """End the visits, and wait for the last answers."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._visit())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._problem = error
        finally:
            self._there.set()

    async def _visit(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with connect(ClusterAccess()) as cluster, self._way(cluster) as self.url:
            self._there.set()
            connector = aiohttp.TCPConnector(
                force_close=True, limit=0
            )  # everybody comes with a connection of their own
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
                clock, under_way = asyncio.get_running_loop().time, set()
                start = clock()
                for number in count():
                    if self._over.is_set():
                        break
                    under_way.add(asyncio.ensure_future(self._request(http, PAGES[number % len(PAGES)])))
                    under_way = {each for each in under_way if not each.done()}
                    await asyncio.sleep(max(start + (number + 1) * _EVERY - clock(), 0))
                await asyncio.gather(*under_way)

    async def _request(self, http: aiohttp.ClientSession, page: str) -> None:
        version, outcome = "", ""
        try:
            async with http.get(self.url + page) as answer:
                version = answer.headers.get("X-Shop-Version", "")
                await answer.read()
                if answer.status >= _SERVER_ERROR:
                    outcome = f"{answer.status} {answer.reason} on {page}"
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            outcome = type(error).__name__
        self.seen[version, outcome] += 1

    @asynccontextmanager
    async def _way(self, cluster: Cluster) -> AsyncIterator[str]:
        """The Service's own address where this machine reaches it, else as a gate finds one."""
        service = await cluster.get(Ref("v1", "Service", self._namespace, self._service)) or {}
        host, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
        if await asyncio.to_thread(_answers, host, port):
            yield f"http://{host}" + ("" if port == 80 else f":{port}")
            return
        async with open_url(cluster, self._namespace, f"service/{self._service}") as url:
            yield url


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except OSError:
        return False
