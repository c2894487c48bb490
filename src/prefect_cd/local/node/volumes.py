"""Volumes as folders of the node: ConfigMaps, Secrets and the downward API as files, emptyDir as an empty folder.

Decides what lies in a volume and what the kubelet says when it cannot be there. Mounting is `root`'s. ConfigMaps and
Secrets are written again when they change, at the next look (the kubelet does so within about a minute).
Source: kubernetes.io/docs/concepts/storage/volumes; messages: recorded on Kubernetes 1.36.
"""

import secrets
from pathlib import Path

from prefect_cd.local.client import ApiError, Client, Object
from prefect_cd.local.node.environment import ConfigError, contents, field, resource
from prefect_cd.local.node.root import Bind

_FILES = ("configMap", "secret", "downwardAPI", "projected")


class Volumes:
    """The volumes of one pod."""

    def __init__(self, folder: Path, client: Client, allocatable: dict[str, str]) -> None:
        self._folder, self._client, self._allocatable = folder, client, allocatable
        self.places: dict[str, Path] = {}

    async def provide(self, pod: Object, volume: Object) -> None:
        """Make one volume, or bring it up to date.

        Raises:
            ConfigError: why it cannot be.
        """
        name = volume["name"]
        folder = self.places[name] = self._folder / name
        kind = next((each for each in volume if each != "name"), "emptyDir")
        if kind == "emptyDir":
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
        elif kind in _FILES:
            projected = kind == "projected"
            sources = volume[kind].get("sources") or [] if projected else [{kind: volume[kind]}]
            files: dict[str, bytes] = {}
            for each in sources:
                files.update(await self._files(pod, each, projected=projected))
            _write(folder, files, volume[kind].get("defaultMode") or 0o644)
        else:
            raise ConfigError(f"the node of the embedded cluster has no volumes of the kind {kind}")

    async def _files(self, pod: Object, source: Object, *, projected: bool) -> dict[str, bytes]:
        ((kind, spec),) = source.items()
        if kind == "serviceAccountToken":
            return {spec["path"]: (await self._token(pod, spec)).encode()}
        if kind == "downwardAPI":
            return {each["path"]: self._field(pod, each).encode() for each in spec.get("items") or []}
        name = spec.get("secretName") if kind == "secret" and not projected else spec.get("name")
        wanted = "Secret" if kind == "secret" else "ConfigMap"
        found = await contents(wanted, name or "", pod["metadata"]["namespace"], self._client.find)
        if found is None:
            if spec.get("optional"):
                return {}
            raise ConfigError(f'{wanted.lower()} "{name}" not found')
        if not spec.get("items"):
            return found
        missing = [each["key"] for each in spec["items"] if each["key"] not in found]
        if missing and not spec.get("optional"):
            said = {"configMap": "configmap references non-existent config key"}
            raise ConfigError(f"{said.get(kind, 'references non-existent secret key')}: {missing[0]}")
        return {each["path"]: found[each["key"]] for each in spec["items"] if each["key"] in found}

    def _field(self, pod: Object, item: Object) -> str:
        if "fieldRef" in item:
            return field(pod, item["fieldRef"]["fieldPath"])
        return resource(pod, item["resourceFieldRef"], "", self._allocatable)

    async def _token(self, pod: Object, spec: Object) -> str:
        meta = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
        asked = {
            "audiences": [spec["audience"]] if spec.get("audience") else [],
            "expirationSeconds": spec.get("expirationSeconds", 3600),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": asked}
        try:
            return str((await self._client.request("POST", path, body))["status"]["token"])
        except ApiError as error:
            raise ConfigError(f"failed to fetch token: {error.message}") from error

    def binds(self, container: Object) -> list[Bind]:
        """What a container mounts, parents before what lies in them."""
        result = []
        for mount in sorted(container.get("volumeMounts") or [], key=lambda each: str(each["mountPath"])):
            source = self.places[mount["name"]]
            if mount.get("subPath"):
                source = source / mount["subPath"]
                if not source.exists():
                    source.mkdir(parents=True)
            result.append(Bind(str(source), mount["mountPath"], bool(mount.get("readOnly"))))
        return result


def _write(folder: Path, files: dict[str, bytes], mode: int) -> None:
    """Write files by replacing them, so that a reader sees the old or the new one; remove all others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = folder / name
        if file.is_file() and file.read_bytes() == content:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"..{secrets.token_hex(4)}")
        part.write_bytes(content)
        part.chmod(mode)
        part.replace(file)
    for file in [each for each in folder.rglob("*") if each.is_file()]:
        if file.relative_to(folder).as_posix() not in files:
            file.unlink()
