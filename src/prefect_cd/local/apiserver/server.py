"""The server itself: listening, who may ask, and what becomes of what goes wrong. Paths are routes.py's."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import secrets

import yaml
from aiohttp import web

from prefect_cd.local.apiserver import bodies, certificate
from prefect_cd.local.apiserver.errors import Refusal
from prefect_cd.local.apiserver.kinds import BY_NAME
from prefect_cd.local.apiserver.options import Options
from prefect_cd.local.apiserver.routes import Hooks, Routes
from prefect_cd.local.apiserver.storage import Store
from prefect_cd.local.apiserver.verbs import Verbs

_log = logging.getLogger(__name__)
_ALWAYS_THERE = ("default", "kube-node-lease", "kube-public", "kube-system")
_LARGEST = 3 * 1024 * 1024
_HEALTH = ("/healthz", "/livez", "/readyz")
_SECONDS_TO_END = 0.5
_ASKED_WRONG = (ValueError, TypeError, LookupError, AttributeError)


class ApiServer:
    """One API server over a store in memory.

    Args:
        host: a loopback address.
        port: 0 for any free one; after `start`, `port` is the one that was taken.
        token: what a client has to show; a new one when empty.
        hooks: logs and port-forwards.
        service_network: where Services get their addresses from.
        log: how many changes a watch can go back.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        hooks: Hooks | None = None,
        *,
        service_network: str = "127.96.0.0/16",
        log: int = 10_000,
    ) -> None:
        self.host, self.port = host, port
        self.token = token or secrets.token_urlsafe(32)
        self.store = Store(log)
        self._verbs = Verbs(self.store, ipaddress.IPv4Network(service_network))
        self.certificate = ""
        self._closing = asyncio.Event()
        self._routes = Routes(self.store, self._verbs, hooks or Hooks(), self._closing)
        self._runner: web.AppRunner | None = None

    @property
    def hooks(self) -> Hooks:
        """What the node layer serves."""
        return self._routes.hooks

    @hooks.setter
    def hooks(self, hooks: Hooks) -> None:
        self._routes.hooks = hooks

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"https://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen, with the namespaces that every cluster has.

        Raises:
            OSError: the port is taken.
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
        """End all watches, then listening."""
        self._closing.set()
        if self._runner:
            await self._runner.cleanup()

    def kubeconfig(self, namespace: str = "default") -> str:
        """A kubeconfig with the token, as YAML."""
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
            if request.path != "/version" and not self._may_ask(request):
                raise Refusal(401, "Unauthorized", "Unauthorized")
            return await self._routes.answer(request)
        except Refusal as caught:
            refusal = caught
        except web.HTTPRequestEntityTooLarge:
            refusal = Refusal(413, "RequestEntityTooLarge", f"Request entity too large: limit is {_LARGEST}", {})
        except _ASKED_WRONG as error:
            _log.exception("%s %s", request.method, request.path_qs)
            message = f"Internal error occurred: {type(error).__name__}: {error}"
            refusal = Refusal(500, "InternalError", message, {"causes": [{"message": message}]})
        return bodies.answer(refusal.status(), refusal.code)

    def _may_ask(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), self.token.encode())
