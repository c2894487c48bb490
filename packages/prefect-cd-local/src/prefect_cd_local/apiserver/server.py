"""The HTTP server: listening, authentication and error handling. routes.py handles the paths."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import secrets

import yaml
from aiohttp import web

from prefect_cd_local.apiserver import bodies, certificate
from prefect_cd_local.apiserver.errors import Refusal
from prefect_cd_local.apiserver.kinds import BY_NAME
from prefect_cd_local.apiserver.options import Options
from prefect_cd_local.apiserver.routes import Hooks, Routes
from prefect_cd_local.apiserver.services import Ranges
from prefect_cd_local.apiserver.storage import Store
from prefect_cd_local.apiserver.verbs import Verbs

_log = logging.getLogger(__name__)
_ALWAYS_THERE = ("default", "kube-node-lease", "kube-public", "kube-system")
_LARGEST = 3 * 1024 * 1024
_HEALTH = ("/healthz", "/livez", "/readyz")
_SECONDS_TO_END = 0.5
_UNSERVED = Ranges(ipaddress.IPv4Network("10.96.0.0/16"))  # no node serves these
_INTERNAL_ERRORS = (ValueError, TypeError, LookupError, AttributeError)


class ApiServer:
    """One API server over a store in memory.

    Args:
        host: a loopback address.
        port: 0 for any free one; after `start`, `port` is the actual one.
        token: the bearer token of clients; a new one when empty.
        hooks: logs and port-forwards.
        service_ranges: where Services get their addresses from.
        log: how many changes a watch can go back.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        hooks: Hooks | None = None,
        *,
        service_ranges: Ranges = _UNSERVED,
        log: int = 10_000,
    ) -> None:
        self.host, self.port = host, port
        self.token = token or secrets.token_urlsafe(32)
        self.store = Store(log)
        self._verbs = Verbs(self.store, service_ranges)
        self.certificate = ""
        self._closing = asyncio.Event()
        self._routes = Routes(self.store, self._verbs, hooks or Hooks(), self._closing)
        self._runner: web.AppRunner | None = None

    @property
    def hooks(self) -> Hooks:
        """Functions that the node provides."""
        return self._routes.hooks

    @hooks.setter
    def hooks(self, hooks: Hooks) -> None:
        self._routes.hooks = hooks

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"https://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen, with the namespaces that every cluster has.

        Raises:
            OSError: the port is in use.
        """
        namespaces = BY_NAME["v1", "Namespace"]
        for name in _ALWAYS_THERE:
            self._verbs.create(namespaces, "", {"metadata": {"name": name}}, Options("kube-apiserver"))
        application = web.Application(client_max_size=_LARGEST)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=_SECONDS_TO_END
        )
        await self._runner.setup()
        context, self.certificate = certificate.make(self.host)
        await web.TCPSite(self._runner, self.host, self.port, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """End all watches, then stop listening."""
        self._closing.set()
        if self._runner:
            await self._runner.cleanup()

    def kubeconfig(self, namespace: str = "default") -> str:
        """Return a kubeconfig with the token, as YAML."""
        name = "embedded"
        trust = {"certificate-authority-data": base64.b64encode(self.certificate.encode()).decode()}
        context = {"cluster": name, "user": name, "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": self.url, **trust}}],
            "users": [{"name": name, "user": {"token": self.token}}],
            "contexts": [{"name": name, "context": context}],
            "current-context": name,
        }
        return yaml.safe_dump(content, sort_keys=False)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in _HEALTH:
            return web.Response(text="ok")
        try:
            if request.path != "/version" and not self._is_authenticated(request):
                raise Refusal(401, "Unauthorized", "Unauthorized")
            return await self._routes.answer(request)
        except Refusal as caught:
            refusal = caught
        except web.HTTPRequestEntityTooLarge:
            refusal = Refusal(413, "RequestEntityTooLarge", f"Request entity too large: limit is {_LARGEST}", {})
        except _INTERNAL_ERRORS as error:
            _log.exception("%s %s", request.method, request.path_qs)
            message = f"Internal error occurred: {type(error).__name__}: {error}"
            refusal = Refusal(500, "InternalError", message, {"causes": [{"message": message}]})
        return bodies.answer(refusal.status(), refusal.code)

    def _is_authenticated(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), self.token.encode())
