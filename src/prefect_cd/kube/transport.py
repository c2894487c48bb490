"""Sends HTTP requests to an API server: authorization, token renewal, retries, timeouts, streams and websockets.

Every request takes one checked path. An answer that is not 2xx raises: the library's dynamic client would return a
rejected apply as an object of kind Status, which looks like success. Errors that may heal (connection, 429, 5xx) are
retried until the connection's patience is over. Which requests to send, and what their objects mean, is the client's
business.
"""

import asyncio
import copy
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import aiohttp
import anyio
import stamina
from kubernetes_asyncio.client import ApiClient, Configuration

from prefect_cd.errors import ClusterUnreachable, Invalid
from prefect_cd.kube.objects import Object
from prefect_cd.kube.responses import SUCCESS, UNAUTHORIZED, ApiError, Retryable, error_of

_READ_SECONDS = 30
WRITE_SECONDS = 10
"""No write takes longer. The environment's lock relies on it."""
WATCH_SECONDS = 25
"""The server ends a watch after this time, so a watch that is silent for longer is dead."""
_SILENCE_SECONDS = WATCH_SECONDS + 5
_TLS_CLOSE_SECONDS = 10.0
"""At most, for the API server to answer the end of a TLS connection."""
_TLS_LINGER_SECONDS = 0.25
"""For a TLS connection to end that nobody can wait for, as aiohttp's documentation advises."""
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.2, 3.0

Guard = Callable[[], Awaitable[None]]
"""Awaited before every write. Raises LockLost when another process holds the lock, ClusterUnreachable when that cannot
be found out."""
Renew = Callable[[], Awaitable[Configuration]]


async def unguarded() -> None:
    """The guard of dry runs and of writes that need no lock."""


@dataclass(frozen=True)
class Request:
    """One HTTP request to the API server.

    Args:
        method: GET, POST, PUT, PATCH or DELETE.
        path: the URL path, quoted.
        query: query parameters; those with an empty value are left out.
        body: the JSON body.
        content_type: how the body is to be read.
        accept: in which representation to answer.
        where: the object or the resource, for error messages.
        guard: awaited before each attempt.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Object | None = None
    content_type: str = "application/json"
    accept: str = "application/json"
    where: str = ""
    guard: Guard = unguarded


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    authorization: str
    """The Authorization header that was sent."""


class Transport:
    """One API server, reached with one identity.

    Args:
        client: the library's client, for its configuration and its connection pool.
        patience: how long an error that may heal is retried.
        renew: loads the configuration again, for a token that has expired; None where it cannot be renewed.
    """

    def __init__(self, client: ApiClient, patience: timedelta, *, renew: Renew | None = None) -> None:
        self.server = str(client.configuration.host)
        self.patience = patience
        self._client = client
        self._renew = renew
        self._renewing = asyncio.Lock()

    def with_patience(self, patience: timedelta) -> "Transport":
        """The same connection, with another time for retries."""
        other = copy.copy(self)
        other.patience = patience
        return other

    # --- requests ----------------------------------------------------------------------------------------------------

    async def request_json(self, request: Request) -> Object:
        """The JSON object in the answer to a request; errors that may heal are retried.

        Only for requests that change nothing when they are sent twice.
        """
        return self.parse_json(await self.request_body(request))

    async def request_json_once(self, request: Request) -> Object:
        """As `request_json`, without retries."""
        return self.parse_json(await self.request_body_once(request))

    async def request_body(self, request: Request, *, patience: timedelta | None = None) -> bytes:
        """The body of the answer to a request; errors that may heal are retried.

        Args:
            request: what to send.
            patience: how long to retry, where that is shorter than the connection's patience.
        """
        longest = self.patience if patience is None else min(patience, self.patience)
        async for attempt in stamina.retry_context(
            on=Retryable(),
            attempts=None,
            timeout=longest.total_seconds(),
            wait_initial=_FIRST_RETRY_SECONDS,
            wait_max=_LAST_RETRY_SECONDS,
        ):
            with attempt:
                return await self.request_body_once(request)
        raise AssertionError("stamina either returns or raises")

    async def request_body_once(self, request: Request) -> bytes:
        """The body of the answer to a request, without retries; an expired token is renewed."""
        answer = await self._exchange(request)
        if answer.status == UNAUTHORIZED and await self._renew_token(answer.authorization):
            answer = await self._exchange(request)
        if answer.status not in SUCCESS:
            raise error_of(request.method, answer.status, answer.body, request.where)
        return answer.body

    def parse_json(self, body: bytes) -> Object:
        """The JSON object in an answer.

        Raises:
            ClusterUnreachable: it holds none, so the answer is not from an API server.
        """
        try:
            item = json.loads(body)
        except ValueError:
            item = None
        if not isinstance(item, dict):
            raise ClusterUnreachable(
                "the answer is not from an API server: it is not a JSON object",
                where=self.server,
                hint="is a proxy or a login page in between? try `kubectl cluster-info`",
            )
        return item

    async def _exchange(self, request: Request) -> _Answer:
        """Send one request and read the whole answer."""
        # as a file: aiohttp warns about large bodies in memory, and records are large
        data = None if request.body is None else io.BytesIO(_encode(request.body))
        authorization = await self._authorization()
        await request.guard()  # last: renewing a token can take longer than the lock is known to be ours
        seconds = _READ_SECONDS if request.method == "GET" else WRITE_SECONDS
        with self._errors_translated():
            async with self._session.request(
                request.method,
                self._url(request),
                headers={**authorization, "Content-Type": request.content_type, "Accept": request.accept},
                data=data,
                # exact, since the lock relies on it: aiohttp rounds timeouts above its threshold up to whole seconds
                timeout=aiohttp.ClientTimeout(total=seconds, ceil_threshold=2 * _READ_SECONDS),
                **self._connection,
            ) as response:
                body = await response.read()
        return _Answer(response.status, body, authorization.get("authorization", ""))

    # --- streams -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer, as they arrive.

        Raises:
            ClusterUnreachable: the connection dropped, or was silent for too long.
        """
        token_renewed = False
        while True:
            authorization = await self._authorization()
            with self._errors_translated():
                async with self._session.get(
                    self._url(request),
                    headers={**authorization, "Accept": request.accept},
                    timeout=aiohttp.ClientTimeout(sock_connect=_READ_SECONDS, sock_read=_SILENCE_SECONDS),
                    **self._connection,
                ) as response:
                    if response.status in SUCCESS:
                        try:
                            yield _lines(response.content)
                        finally:
                            _abort(response)
                        return
                    body = await response.read()
            renewable = response.status == UNAUTHORIZED and not token_renewed
            token_renewed = renewable and await self._renew_token(authorization.get("authorization", ""))
            if not token_renewed:
                raise error_of(request.method, response.status, body, request.where)

    @asynccontextmanager
    async def websocket(
        self, path: str, protocol: str, *, where: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket to a path of the API server; after the block, its connection is closed.

        Raises:
            ApiError: the server rejects it.
            ClusterUnreachable: the server does not answer.
        """
        connecting = asyncio.create_task(self._open_websocket(path, protocol))
        try:
            websocket = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await _abandon(connecting)
            raise
        except aiohttp.WSServerHandshakeError as error:
            await asyncio.sleep(_TLS_LINGER_SECONDS)  # aiohttp closes the connection, and waits for nothing
            raise ApiError(f"no websocket to {where}: {error.message}", status=error.status, where=where) from error
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error
        try:
            yield websocket
        finally:
            await _close(websocket)

    async def _open_websocket(self, path: str, protocol: str) -> aiohttp.ClientWebSocketResponse:
        connecting: Awaitable[aiohttp.ClientWebSocketResponse] = self._session.ws_connect(
            self.server.replace("http", "ws", 1) + path,
            headers=await self._authorization(),
            protocols=(protocol,),
            max_msg_size=0,
            **self._connection,
        )
        with anyio.fail_after(_READ_SECONDS):
            return await connecting

    # --- connection --------------------------------------------------------------------------------------------------

    @property
    def _session(self) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = self._client.rest_client.pool_manager
        return session

    @property
    def _connection(self) -> dict[str, Any]:
        """Options of the kubeconfig that go with every request."""
        rest = self._client.rest_client
        return {
            "server_hostname": rest.server_hostname,
            "proxy": rest.proxy,
            "proxy_headers": rest.proxy_headers,
        }

    def _url(self, request: Request) -> str:
        query = urlencode({key: value for key, value in request.query.items() if value})
        return f"{self.server}{request.path}{'?' if query else ''}{query}"

    async def _authorization(self) -> dict[str, str]:
        """The Authorization header; empty for client certificates."""
        settings = (await self._client.configuration.auth_settings()).get("BearerToken")
        return {"authorization": settings["value"]} if settings and settings["value"] else {}

    async def _renew_token(self, rejected: str) -> bool:
        """Whether there is another token than the rejected one: tokens of exec plugins live for minutes only."""
        async with self._renewing:
            # a concurrent request may have renewed it already
            if self._renew and (await self._authorization()).get("authorization", "") == rejected:
                self._client.configuration.api_key.update((await self._renew()).api_key)
            return (await self._authorization()).get("authorization", "") != rejected

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """Raise our own errors for those of the HTTP library."""
        try:
            yield
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
            raise Invalid(
                f"the API server's certificate is not trusted: {error}",
                where=self.server,
                hint="the kubeconfig's certificate-authority must be the one that signed the server's certificate",
            ) from error
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(
            f"the API server does not answer: {str(error) or type(error).__name__}",
            where=self.server,
            hint="is the cluster running, and reachable from here? try `kubectl cluster-info`",
        )


def _encode(body: Object) -> bytes:
    """JSON without escapes: the server reads an apply as YAML, which knows no surrogate pairs, as an emoji has."""
    return json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")


def _abort(response: aiohttp.ClientResponse) -> None:
    """Drop the connection of a stream that still sends: closing TLS in order would outlast the event loop."""
    if response.connection and response.connection.transport:
        response.connection.transport.abort()


async def _close(websocket: aiohttp.ClientWebSocketResponse) -> None:
    """Close a websocket, and wait for the end of its TLS connection: aiohttp does not (its docs, Graceful Shutdown)."""
    socket = websocket.get_extra_info("socket")
    await websocket.close()
    deadline = asyncio.get_running_loop().time() + _TLS_CLOSE_SECONDS
    while (  # noqa: ASYNC110  a closed socket notifies nobody
        socket and socket.fileno() >= 0 and asyncio.get_running_loop().time() < deadline
    ):
        await asyncio.sleep(0.01)


async def _abandon(connecting: "asyncio.Task[aiohttp.ClientWebSocketResponse]") -> None:
    """End a websocket that is still being opened: cancelled in the middle, its TLS connection would not be closed."""
    await asyncio.wait({connecting}, timeout=_TLS_CLOSE_SECONDS)
    if not connecting.done():
        connecting.cancel()
    elif connecting.exception() is None:
        await _close(connecting.result())
    await asyncio.sleep(_TLS_LINGER_SECONDS)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: the limit of the reader's own `readline` is lower than the 1.5 MB that objects may have."""
    unfinished: list[bytes] = []
    async for chunk in content.iter_any():
        *complete, last = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*unfinished, line])
            unfinished = []
        unfinished.append(last)


__all__ = ["WATCH_SECONDS", "WRITE_SECONDS", "Guard", "Renew", "Request", "Transport", "unguarded"]
