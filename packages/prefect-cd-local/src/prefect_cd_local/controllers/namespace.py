"""The namespace controller: default objects of new namespaces, and removal of the content of deleted ones.

Rules: the documentation of namespaces, of the default ServiceAccount and of kube-root-ca.crt. Pods go first and get
their grace period (KEP-5080); the namespace is finalized when nothing is left.
"""

from collections.abc import Sequence

from prefect_cd_local.client import CONFIG_MAPS, NAMESPACES, PODS, SERVICE_ACCOUNTS, ApiError, Client, Object, Resource
from prefect_cd_local.controllers.loop import Caches, Queue
from prefect_cd_local.controllers.objects import is_ending

_ROOT_CA = "kube-root-ca.crt"
_LOOK_AGAIN_SECONDS = 0.5
_NOT_FOUND, _NOT_ALLOWED = 404, 405


class NamespaceController:
    """Fills new namespaces with default objects, and empties deleted ones.

    Args:
        client: for reading single objects and for writes.
        caches: shared with the other controllers.
        resources: what the server serves, from `Client.discover`.
        root_ca: the PEM text with which pods verify the API server; may be empty.
    """

    def __init__(self, client: Client, caches: Caches, resources: Sequence[Resource], root_ca: str = "") -> None:
        self._client = client
        self._namespaces = caches[NAMESPACES]
        self._accounts, self._maps = caches[SERVICE_ACCOUNTS], caches[CONFIG_MAPS]
        self._others = [resource for resource in resources if resource.namespaced and resource != PODS]
        self._root_ca = root_ca
        self.queue: Queue[str] = Queue("namespace", self.sync)
        self._namespaces.listen(lambda namespace: self.queue.add(namespace["metadata"]["name"]))
        self._accounts.listen(self._furniture_changed)
        self._maps.listen(self._furniture_changed)

    def _furniture_changed(self, obj: Object) -> None:
        if obj["metadata"]["name"] in {"default", _ROOT_CA}:
            self.queue.add(obj["metadata"]["namespace"])

    async def sync(self, name: str) -> float | None:
        """Reconcile one namespace; returns the seconds until one that is not yet empty must be checked again."""
        namespace = self._namespaces.get(("", name))
        if namespace is None:
            return None
        if not is_ending(namespace):
            await self._furnish(name)
            return None
        if await self._empty(PODS, name) or any([await self._empty(resource, name) for resource in self._others]):
            return _LOOK_AGAIN_SECONDS
        fresh = await self._client.find(NAMESPACES, name)
        if fresh is not None:
            finalizers = [entry for entry in fresh["spec"].get("finalizers") or [] if entry != "kubernetes"]
            await self._client.update(NAMESPACES, {**fresh, "spec": {"finalizers": finalizers}}, "finalize")
        return None

    async def _furnish(self, namespace: str) -> None:
        if self._accounts.get((namespace, "default")) is None:
            await self._create(SERVICE_ACCOUNTS, {"metadata": {"name": "default", "namespace": namespace}})
        existing, data = self._maps.get((namespace, _ROOT_CA)), {"ca.crt": self._root_ca}
        if existing is None:
            await self._create(CONFIG_MAPS, {"metadata": {"name": _ROOT_CA, "namespace": namespace}, "data": data})
        elif existing.get("data") != data:
            self._maps.put(await self._client.update(CONFIG_MAPS, {**existing, "data": data}))

    async def _create(self, resource: Resource, obj: Object) -> None:
        try:
            await self._client.create(resource, obj)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    async def _empty(self, resource: Resource, namespace: str) -> bool:
        """Delete everything of a kind; returns whether something is left."""
        try:
            items = (await self._client.list(resource, namespace)).items
        except ApiError as error:
            if error.code in {_NOT_FOUND, _NOT_ALLOWED}:  # no longer served, or cannot be listed
                return False
            raise
        for item in items:
            if not is_ending(item):
                await self._end(resource, item)
        return bool(items)

    async def _end(self, resource: Resource, item: Object) -> None:
        try:
            await self._client.delete(
                resource, item["metadata"]["name"], item["metadata"]["namespace"], propagation="Background"
            )
        except ApiError as error:
            if error.code != _NOT_FOUND:
                raise
