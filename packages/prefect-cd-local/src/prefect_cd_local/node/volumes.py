"""Volumes as folders of the node: ConfigMaps, Secrets and the downward API as files, emptyDir as an empty folder.

Decides the content of a volume, and the kubelet's message when it cannot be provided. `filesystem` mounts it. Changed
ConfigMaps and Secrets are written again at the next check (the kubelet does so within about a minute).
Source: kubernetes.io/docs/concepts/storage/volumes; messages were recorded on Kubernetes 1.36.
"""

import secrets
from pathlib import Path

from prefect_cd_local.archives import OutsideError, inside
from prefect_cd_local.client import ApiError, Client, Object
from prefect_cd_local.node.environment import ConfigError, contents, field, resource
from prefect_cd_local.node.filesystem import Bind

_FILES = ("configMap", "secret", "downwardAPI", "projected")


class Volumes:
    """The volumes of one pod."""

    def __init__(self, folder: Path, client: Client, allocatable: dict[str, str]) -> None:
        self._folder, self._client, self._allocatable = folder, client, allocatable
        self.places: dict[str, Path] = {}

    async def provide(self, pod: Object, volume: Object) -> None:
        """Make one volume, or bring it up to date.

        Raises:
            ConfigError: why it cannot be provided.
        """
        name = volume["name"]
        folder = self.places[name] = _inside(self._folder, name)
        kind = next((key for key in volume if key != "name"), "emptyDir")
        if kind == "emptyDir":
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
        elif kind in _FILES:
            projected = kind == "projected"
            sources = volume[kind].get("sources") or [] if projected else [{kind: volume[kind]}]
            files: dict[str, bytes] = {}
            for source in sources:
                files.update(await self._files(pod, source, projected=projected))
            _write(folder, files, volume[kind].get("defaultMode") or 0o644)
        else:
            raise ConfigError(f"the embedded cluster does not support volumes of the kind {kind}")

    async def _files(self, pod: Object, source: Object, *, projected: bool) -> dict[str, bytes]:
        ((kind, spec),) = source.items()
        if kind == "serviceAccountToken":
            return {spec["path"]: (await self._token(pod, spec)).encode()}
        if kind == "downwardAPI":
            return {item["path"]: self._field(pod, item).encode() for item in spec.get("items") or []}
        name = spec.get("secretName") if kind == "secret" and not projected else spec.get("name")
        wanted = "Secret" if kind == "secret" else "ConfigMap"
        content = await contents(wanted, name or "", pod["metadata"]["namespace"], self._client.find)
        if content is None:
            if spec.get("optional"):
                return {}
            raise ConfigError(f'{wanted.lower()} "{name}" not found')
        if not spec.get("items"):
            return content
        missing = [item["key"] for item in spec["items"] if item["key"] not in content]
        if missing and not spec.get("optional"):
            messages = {"configMap": "configmap references non-existent config key"}
            raise ConfigError(f"{messages.get(kind, 'references non-existent secret key')}: {missing[0]}")
        return {item["path"]: content[item["key"]] for item in spec["items"] if item["key"] in content}

    def _field(self, pod: Object, item: Object) -> str:
        if "fieldRef" in item:
            return field(pod, item["fieldRef"]["fieldPath"])
        return resource(pod, item["resourceFieldRef"], "", self._allocatable)

    async def _token(self, pod: Object, spec: Object) -> str:
        meta = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
        token_spec = {
            "audiences": [spec["audience"]] if spec.get("audience") else [],
            "expirationSeconds": spec.get("expirationSeconds", 3600),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": token_spec}
        try:
            return str((await self._client.request("POST", path, body))["status"]["token"])
        except ApiError as error:
            raise ConfigError(f"failed to fetch token: {error.message}") from error

    def binds(self, container: Object) -> list[Bind]:
        """Return a container's mounts, parents before what lies in them."""
        result = []
        for mount in sorted(container.get("volumeMounts") or [], key=lambda entry: str(entry["mountPath"])):
            source = self.places[mount["name"]]
            if mount.get("subPath"):
                source = _inside(source, mount["subPath"])
                if not source.exists():
                    source.mkdir(parents=True)
            result.append(Bind(str(source), mount["mountPath"], bool(mount.get("readOnly"))))
        return result


def _inside(folder: Path, name: str) -> Path:
    try:
        return inside(folder, name)
    except OutsideError as error:
        raise ConfigError(f"invalid path of a volume: {error}") from error


def _write(folder: Path, files: dict[str, bytes], mode: int) -> None:
    """Replace files atomically, so that a reader sees the old or the new one; remove all others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = _inside(folder, name)
        if file.is_file() and file.read_bytes() == content:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"..{secrets.token_hex(4)}")
        part.write_bytes(content)
        part.chmod(mode)
        part.replace(file)
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        if file.relative_to(folder).as_posix() not in files:
            file.unlink()
