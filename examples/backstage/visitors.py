"""Simulated users of the shop in production: ten requests a second, counted by the version that answers.

An open loop: a slow answer delays no later request, so that an outage costs as many requests as it would real users.
"""

import asyncio
import threading
from collections import Counter
from itertools import count

import aiohttp
from typing_extensions import Self

from prefect_cd.kube.client import connect
from prefect_cd.kube.service_url import open_url
from prefect_cd.pipeline.models import ClusterAccess

PAGES = ("/", "/api/products")
_INTERVAL, _TIMEOUT = 0.1, 5.0  # seconds
_FIRST_ERROR = 400  # both pages exist in every version


class Visitors:
    """Sends requests to a Service from `with` to the end of the block.

    Attributes:
        url: the address of the shop, which a browser on this machine reaches, too.
        requests: (version, failure) -> number of requests; the version is empty when no answer named one, the failure
            is empty for a good answer.
        problem: why the requests stopped before `stop` was called; None when they did not.
    """

    def __init__(self, namespace: str, service: str) -> None:
        self.url = ""
        self.requests: Counter[tuple[str, str]] = Counter()
        self._namespace, self._service = namespace, service
        self._started, self._stopping = threading.Event(), threading.Event()
        self.problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        if self.problem:
            raise self.problem
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more requests, and wait for the last answers."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._visit())
        except BaseException as error:  # noqa: BLE001 - raised again in `__enter__`, or reported at the end
            self.problem = error
        finally:
            self._started.set()

    async def _visit(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with (
            connect(ClusterAccess()) as cluster,
            open_url(cluster, self._namespace, f"service/{self._service}") as self.url,
        ):
            self._started.set()
            connector = aiohttp.TCPConnector(force_close=True, limit=0)  # a new connection for each request
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
                clock, pending = asyncio.get_running_loop().time, set()
                start = clock()
                for number in count():
                    if self._stopping.is_set():
                        break
                    pending.add(asyncio.ensure_future(self._request(http, PAGES[number % len(PAGES)])))
                    pending = {request for request in pending if not request.done()}
                    await asyncio.sleep(max(start + (number + 1) * _INTERVAL - clock(), 0))
                await asyncio.gather(*pending)

    async def _request(self, http: aiohttp.ClientSession, page: str) -> None:
        version, failure = "", ""
        try:
            async with http.get(self.url + page) as response:
                version = response.headers.get("X-Shop-Version", "")
                await response.read()
                if response.status >= _FIRST_ERROR:
                    failure = f"{response.status} {response.reason} on {page}"
                elif not version:
                    failure = f"an answer without X-Shop-Version on {page}"
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            failure = type(error).__name__
        self.requests[version, failure] += 1
